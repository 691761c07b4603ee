"""Rows are merged by what they stand for: known answers by token, and the same as mergekit's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from evomerge.errors import CheckpointError, EvomergeWarning, RecipeError
from evomerge.merging import MergeEngine, StagedEngine, write_merge
from evomerge.recipe import Recipe
from evomerge.search.single import open_model
from tests.merging.speakers import (
    EMBEDDING,
    HEAD,
    SPECIAL,
    WORDS,
    Speaker,
    blend,
    blend_text,
    speaker,
)
from tests.merging.worlds import config_of, rewrite, run_mergekit, same_bits, stored

SHUFFLED = (*WORDS[:3], *WORDS[:2:-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speakers")


@pytest.fixture(scope="module")
def base(folder: Path) -> Speaker:
    return speaker(folder / "base", seed=1)


@pytest.fixture(scope="module")
def tools(folder: Path) -> Speaker:
    """The base's tokens elsewhere, one of them missing, two new special ones."""
    words = tuple(word for word in SHUFFLED if word != "w4")
    return speaker(folder / "tools", words, ("<tool>", "<end>"), seed=2)


@pytest.fixture(scope="module")
def chat(folder: Path) -> Speaker:
    """The base's tokens where they were, then new ones, one of which ``tools`` has too."""
    return speaker(folder / "chat", WORDS, ("<chat>", "<tool>"), seed=3)


def merged(recipe: Recipe) -> tuple[dict[str, int], dict[str, torch.Tensor], MergeEngine]:
    """Token → row, and the merged tensors."""
    engine = MergeEngine(None, list(map(str, recipe.models_named)), vocabulary_of=recipe)
    vocabulary = engine.target.vocabulary.tokenizer.load().get_vocab()
    return vocabulary, dict(engine.tensors(recipe)), engine


def notes(recipe: Recipe, speakers: Iterable[Speaker]) -> list[str]:
    """What is said, models named by their folders' last parts."""
    _, _, engine = merged(recipe)
    said = list(engine.target.notes)
    for one in speakers:
        said = [note.replace(str(one.folder), one.folder.name) for note in said]
    return said


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours.double(), theirs.double(), rtol=0, atol=1e-6)


# By token: known answers.


@pytest.mark.parametrize("source", ["base", "union", "tools", "chat"])
def test_a_row_is_the_plain_merge_of_its_tokens_rows(
    source: str, base: Speaker, tools: Speaker, chat: Speaker
) -> None:
    named = {"tools": str(tools.folder), "chat": str(chat.folder)}
    recipe = blend(
        tools,
        chat,
        method="task_arithmetic",
        base=base,
        tokenizer_source=named.get(source, source),
    )
    vocabulary, tensors, engine = merged(recipe)
    tokens = {"base": base.tokens, "tools": tools.tokens, "chat": chat.tokens}
    union = {*base.tokens, *tools.tokens, *chat.tokens}
    assert set(vocabulary) == set(tokens.get(source, union))
    assert engine.target.vocabulary.height == len(vocabulary)
    for name in (EMBEDDING, HEAD):
        assert tensors[name].shape[0] == len(vocabulary)
        for token, row in vocabulary.items():
            known = [one for one in (base, tools, chat) if token in one.tokens]
            rows = [one.row(token, name).double() for one in known]
            # The base's row stands in for one that is missing; else the mean of those that exist.
            stand_in = rows[0] if base in known else sum(rows) / len(rows)
            parts = [
                one.row(token, name).double() if one in known else stand_in
                for one in (base, tools, chat)
            ]
            expected = parts[0] + 0.5 * (parts[1] - parts[0]) + 0.3 * (parts[2] - parts[0])
            assert close(tensors[name][row], expected), (name, token)
    layer = "model.layers.0.mlp.up_proj.weight"
    start = base.tensors[layer].double()
    plain = start + 0.5 * (tools.tensors[layer] - start) + 0.3 * (chat.tensors[layer] - start)
    assert close(tensors[layer], plain)


