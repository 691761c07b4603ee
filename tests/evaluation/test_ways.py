"""Log-likelihoods through the prefix tree, with caches, and in plain batches: all the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget
from evomerge.evaluation.likelihoods.exact import InFloat32
from evomerge.evaluation.likelihoods.likelihood import Likelihoods
from evomerge.evaluation.likelihoods.logits import Model
from evomerge.evaluation.likelihoods.plain import PlainBatches
from evomerge.evaluation.likelihoods.tree import TreePasses
from evomerge.evaluation.likelihoods.trie import PrefixTree
from evomerge.evaluation.queries import Window

CPU = torch.device("cpu")
VOCABULARY = 120
NARROW = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SLIDING = {**NARROW, "head_dim": 8, "sliding_window": 16}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}


def make(kind: str, settings: dict[str, Any], *, times: float = 4.0) -> Any:
    """A random model whose attention looks at some tokens more than at others."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(times)
    return model


def few_shot_windows() -> list[Window]:
    """As in a study: shared examples, contexts with several choices each, and some whole texts."""
    rng = random.Random(0)

    def some(least: int, most: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(least, most))]

    windows = []
    examples = some(40, 40)
    for _ in range(6):
        context = examples + some(5, 20)
        for _ in range(4):
            choice = some(1, 4)
            windows.append(Window(tuple((context + choice)[:-1]), tuple(choice)))
    for _ in range(2):
        text = some(60, 60)
        windows.append(Window((1, *text[:-1]), tuple(text)))
    rng.shuffle(windows)
    return windows


WINDOWS = few_shot_windows()


def alone(model: Any, windows: list[Window]) -> np.ndarray:
    """Each window by itself, by the model's own log-softmax: the definition."""
    found = []
    with torch.inference_mode():
        for window in windows:
            logits = model(torch.tensor([window.tokens])).logits[0, -len(window.targets) :]
            shares = logits.double().log_softmax(-1)
            found.append(float(shares[range(len(window.targets)), list(window.targets)].sum()))
    return np.array(found)


def tokens_run(model: Any, action: Callable[[], Any]) -> int:
    """Tokens that go through the model meanwhile, padding included."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    action()
    handle.remove()
    return sum(sizes)


def distinct(windows: list[Window]) -> int:
    return len({w.tokens[:end] for w in windows for end in range(1, len(w.tokens) + 1)})


# Which way a model goes, and that it is right.

TREE = {
    "llama": NARROW,
    "mistral": SLIDING,
    "gemma2": {**SLIDING, "attn_logit_softcapping": 5.0},
    "gpt_oss": {**SLIDING, "num_local_experts": 4},
    "gpt2": GPT,
}
CACHES = {
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "llama4_text": {
        **NARROW,
        "head_dim": 8,
        "attention_chunk_size": 16,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
    },
    "mamba2": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
    },
}
PLAIN = {
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
}
KINDS = [
    (kind, settings, way)
    for way, kinds in (
        ("prefix tree", TREE),
        ("cached prefixes", CACHES),
        ("plain batches", PLAIN),
    )
    for kind, settings in kinds.items()
]


@pytest.mark.parametrize(("kind", "settings", "way"), KINDS, ids=[kind for kind, _, _ in KINDS])
def test_each_model_takes_the_quickest_way_that_is_right(
    kind: str, settings: dict[str, Any], way: str
) -> None:
    model = make(kind, settings)
    before = model.config._attn_implementation
    likelihoods = Likelihoods(model, WINDOWS, Budget(100), CPU)
    assert likelihoods.way == way, likelihoods.note
    assert bool(likelihoods.note) == (way != "prefix tree")
    np.testing.assert_allclose(likelihoods.run()[0], alone(model, WINDOWS), rtol=0, atol=1e-4)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(("kind", "way"), [("llama", "prefix tree"), ("bloom", "cached prefixes")])
def test_rounding_hides_no_wrong_way(kind: str, way: str) -> None:
    """In bfloat16 BLOOM's biases of distance are smaller than what rounding is allowed."""
    model = make(kind, {**TREE, **CACHES}[kind], times=2.0).to(torch.bfloat16)
    assert Likelihoods(model, WINDOWS, Budget(100), CPU).way == way
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = torch.tensor([WINDOWS[0].tokens])
    with torch.inference_mode(), InFloat32():
        exact = model(tokens).logits
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(exact, model.float()(tokens).logits)


def test_what_cannot_be_checked_is_not_trusted() -> None:
    model = make("llama", NARROW)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    likelihoods = Likelihoods(model, WINDOWS, Budget(100), CPU)
    assert likelihoods.way == "plain batches"
    assert "not numbers" in likelihoods.note
    assert np.isnan(likelihoods.run()[0]).all()


