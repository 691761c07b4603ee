"""Written texts are lm-eval's, however many rows share a batch and whoever leaves it first."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget
from evomerge.evaluation.queries import Encoder, Generation, Rules
from evomerge.evaluation.writing.generation import Generator, is_plainly_greedy
from evomerge.evaluation.writing.prefixes import group_by_beginning
from tests.evaluation.worlds import make_gpt2, make_model, make_tokenizer, sentence

CPU = torch.device("cpu")
LENGTH = 96
SHORT = {"until": [" s", "\n"], "max_gen_toks": 12, "do_sample": False}
LONG = {"until": [" s", "ee"], "max_gen_toks": 18, "do_sample": False}


def contexts(count: int, *, seed: int = 0, shots: int = 0) -> list[str]:
    rng = random.Random(seed)
    examples = "".join(f"{sentence(rng, 4)}\n" for _ in range(shots))
    return [examples + sentence(rng, rng.randint(1, 9)) for _ in range(count)]


def generations(tokenizer: Any, texts: list[str], options: dict[str, Any]) -> list[Generation]:
    encoder = Encoder(tokenizer, LENGTH)
    queries = [encoder.query("generate_until", (text, dict(options))) for text in texts]
    return [query for query in queries if isinstance(query, Generation)]


def make_generator(
    model: Any,
    tokenizer: Any,
    texts: list[str],
    options: dict[str, Any],
    budget: Budget = Budget(300),  # noqa: B008 - frozen
) -> Generator:
    queries = generations(tokenizer, texts, options)
    return Generator(model, tokenizer, queries, queries[0].rules, budget, CPU)


def written_by_lm_eval(
    model: Any, tokenizer: Any, texts: list[str], options: dict[str, Any]
) -> list[str]:
    """One prompt at a time: nothing is padded."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1, max_length=LENGTH)
    requests = [
        Instance("generate_until", {}, (text, copy.deepcopy(options)), number)
        for number, text in enumerate(texts)
    ]
    return list(lm.generate_until(requests, disable_tqdm=True))


def make(kind: str, tokenizer: Any, **more: Any) -> Any:
    """A model of some architecture whose next token depends on what and where everything is."""
    torch.manual_seed(2)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    if kind != "Bloom":
        shape["intermediate_size"] = 48
    if kind not in ("Bloom", "Mamba"):
        shape |= {"num_attention_heads": 4, "max_position_embeddings": LENGTH}
    configuration = {"Gemma3": "Gemma3Text"}.get(kind, kind)
    config = getattr(transformers, f"{configuration}Config")(**shape, **more)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model


WINDOWS = ["sliding_attention", "full_attention"]
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MAKERS: dict[str, Callable[[Any], Any]] = {
    "llama": make_model,
    "gpt2": make_gpt2,
    "qwen3": lambda tokenizer: make("Qwen3", tokenizer, **GROUPED),
    "mistral with a window": lambda tokenizer: make(
        "Mistral", tokenizer, **GROUPED, sliding_window=6
    ),
    "gemma2 with a window in every other layer": lambda tokenizer: make(
        "Gemma2", tokenizer, **GROUPED, sliding_window=6
    ),
    "gemma3 with a window in every other layer": lambda tokenizer: make(
        "Gemma3", tokenizer, **GROUPED, sliding_window=6, layer_types=WINDOWS
    ),
    "bloom, whose masks make its positions": lambda tokenizer: make("Bloom", tokenizer, n_head=4),
    "neox": lambda tokenizer: make("GPTNeoX", tokenizer),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_texts_are_lm_eval_s(kind: str, tokenizer: Any) -> None:
    model = MAKERS[kind](tokenizer)
    texts = [*contexts(6), *contexts(3, shots=3), "a"]
    texts.append(texts[0])
    generator = make_generator(model, tokenizer, texts, LONG)
    assert generator.continuous
    got = generator.run()
    assert got == written_by_lm_eval(model, tokenizer, texts, LONG)
    assert len({len(text) for text in got}) > 3, "the texts end at different times"


def test_models_with_another_memory_are_left_to_transformers(tokenizer: Any) -> None:
    model = make("Mamba", tokenizer, state_size=4)
    texts = contexts(5)
    generator = make_generator(model, tokenizer, texts, SHORT, Budget(1))
    assert not generator.continuous
    assert generator.run() == written_by_lm_eval(model, tokenizer, texts, SHORT)


class _Deaf(transformers.LlamaForCausalLM):
    """Looks as if it took positions, and counts columns instead."""

    def forward(self, input_ids: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, **kwargs)


def test_a_model_that_does_not_heed_positions_is_found_out(tokenizer: Any) -> None:
    model = _Deaf(make_model(tokenizer).config).eval()
    model.load_state_dict(make_model(tokenizer).state_dict())
    assert make_generator(make_model(tokenizer), tokenizer, contexts(6), SHORT).continuous
    assert not make_generator(model, tokenizer, contexts(6), SHORT).continuous


def test_a_model_that_was_broken_at_first_is_tried_again(tokenizer: Any) -> None:
    model = make_model(tokenizer)
    weight = model.model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    generator = make_generator(model, tokenizer, contexts(6), SHORT)
    with pytest.raises(TrialError, match="NaN"):
        generator.run()
    with torch.no_grad():
        weight.copy_(kept)
    assert generator.run() == written_by_lm_eval(model, tokenizer, contexts(6), SHORT)
    assert generator.continuous


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 10},
        {"max_length": 30},
    ],
)
def test_what_else_is_asked_of_generate_is_heeded(tokenizer: Any, options: dict[str, Any]) -> None:
    model, texts = make_model(tokenizer), contexts(6)
    plain = make_generator(model, tokenizer, texts, LONG).run()
    asked = {**LONG, **options}
    got = make_generator(model, tokenizer, texts, asked, Budget(1)).run()
    assert got == written_by_lm_eval(model, tokenizer, texts, asked)
    assert got != plain
    if "max_length" not in options:
        # The model's own configuration asks for the same.
        model.generation_config.update(**options)
        assert make_generator(model, tokenizer, texts, LONG, Budget(1)).run() == got