def test_without_a_base_a_missing_row_is_the_mean_of_the_others(
    base: Speaker, tools: Speaker, chat: Speaker
) -> None:
    vocabulary, tensors, _ = merged(blend(chat, tools, base, tokenizer_source="union"))
    mean = (chat.row("w4").double() + base.row("w4").double()) / 2
    expected = 0.5 * chat.row("w4").double() + 0.3 * mean + 0.2 * base.row("w4").double()
    assert close(tensors[EMBEDDING][vocabulary["w4"]], expected)
    mean = (chat.row("<tool>").double() + tools.row("<tool>").double()) / 2
    expected = 0.5 * chat.row("<tool>").double() + 0.3 * tools.row("<tool>").double() + 0.2 * mean
    assert close(tensors[EMBEDDING][vocabulary["<tool>"]], expected)


def test_means_of_short_numbers_are_not_rounded(folder: Path) -> None:
    kinds = {"dtype": torch.bfloat16}
    plain = speaker(folder / "short", seed=4, **kinds)
    one = speaker(folder / "short-a", WORDS, ("<x>",), seed=5, **kinds)
    two = speaker(folder / "short-b", WORDS, ("<x>",), seed=6, **kinds)
    recipe = blend(one, two, method="task_arithmetic", base=plain, tokenizer_source="union")
    vocabulary, tensors, _ = merged(recipe)
    a, b = one.row("<x>").double(), two.row("<x>").double()
    mean = (a + b) / 2
    expected = mean + 0.5 * (a - mean) + 0.3 * (b - mean)
    assert close(tensors[EMBEDDING][vocabulary["<x>"]], expected)


def test_a_tied_head_is_merged_once_and_untied_ones_take_its_rows(
    folder: Path, tools: Speaker
) -> None:
    tied = {"tie_word_embeddings": True}
    first = speaker(folder / "tied", seed=7, **tied)
    second = speaker(folder / "tied-too", SHUFFLED, ("<new>",), seed=8, **tied)
    recipe = blend(second, method="task_arithmetic", base=first, tokenizer_source="union")
    vocabulary, tensors, _ = merged(recipe)
    assert HEAD not in tensors
    for token in WORDS:
        expected = first.row(token) + 0.5 * (second.row(token) - first.row(token))
        assert close(tensors[EMBEDDING][vocabulary[token]], expected)
    assert close(tensors[EMBEDDING][vocabulary["<new>"]], second.row("<new>"))
    mixed = blend(second, method="task_arithmetic", base=tools, tokenizer_source="union")
    vocabulary, tensors, _ = merged(mixed)
    for token in WORDS:
        start = tools.row(token, HEAD) if token in tools.tokens else second.row(token)
        expected = start + 0.5 * (second.row(token) - start)
        assert close(tensors[HEAD][vocabulary[token]], expected), token


def test_a_shared_head_is_merged_with_heads_of_their_own(
    folder: Path, tools: Speaker, tmp_path: Path
) -> None:
    tied = speaker(folder / "shared", seed=15, tie_word_embeddings=True)
    recipe = blend(tools, method="task_arithmetic", base=tied, tokenizer_source="union")
    vocabulary, tensors, _ = merged(recipe)
    for name in (EMBEDDING, HEAD):
        for token in tied.tokens:
            start = tied.row(token)
            end = tools.row(token, name) if token in tools.tokens else start
            assert close(tensors[name][vocabulary[token]], start + 0.5 * (end - start)), token
    assert notes(recipe, [tied, tools])[0] == (
        "tools has a lm_head.weight of its own, while shared's is its embeddings: so that they can "
        "be merged, the merged model has one of its own"
    )
    stage = Recipe.from_mapping({**recipe.to_mapping(), "name": "stage"})
    later = blend(tied, method="task_arithmetic", tokenizer_source="base", base_model="stage")
    plain = blend(tools, method="task_arithmetic", base=tied, tokenizer_source="base")
    for number, recipes in enumerate(([recipe], [plain], [stage, later])):
        out = tmp_path / str(number)
        with pytest.warns(EvomergeWarning, match="of its own"):
            write_merge(recipes, out)
        with pytest.warns(EvomergeWarning, match="of its own"):
            live = open_model(recipes, device="cpu").load()
        written, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not report["missing_keys"]
        assert not config_of(out)["tie_word_embeddings"]
        same_bits(dict(written.state_dict()), stored(out))
        same_bits(dict(written.state_dict()), dict(live.state_dict()))
    assert torch.equal(stored(tmp_path / "0")[HEAD], tensors[HEAD])