def test_a_way_that_gives_other_numbers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a model counted its positions by itself."""
    full = LlamaForCausalLM.forward

    def forward(
        self: Any, input_ids: torch.Tensor, *, position_ids: Any = None, **more: Any
    ) -> Any:
        return full(self, input_ids, **more)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    model = make("llama", NARROW)
    likelihoods = Likelihoods(model, WINDOWS, Budget(100), CPU)
    assert likelihoods.way != "prefix tree"
    assert "differ by" in likelihoods.note
    np.testing.assert_allclose(likelihoods.run()[0], alone(model, WINDOWS), rtol=0, atol=1e-4)


# The tree.

windows_of_few_tokens = st.lists(
    st.integers(1, 9).flatmap(
        lambda length: st.builds(
            Window,
            st.tuples(*[st.integers(0, 2)] * length),
            st.lists(st.integers(0, 4), min_size=1, max_size=length).map(tuple),
        )
    ),
    min_size=1,
    max_size=12,
)


@given(windows_of_few_tokens)
@settings(max_examples=40, deadline=None)
def test_every_distinct_prefix_is_one_node_behind_those_on_its_way(windows: list[Window]) -> None:
    tree = PrefixTree.of(windows)
    assert len(tree) == distinct(windows)
    ways = tree.ways(np.arange(len(tree)))
    for node, way in enumerate(ways):
        assert list(way) == [i for i in range(node) if node < tree.ends[i]]
        assert tree.depths[node] == len(way)
        assert tree.parents[node] == (way[-1] if len(way) else -1)
    for number, window in enumerate(windows):
        pairs = tree.sources[tree.starts[number] :][: len(window.targets)]
        assert tuple(tree.asked[pairs]) == window.targets
        last = tree.scored[pairs[-1]]
        assert tuple(tree.tokens[[*ways[last], last]]) == window.tokens


@given(windows_of_few_tokens, st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_passes_of_any_length_give_what_each_window_gives_alone(
    small_llama: Any, windows: list[Window], most_tokens: int
) -> None:
    passes = TreePasses(Model(small_llama, CPU), windows, most_tokens)
    likelihood, greedy = passes.run()
    np.testing.assert_allclose(likelihood, alone(small_llama, windows), rtol=0, atol=1e-4)
    plain = PlainBatches(Model(small_llama, CPU), windows, Budget(64)).run()
    np.testing.assert_array_equal(greedy, plain[1])


@pytest.fixture(scope="module")
def small_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**{**NARROW, "vocab_size": 7, "num_key_value_heads": 1})
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("most_tokens", [17, 128, 4096])
def test_each_distinct_token_goes_through_the_model_once(most_tokens: int) -> None:
    """In passes that cut contexts and blocks anywhere, of whose keys the next ones need some."""
    model = make("llama", NARROW)
    passes = TreePasses(Model(model, CPU), WINDOWS, most_tokens)
    assert tokens_run(model, passes.run) == distinct(WINDOWS)
    np.testing.assert_allclose(passes.run()[0], alone(model, WINDOWS), rtol=0, atol=1e-4)


def test_ways_longer_than_blocks_are_alike() -> None:
    """Ways that differ by more than one call's padding, long blocks, a sliding window."""
    rng = random.Random(1)
    text = [rng.randrange(3, VOCABULARY) for _ in range(900)]
    windows = [Window(tuple(text[:-1]), tuple(text[1:]))]
    for cut in (5, 300, 301, 700):
        ending = [rng.randrange(3, VOCABULARY) for _ in range(30)]
        windows.append(Window(tuple(text[:cut] + ending), (*ending[1:], 4)))
    model = make("mistral", {**SLIDING, "max_position_embeddings": 1024}, times=2.0)
    passes = TreePasses(Model(model, CPU), windows, 512)
    np.testing.assert_allclose(passes.run()[0], alone(model, windows), rtol=1e-6, atol=1e-4)


def test_cached_beginnings_save_most_tokens() -> None:
    model = make("bloom", CACHES["bloom"])
    cached = Likelihoods(model, WINDOWS, Budget(100), CPU)
    plain = PlainBatches(Model(model, CPU), WINDOWS, Budget(100))
    assert tokens_run(model, cached.run) < 0.45 * tokens_run(model, plain.run)


def test_a_pass_shrinks_when_memory_runs_out_and_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama", NARROW)
    expected = alone(model, WINDOWS)
    likelihoods = Likelihoods(model, WINDOWS, Budget(400), CPU)
    sizes: list[int] = []
    limit = 90
    full = LlamaForCausalLM.forward

    def forward(self: Any, input_ids: torch.Tensor, **more: Any) -> Any:
        sizes.append(input_ids.numel())
        if input_ids.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
        return full(self, input_ids, **more)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    np.testing.assert_allclose(likelihoods.run()[0], expected, rtol=0, atol=1e-4)
    assert max(sizes) > limit
    sizes.clear()
    likelihoods.run()
    assert max(sizes) <= limit
    assert sum(sizes) == distinct(WINDOWS)
    limit = 3
    with pytest.raises(TrialError, match="out of memory with a pass of 16 tokens"):
        likelihoods.run()


def test_the_vocabulary_is_never_held_for_more_positions_than_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("llama", NARROW)
    monkeypatch.setattr(
        "evomerge.evaluation.likelihoods.logits._PIECE_BYTES_ELSEWHERE", 4 * VOCABULARY * 10
    )
    heads: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, given: heads.append(given[0].shape[1]))
    passes = TreePasses(Model(model, CPU), WINDOWS, 4096)
    likelihood, _ = passes.run()
    assert max(heads) == 10
    np.testing.assert_allclose(likelihood, alone(model, WINDOWS), rtol=0, atol=1e-4)