@pytest.mark.parametrize(
    ("options", "own", "greedy"),
    [
        ({"do_sample": False}, {}, True),
        ({"do_sample": False}, {"do_sample": True, "temperature": 0.6, "top_k": 20}, True),
        ({"do_sample": False, "top_p": 0.5}, {"repetition_penalty": 1.0}, True),
        ({"do_sample": True}, {}, False),
        ({}, {}, False),
        ({"do_sample": False}, {"repetition_penalty": 1.1}, False),
        ({"do_sample": False}, {"suppress_tokens": [3]}, False),
        ({"do_sample": False}, {"max_new_tokens": 5}, False),
        ({"do_sample": False, "something_new": 1}, {}, False),
    ],
)
def test_what_is_plainly_greedy(options: dict[str, Any], own: dict[str, Any], greedy: bool) -> None:
    config = transformers.GenerationConfig(**own)
    rules = Rules(("x",), 3, 8, tuple(options.items()))
    assert is_plainly_greedy(rules, config) is greedy


class _Counted:
    """Counts what a model is given."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        self.rows: list[int] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens += kwargs["input_ids"].numel()
        self.rows.append(len(kwargs["input_ids"]))


def test_a_shared_beginning_is_read_once(tokenizer: Any) -> None:
    model, texts = make_model(tokenizer), contexts(12, shots=6)
    options = {**SHORT, "max_gen_toks": 1}
    generator = make_generator(model, tokenizer, texts, options, Budget(10_000))
    counted = _Counted(model)
    generator.run()
    lengths = [len(query.tokens) for query in generations(tokenizer, texts, options)]
    assert counted.tokens < sum(lengths) / 2
    assert generator.run() == written_by_lm_eval(model, tokenizer, texts, options)


def test_who_waits_takes_the_place_of_who_is_done(tokenizer: Any) -> None:
    model, texts = make_model(tokenizer), contexts(30, seed=5)
    generator = make_generator(model, tokenizer, texts, LONG, Budget(400, 8))
    counted = _Counted(model)
    got = generator.run()
    assert max(counted.rows) <= 8
    together = [rows for rows in counted.rows if rows > 1]
    assert len(together) > len(counted.rows) / 2
    batches = make_generator(model, tokenizer, texts, {**LONG, "min_length": 0}, Budget(4000))
    assert batches.run() == got


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=6),
    tokens=st.integers(1, 400),
    rows=st.none() | st.integers(1, 5),
    seed=st.integers(0, 5),
)
def test_neither_lengths_nor_room_matter(
    lengths: list[int], tokens: int, rows: int | None, seed: int
) -> None:
    tokenizer, model = _world()
    rng = random.Random(seed)
    prompts = [
        Generation(
            tuple([7, 9, 11, 40, 50][: rng.randint(0, 5)])
            + tuple(rng.randrange(6, len(tokenizer)) for _ in range(length)),
            Rules((" s", "e"), 4, 9, (("do_sample", False),)),
        )
        for length in lengths
    ]
    alone = [
        Generator(model, tokenizer, [one], one.rules, Budget(1), CPU).run()[0] for one in prompts
    ]
    generator = Generator(model, tokenizer, prompts, prompts[0].rules, Budget(tokens, rows), CPU)
    assert generator.continuous
    assert generator.run() == alone


_WORLD: list[Any] = []


def _world() -> tuple[Any, Any]:
    if not _WORLD:
        tokenizer = make_tokenizer()
        _WORLD.extend([tokenizer, make_model(tokenizer)])
    return _WORLD[0], _WORLD[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), min_size=1, max_size=20))
def test_groups_share_what_they_say(prompts: list[list[int]]) -> None:
    groups = group_by_beginning(prompts)
    members = [index for group in groups for index in group.members]
    assert sorted(members) == list(range(len(prompts)))
    for group in groups:
        first = prompts[group.members[0]][: group.shared]
        lengths = [len(prompts[index]) for index in group.members]
        assert lengths == sorted(lengths, reverse=True)
        assert all(prompts[index][: group.shared] == first for index in group.members)
        assert group.shared < min(lengths) or group.shared == 0


def test_two_sets_of_examples_make_two_groups() -> None:
    one, two = [1] * 100, [1] * 10 + [2] * 90
    prompts = [[*start, number, 3] for start in (one, two) for number in range(5)]
    assert {group.shared for group in group_by_beginning(prompts)} == {100}
    assert [group.shared for group in group_by_beginning([[1, 2, 3], [1, 2, 4]])] == [0]


def test_half_precision_agrees_with_single_rows(tokenizer: Any) -> None:
    """In bfloat16 logits tie and sums depend on their order: most texts are the same, not all."""
    model, texts = make_model(tokenizer).to(torch.bfloat16), contexts(16)
    generator = make_generator(model, tokenizer, texts, SHORT)
    assert generator.continuous
    got, want = generator.run(), written_by_lm_eval(model, tokenizer, texts, SHORT)
    assert sum(a == b for a, b in zip(got, want, strict=True)) >= 12