def test_a_stage_with_a_shared_head_is_one_like_any_other(
    folder: Path, chat: Speaker, tmp_path: Path
) -> None:
    pair = [speaker(folder / f"s{n}", seed=n, tie_word_embeddings=True) for n in (16, 17)]
    first = blend_text(pair[1], method="task_arithmetic", base=pair[0])
    later = {"method": "task_arithmetic", "tokenizer_source": "base"}
    stages = [Recipe.from_yaml(f"name: stage\n{first}"), blend(chat, base_model="stage", **later)]
    with pytest.warns(EvomergeWarning, match="of its own"):
        write_merge(stages, tmp_path / "memory")
    write_merge(stages[:1], tmp_path / "stage")
    through = blend(chat, base_model=str(tmp_path / "stage"), **later)
    with pytest.warns(EvomergeWarning, match="of its own"):
        write_merge([through], tmp_path / "disk")
    same_bits(stored(tmp_path / "memory"), stored(tmp_path / "disk"))
    assert config_of(tmp_path / "memory") == config_of(tmp_path / "disk")


def test_a_model_that_only_gives_the_tokenizer_gives_its_rows_too(
    base: Speaker, tools: Speaker, chat: Speaker
) -> None:
    recipe = blend(tools, method="linear", tokenizer_source=str(chat.folder))
    vocabulary, tensors, _ = merged(recipe)
    assert vocabulary == {token: row for row, token in enumerate(chat.tokens)}
    assert close(tensors[EMBEDDING][vocabulary["<chat>"]], chat.row("<chat>"))
    assert close(tensors[EMBEDDING][vocabulary["<tool>"]], tools.row("<tool>"))


def test_single_tokens_take_the_rows_that_the_recipe_names(
    base: Speaker, tools: Speaker, chat: Speaker
) -> None:
    there = str(tools.folder)
    tokens: dict[str, Any] = {
        "<chat>": {"source": {"kind": "zero"}},
        "<tool>": {"source": str(chat.folder), "force": True},
        "<fresh>": {"source": {"kind": "model_token", "model": str(base.folder), "token": "w2"}},
        "<numbered>": {"source": {"kind": "model_token", "model": there, "token_id": 5}},
        "w0": {"source": {"kind": "zero"}, "force": True},
    }
    asked = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 8}
    vocabulary, tensors, engine = merged(blend(base, tools, chat, base=base, tokenizer=asked))
    made = tensors[EMBEDDING]
    assert len(vocabulary) == 17
    assert made.shape[0] == engine.target.vocabulary.height == 24
    assert close(made[vocabulary["<chat>"]], 0.2 * chat.row("<chat>"))
    assert close(made[vocabulary["<tool>"]], chat.row("<tool>"))
    assert close(made[vocabulary["<fresh>"]], base.row("w2"))
    assert close(made[vocabulary["<numbered>"]], tools.tensors[EMBEDDING][5])
    assert not made[vocabulary["w0"]].any()
    assert close(made[17:], made[:17].double().mean(0).expand(7, -1))


# The same as mergekit.


def agree(recipe_text: str, out: Path) -> None:
    """Compare with mergekit token by token: it numbers what a union adds by a hash table."""
    recipe = Recipe.from_yaml(recipe_text)
    ours, tensors, _ = merged(recipe)
    theirs = run_mergekit(recipe_text, out)
    numbers = AutoTokenizer.from_pretrained(out).get_vocab()
    assert set(numbers) == set(ours)
    assert set(theirs) == set(tensors)
    for name, tensor in tensors.items():
        assert tensor.shape == theirs[name].shape, name
        if name in (EMBEDDING, HEAD):
            for token, row in ours.items():
                assert close(tensor[row], theirs[name][numbers[token]]), (name, token)
            assert close(tensor[len(ours) :], theirs[name][len(ours) :])
        else:
            assert close(tensor, theirs[name]), name
    assert config_of(out)["vocab_size"] == tensors[EMBEDDING].shape[0]


@pytest.mark.parametrize("source", ["base", "union", "tools"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_mergekit_makes_the_same_rows(
    method: str, source: str, base: Speaker, tools: Speaker, chat: Speaker, tmp_path: Path
) -> None:
    listed = (base, tools, chat) if method == "linear" else (tools, chat)
    named = {"tools": str(tools.folder)}.get(source, source)
    agree(blend_text(*listed, method=method, base=base, tokenizer_source=named), tmp_path)


def test_mergekit_makes_the_same_single_tokens_and_padding(
    base: Speaker, tools: Speaker, chat: Speaker, tmp_path: Path
) -> None:
    tokens: dict[str, Any] = {
        "<chat>": {"source": {"kind": "zero"}},
        "<tool>": {"source": str(chat.folder), "force": True},
        "<fresh>": {"source": {"kind": "model_token", "model": str(base.folder), "token": "w2"}},
    }
    asked = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 5}
    text = blend_text(tools, chat, method="task_arithmetic", base=base, tokenizer=asked)
    agree(text, tmp_path)


def test_mergekit_drops_padding_too(base: Speaker, folder: Path, tmp_path: Path) -> None:
    padded = speaker(folder / "padded", rows=16, seed=9)
    text = blend_text(base, method="task_arithmetic", base=padded, tokenizer_source="base")
    agree(text, tmp_path)
    assert notes(Recipe.from_yaml(text), [base, padded]) == [
        "padded: 4 rows that stand for no token left out (tokenizer_source: base)"
    ]


# By number: heights that differ, nothing said about tokens.


@pytest.fixture(scope="module")
def hermes(folder: Path) -> Speaker:
    """What Hermes 2 Pro is to Llama 3: a token renamed, one added, taller, padded."""
    return speaker(folder / "hermes", WORDS[:-1], ("<chat>", "<tool>"), rows=16, seed=10)


def test_a_taller_models_rows_are_cut_and_that_is_said(base: Speaker, hermes: Speaker) -> None:
    recipe = blend(hermes, method="task_arithmetic", base=base)
    _, tensors, engine = merged(recipe)
    for name in (EMBEDDING, HEAD):
        start = base.tensors[name].double()
        assert close(tensors[name], start + 0.5 * (hermes.tensors[name][:12] - start))
    assert notes(recipe, [base, hermes]) == [
        "hermes: has 16 rows in lm_head.weight and model.embed_tokens.weight, but 12 in base: rows "
        "12 … 15 are left out (they stand for 1 token ('<tool>'))",
        "hermes: renames 1 token of base ('<chat>' for 'w8'): their rows are merged by number, "
        "under base's names",
    ]
    assert engine.target.vocabulary.height == 12


def test_a_base_taller_than_a_model_keeps_its_own_rows(base: Speaker, hermes: Speaker) -> None:
    recipe = blend(base, method="task_arithmetic", base=hermes)
    _, tensors, _ = merged(recipe)
    start = hermes.tensors[EMBEDDING]
    assert torch.equal(tensors[EMBEDDING][12:], start[12:])
    expected = start[:12].double() + 0.5 * (base.tensors[EMBEDDING].double() - start[:12])
    assert close(tensors[EMBEDDING][:12], expected)
    assert notes(recipe, [base, hermes]) == [
        "base: has 12 rows in lm_head.weight and model.embed_tokens.weight, of 16 in hermes: rows "
        "12 … 15 are hermes's (they stand for 1 token ('<tool>'))",
        "base: renames 1 token of hermes ('w8' for '<chat>'): their rows are merged by number, "
        "under hermes's names",
    ]


def test_models_without_tokenizers_are_matched_by_number(folder: Path) -> None:
    short, tall = (speaker(folder / f"mute{n}", rows=n, seed=n) for n in (12, 15))
    for one in (short, tall):
        for file in one.folder.glob("tokenizer*"):
            file.unlink()
    engine = MergeEngine(str(short.folder), [str(tall.folder)])
    tensors = dict(engine.tensors(blend(tall, method="task_arithmetic", base=short)))
    assert tensors[EMBEDDING].shape[0] == 12
    (note,) = engine.target.notes
    assert note.endswith(
        "rows 12 … 14 are left out (rows are matched by number, as "
        f"{tall.folder} has no readable tokenizer)"
    )


def test_masks_go_by_the_element_of_the_merged_vocabulary(
    base: Speaker, hermes: Speaker, folder: Path
) -> None:
    """A model that is cut draws the masks of one that never was taller."""
    cut = speaker(folder / "cut" / "hermes", WORDS[:-1], ("<chat>",), seed=10)
    tensors = dict(hermes.tensors)
    for name in (EMBEDDING, HEAD):
        tensors[name] = tensors[name][:12].clone()
    rewrite(cut.folder, tensors)
    settings: dict[str, Any] = {"parameters": {"density": 0.5}, "mask_seed": 5}
    made = [
        merged(blend(one, method="dare_ties", base=base, **settings))[1] for one in (hermes, cut)
    ]
    same_bits(*made)


# Refusals.


def refusal(recipe: Recipe, speakers: Iterable[Speaker]) -> list[str]:
    with pytest.raises((CheckpointError, RecipeError)) as caught:
        merged(recipe)
    said = [str(fault) for fault in caught.value.faults]
    for one in speakers:
        said = [line.replace(str(one.folder), one.folder.name) for line in said]
    return said


def test_tokens_in_other_rows_are_refused_unless_matched_by_token(
    base: Speaker, tools: Speaker
) -> None:
    assert refusal(blend(tools, method="task_arithmetic", base=base), [base, tools]) == [
        "tools: tokenizer: gives 8 tokens other numbers than base ('w0' is 10, not 3; 'w1' is 9, "
        "not 4; 'w2' is 8, not 5; …), so that rows of model.embed_tokens.weight stand for "
        "different tokens; to merge them by token, name the merged model's vocabulary: "
        "tokenizer_source: base (or union, or a model)"
    ]


def test_rows_that_do_not_exist_are_refused_together(base: Speaker, tools: Speaker) -> None:
    there = str(tools.folder)
    tokens = {
        "<a>": {"source": there},
        "<b>": {"source": {"kind": "model_token", "model": there, "token": "w4"}},
        "<c>": {"source": {"kind": "model_token", "model": there, "token_id": 13}},
        "w1": {"force": True},
    }
    recipe = blend(tools, base, base=base, tokenizer={"source": "base", "tokens": tokens})
    assert refusal(recipe, [base, tools]) == [
        "recipe:1: tokenizer.tokens.<a>: tools has no token '<a>' with a row of its own",
        "recipe:1: tokenizer.tokens.<b>: tools has no token 'w4' with a row of its own",
        "recipe:1: tokenizer.tokens.<c>: token_id 13 is refused: tools has rows 0 … 12",
        "recipe:1: tokenizer.tokens.w1: force needs a source: a model, or kind: zero",
    ]


def test_matching_by_token_needs_a_tokenizer(folder: Path, base: Speaker) -> None:
    mute = speaker(folder / "mute", seed=11)
    for file in mute.folder.glob("tokenizer*"):
        file.unlink()
    recipe = blend(base, method="task_arithmetic", base=mute, tokenizer_source="base")
    assert refusal(recipe, [mute]) == [
        "mute: tokenizer: has no tokenizer, by which rows could be matched; leave out "
        "tokenizer_source"
    ]
    other = blend(mute, method="task_arithmetic", base=base, tokenizer_source="base")
    assert notes(other, [mute, base]) == [
        "mute has no tokenizer: its rows are taken to stand for base's tokens"
    ]


def test_an_engine_refuses_recipes_of_another_vocabulary(base: Speaker, tools: Speaker) -> None:
    held = {"method": "task_arithmetic", "base": base}
    union = blend(tools, **held, tokenizer_source="union")
    engine = MergeEngine(str(base.folder), [str(tools.folder)], vocabulary_of=union)
    with pytest.raises(RecipeError, match=r"another vocabulary than the one of 14 rows"):
        dict(engine.tensors(blend(tools, **held, tokenizer_source="base")))


# What is written, alive, and scored.


def test_what_happens_to_tokens_is_said(base: Speaker, tools: Speaker, chat: Speaker) -> None:
    recipe = blend(tools, chat, method="ties", base=base, tokenizer_source="base")
    assert notes(recipe, [base, tools, chat]) == [
        "tools: 2 tokens ('<tool>', '<end>') left out; 1 token ('w4') that it lacks takes the row "
        "of the base, or of models that have it; 8 tokens stand in another row "
        "(tokenizer_source: base)",
        "chat: 2 tokens ('<chat>', '<tool>') left out (tokenizer_source: base)",
    ]
    union = blend(tools, method="ties", base=base, tokenizer_source="union")
    assert notes(union, [base, tools])[0] == (
        "tokenizer_source: union adds 2 tokens ('<tool>', '<end>')"
    )


def test_notes_come_before_the_merge(
    base: Speaker, hermes: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("merged first")

    monkeypatch.setattr(MergeEngine, "tensors", forbidden)
    with (
        pytest.warns(EvomergeWarning, match=r"rows 12 … 15 are left out"),
        pytest.raises(AssertionError, match="merged first"),
    ):
        write_merge([blend(hermes, method="ties", base=base)], tmp_path / "out")


@pytest.mark.parametrize("source", ["union", "tools", None])
def test_a_written_model_is_what_the_live_one_was(
    source: str | None, base: Speaker, tools: Speaker, hermes: Speaker, tmp_path: Path
) -> None:
    told = {"tools": str(tools.folder)}.get(str(source), source)
    other = tools if source else hermes
    recipe = blend(
        other, method="task_arithmetic", base=base, **({"tokenizer_source": told} if told else {})
    )
    with pytest.warns(EvomergeWarning):
        write_merge([recipe], tmp_path / "out")
    with pytest.warns(EvomergeWarning):
        loaded = open_model([recipe], device="cpu")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    same_bits(dict(written.state_dict()), stored(tmp_path / "out"))
    same_bits(dict(written.state_dict()), dict(loaded.load().state_dict()))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = {"union": 14, "tools": 13, "None": 12}[str(source)]
    assert len(tokenizer) == expected == config_of(tmp_path / "out")["vocab_size"]
    assert written.config.vocab_size == loaded.load().config.vocab_size == expected
    text = "w1 <tool> w3 w8"
    assert tokenizer.encode(text) == loaded.tokenizer.encode(text)
    if source:
        tool = tokenizer.convert_tokens_to_ids("<tool>")
        assert tool in tokenizer.encode(text)
        assert tokenizer.added_tokens_decoder[tool].special
    assert not (tmp_path / "out" / "tokenizer_config.json").read_text().count("local_files_only")


def test_a_union_of_unchanged_weights_says_of_old_tokens_what_the_model_said(
    folder: Path, tools: Speaker, tmp_path: Path
) -> None:
    zero = speaker(folder / "copy", tools.tokens[:-2], tools.tokens[-2:], seed=2)
    rewrite(zero.folder, tools.tensors)
    other = speaker(folder / "other", WORDS, ("<a>", "<b>"), seed=12)
    recipe = blend(zero, other, method="task_arithmetic", base=tools, tokenizer_source="union")
    data = recipe.to_mapping()
    data["models"][1]["parameters"]["weight"] = 0.0
    with pytest.warns(EvomergeWarning, match="adds 3 tokens"):
        write_merge([Recipe.from_mapping(data)], tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(tools.folder)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    text = "w1 w3 <tool> w8 w0 <end>"
    folders = (tools.folder, tmp_path / "out")
    numbers = [AutoTokenizer.from_pretrained(path).encode(text) for path in folders]
    assert numbers[0] == numbers[1]
    ids = torch.tensor([numbers[0]])
    with torch.no_grad():
        assert torch.equal(after(ids).logits[..., :13], before(ids).logits)


def test_special_tokens_are_those_of_the_tokenizer(
    base: Speaker, folder: Path, tmp_path: Path
) -> None:
    words = ("w8", *SHUFFLED[:-1])
    moved = speaker(folder / "moved", words, seed=13)
    recipe = blend(moved, method="task_arithmetic", base=base, tokenizer_source=str(moved.folder))
    with pytest.warns(EvomergeWarning, match="stand in another row"):
        write_merge([recipe], tmp_path / "out")
    written = config_of(tmp_path / "out")
    assert (written["bos_token_id"], written["eos_token_id"]) == (1, 2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == 2


def test_a_stage_has_the_vocabulary_that_its_recipe_says(
    base: Speaker, tools: Speaker, chat: Speaker, tmp_path: Path
) -> None:
    first = blend_text(tools, method="task_arithmetic", base=base, tokenizer_source="union")
    later = {
        "merge_method": "task_arithmetic",
        "base_model": "stage",
        "models": [{"model": str(chat.folder), "parameters": {"weight": 0.4}}],
        "tokenizer_source": "union",
    }
    stages = [Recipe.from_yaml(f"name: stage\n{first}"), Recipe.from_mapping(later)]
    through = {**later, "base_model": str(tmp_path / "stage")}
    with pytest.warns(EvomergeWarning):
        write_merge(stages, tmp_path / "memory")
    with pytest.warns(EvomergeWarning):
        write_merge([Recipe.from_yaml(first)], tmp_path / "stage")
    with pytest.warns(EvomergeWarning):
        write_merge([Recipe.from_mapping(through)], tmp_path / "disk")
    same_bits(stored(tmp_path / "memory"), stored(tmp_path / "disk"))
    both = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("memory", "disk")]
    assert both[0].get_vocab() == both[1].get_vocab()
    assert len(both[0]) == 15
    assert config_of(tmp_path / "memory") == config_of(tmp_path / "disk")
    made, row = stored(tmp_path / "memory")[EMBEDDING], both[0].get_vocab()
    start = base.row("w5") + 0.5 * (tools.row("w5") - base.row("w5"))
    assert close(made[row["w5"]], start + 0.4 * (chat.row("w5") - start))
    assert close(made[row["<chat>"]], chat.row("<chat>"))


def test_a_stage_without_a_word_about_tokens_must_fit(
    base: Speaker, tools: Speaker, chat: Speaker, tmp_path: Path
) -> None:
    first = blend_text(chat, method="task_arithmetic", base=tools, tokenizer_source="base")
    later = {
        "merge_method": "task_arithmetic",
        "base_model": "stage",
        "models": [{"model": str(chat.folder), "parameters": {"weight": 0.4}}],
    }
    stages = [Recipe.from_yaml(f"name: stage\n{first}"), Recipe.from_mapping(later)]
    with (
        pytest.warns(EvomergeWarning),
        pytest.raises(CheckpointError, match=r"chat: tokenizer: gives .* other numbers than stage"),
    ):
        write_merge(stages, tmp_path / "out")


def test_nothing_is_said_where_nothing_happens(base: Speaker, folder: Path, tmp_path: Path) -> None:
    other = speaker(folder / "twin", seed=14)
    for number, source in enumerate((None, "base", "union", str(other.folder))):
        said = {"tokenizer_source": source} if source else {}
        recipe = blend(other, method="task_arithmetic", base=base, **said)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_merge([recipe], tmp_path / str(number))
        same_bits(stored(tmp_path / str(number)), stored(tmp_path / "0"))
        same = (other if number == 3 else base).folder / "tokenizer.json"
        assert (tmp_path / str(number) / "tokenizer.json").read_bytes() == same.read_bytes()


# Other kinds of tokenizers and of models.


def trained(text: str) -> Tokenizer:
    """A byte-level BPE tokenizer, trained."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=40, special_tokens=list(SPECIAL))
    made.train_from_iterator([text], trainer)
    return made


def test_trained_subwords_that_the_base_lacks_are_added(folder: Path, tmp_path: Path) -> None:
    made = []
    texts = ("the cat sat on the mat, the cat sat", "a dog ran to a log and a dog ran")
    for number, text in enumerate(texts):
        tokenizer = trained(text)
        words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
        one = speaker(folder / f"bpe{number}", words, seed=20 + number)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(one.folder)
        made.append(one)
    text = blend_text(made[1], method="task_arithmetic", base=made[0], tokenizer_source="union")
    agree(text, tmp_path / "mergekit")
    with pytest.warns(EvomergeWarning, match=r"adds \d+ tokens"):
        write_merge([Recipe.from_yaml(text)], tmp_path / "out")
    both = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert set(both) == {*made[0].tokens, *made[1].tokens}
    assert all(both[token] == row for row, token in enumerate(made[0].tokens))


@pytest.mark.parametrize("taller_base", [False, True])
def test_an_encoders_head_and_its_bias_are_cut_with_the_embeddings(
    taller_base: bool, tmp_path: Path
) -> None:
    from tests.checkpoints.worlds import make, save

    save(make("bert-head", vocab_size=64), tmp_path / "low")
    save(make("bert-head", seed=1, vocab_size=70), tmp_path / "high", tokenizer=False)
    order = ("high", "low") if taller_base else ("low", "high")
    first, second = (tmp_path / name for name in order)
    recipe = Recipe.from_mapping(
        {
            "merge_method": "task_arithmetic",
            "base_model": str(first),
            "models": [{"model": str(second), "parameters": {"weight": 0.5}}],
        }
    )
    with pytest.warns(EvomergeWarning, match=r"cls\.predictions\.bias"):
        write_merge([recipe], tmp_path / "out")
    engine = MergeEngine(str(first), [str(second)])
    live = engine.load_model()
    engine.merge_into(live, recipe)
    written, start, end = (stored(path) for path in (tmp_path / "out", first, second))
    height = 70 if taller_base else 64
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        expected = start[name].clone()
        expected[:64] += 0.5 * (end[name][:64] - start[name][:64])
        assert written[name].shape[0] == height
        assert close(written[name], expected)
        assert torch.equal(dict(live.named_parameters())[name], written[name])
    assert config_of(tmp_path / "out")["vocab_size"] == height


@pytest.mark.parametrize("base_is_stage", [True, False])
def test_stages_of_a_search_have_their_own_vocabularies(
    base_is_stage: bool, base: Speaker, tools: Speaker, chat: Speaker, tmp_path: Path
) -> None:
    """The same candidates again and again: tokens are matched once, nothing else is kept."""
    first = blend_text(tools, method="task_arithmetic", base=base, tokenizer_source="union")
    over, under = ("stage", chat.folder) if base_is_stage else (base.folder, "stage")
    later = {
        "merge_method": "task_arithmetic",
        "base_model": str(over),
        "models": [{"model": str(under), "parameters": {"weight": 0.4}}],
        "tokenizer_source": "union" if base_is_stage else "base",
    }
    candidates = [
        [
            Recipe.from_yaml(f"name: stage\n{first}"),
            Recipe.from_mapping({**later, "parameters": {"lambda": factor}}),
        ]
        for factor in (1.0, 0.5)
    ]
    engine = StagedEngine(
        [str(one.folder) for one in (base, tools, chat)], vocabulary_of=candidates[0]
    )
    target = engine.target_of(candidates[0])
    assert target.vocabulary.height == (15 if base_is_stage else 12)
    assert any("adds 2 tokens" in note for note in target.notes)
    live = target.vocabulary.fitted(engine.held.load_model(), engine.held.like)
    for number in (0, 1, 0):
        engine.merge_into(live, candidates[number])
        out = tmp_path / str(number)
        if not out.exists():
            with pytest.warns(EvomergeWarning):
                write_merge(candidates[number], out)
        same_bits(dict(live.state_dict()), stored(out))
    alone = Recipe.from_yaml(first)
    single = dict(engine.engine_of([alone]).tensors(alone))
    assert close(single[EMBEDDING], merged(alone)[1][EMBEDDING])
