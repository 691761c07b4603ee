"""The engine: one recipe gives one set of bits, however it is asked for, or a clear refusal."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, RecipeError, TrialError
from evomerge.merging import MergedModel, MergeEngine, layout_of, make_layout, write_merge
from evomerge.recipe import Recipe
from evomerge.references import ModelReference
from tests.merging.worlds import (
    METHODS,
    NUM_LAYERS,
    Family,
    bits,
    llama,
    recipe_of,
    rewrite,
    same_bits,
    stored,
    write_family,
)


def engine_of(family: Family, **options: Any) -> MergeEngine:
    return MergeEngine(str(family.base), [str(path) for path in family.tuned], **options)


def live_of(family: Family, dtype: torch.dtype | None = None) -> torch.nn.Module:
    return Checkpoint.open(str(family.base)).load_model(dtype=dtype)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_live_streamed_and_written_are_the_same_bits(
    half_family: Family, family: Family, tmp_path: Path, method: str, dtype: str | None
) -> None:
    models = half_family if dtype in (None, "bfloat16") else family
    recipe = recipe_of(models, method, **({"dtype": dtype} if dtype else {}))
    engine = engine_of(models)
    kind = engine.dtype(recipe)
    given = dict(engine.tensors(recipe))
    assert {tensor.dtype for tensor in given.values()} == {kind}
    live = live_of(models, kind)
    engine.merge_into(live, recipe)
    same_bits(state(live), given)
    same_bits(dict(engine_of(models, resident=False).tensors(recipe)), given)
    write_merge([recipe], tmp_path / "out")
    same_bits(stored(tmp_path / "out"), given)
    same_bits(state(Checkpoint.open(str(tmp_path / "out")).load_model()), given)


def test_a_candidate_leaves_no_trace_in_the_next(family: Family) -> None:
    engine, live = engine_of(family), live_of(family)
    first, second = recipe_of(family, "dare_ties"), recipe_of(family, "ties", (0.1, 0.9, 0.2))
    engine.merge_into(live, first)
    before = state(live)
    engine.merge_into(live, second)
    engine.merge_into(live, first)
    same_bits(state(live), before)


def test_no_weight_gives_the_base_and_one_whole_model_that_model(family: Family) -> None:
    engine, live = engine_of(family), live_of(family)
    for method in sorted(METHODS):
        if METHODS[method].needs_base:
            engine.merge_into(live, recipe_of(family, method, (0.0, 0.0, 0.0)))
            same_bits(state(live), stored(family.base))
        engine.merge_into(live, recipe_of(family, method, (0.0, 1.0, 0.0), density=1.0))
        same_bits(state(live), stored(family.tuned[1]))


def test_a_wider_live_model_takes_the_same_values(half_family: Family) -> None:
    engine, recipe = engine_of(half_family), recipe_of(half_family, "ties")
    live = live_of(half_family, torch.float32)
    engine.merge_into(live, recipe)
    for name, tensor in engine.tensors(recipe):
        assert torch.equal(live.state_dict()[name], tensor.float())


def test_some_of_the_models_suffice(family: Family) -> None:
    pair = Family(family.base, family.tuned[1:2])
    recipe = recipe_of(pair, "dare_ties")
    given = dict(engine_of(family).tensors(recipe))
    same_bits(dict(engine_of(pair).tensors(recipe)), given)


def test_masks_do_not_depend_on_where_models_lie(family: Family, tmp_path: Path) -> None:
    moved = write_family(tmp_path / "elsewhere")
    one = dict(engine_of(family).tensors(recipe_of(family, "della")))
    same_bits(dict(engine_of(moved).tensors(recipe_of(moved, "della"))), one)


def test_another_mask_seed_gives_other_masks(family: Family) -> None:
    engine = engine_of(family)
    one, other = (
        dict(engine.tensors(recipe_of(family, "dare_ties", mask_seed=seed))) for seed in (0, 1)
    )
    assert all(not torch.equal(one[name], other[name]) for name in one)


def test_it_holds_each_model_once(family: Family, half_family: Family) -> None:
    size = sum(tensor.numel() * 4 for tensor in stored(family.base).values())
    assert engine_of(family).nbytes == 4 * size
    assert engine_of(half_family).nbytes == 2 * size
    assert engine_of(family, resident=False).nbytes == 4 * size
    again = [str(family.base), str(family.tuned[0]), ModelReference(str(family.tuned[0]))]
    assert MergeEngine(str(family.base), again).nbytes == 2 * size
    with pytest.raises(ValueError, match="at least one model"):
        MergeEngine(None, [])


def test_what_it_gives_is_not_what_it_holds(family: Family) -> None:
    engine = engine_of(family)
    recipe = recipe_of(family, "task_arithmetic", (0.0, 0.0, 0.0))
    for _, tensor in engine.tensors(recipe):
        tensor.zero_()
    same_bits(dict(engine.tensors(recipe)), stored(family.base))


# Tied weights, buffers, integer tensors.


def test_tied_weights_are_merged_once(tmp_path: Path) -> None:
    tied = write_family(tmp_path, tie_word_embeddings=True)
    engine, live = engine_of(tied), live_of(tied)
    recipe = recipe_of(tied, "dare_ties")
    names = [name for name, _ in engine.tensors(recipe)]
    assert "lm_head.weight" not in names
    engine.merge_into(live, recipe)
    embedding = live.get_parameter("model.embed_tokens.weight")
    assert live.get_parameter("lm_head.weight") is embedding
    assert torch.equal(embedding, dict(engine.tensors(recipe))["model.embed_tokens.weight"])
    write_merge([recipe], tmp_path / "out")
    same_bits(stored(tmp_path / "out"), dict(engine.tensors(recipe)))


def test_two_tensors_for_one_live_parameter_are_refused(family: Family, tmp_path: Path) -> None:
    tied = write_family(tmp_path, tie_word_embeddings=True)
    live = live_of(tied)
    before = state(live)
    with pytest.raises(RecipeError, match=r"embed_tokens\.weight and lm_head\.weight are one"):
        engine_of(family).merge_into(live, recipe_of(family, "ties"))
    same_bits(state(live), before)


def test_buffers_stay_as_they_are(family: Family) -> None:
    live = live_of(family)
    before = {name: tensor.clone() for name, tensor in live.named_buffers()}
    assert before
    engine_of(family).merge_into(live, recipe_of(family, "ties"))
    same_bits(dict(live.named_buffers()), before)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_integer_tensors_are_the_bases(own_family: Family, method: str) -> None:
    for number, folder in enumerate(own_family.all):
        rewrite(folder, stored(folder) | {"steps": torch.tensor([number, 7])})
    recipe = recipe_of(own_family, method)
    for resident in (True, False):
        made = dict(engine_of(own_family, resident=resident).tensors(recipe))
        first = 0 if method == "task_arithmetic" else 1
        assert made["steps"].tolist() == [first, 7]


def test_integers_of_a_linear_merge_with_its_base_are_the_bases(own_family: Family) -> None:
    for number, folder in enumerate(own_family.all):
        rewrite(folder, stored(folder) | {"steps": torch.tensor([number, 7])})
    recipe = recipe_of(
        own_family, "linear", base_model=str(own_family.base), parameters={"weight": 1.0}
    )
    assert dict(engine_of(own_family).tensors(recipe))["steps"].tolist() == [0, 7]


# Refusals: everything that is wrong, before anything is written.


def refused(family: Family, recipe: Recipe, live: torch.nn.Module, why: str) -> str:
    engine, before = engine_of(family), state(live)
    with pytest.raises(RecipeError, match=why) as caught:
        engine.merge_into(live, recipe)
    same_bits(state(live), before)
    return str(caught.value)


def test_an_unknown_model_is_refused(family: Family, half_family: Family) -> None:
    text = refused(
        family, recipe_of(half_family, "ties"), live_of(family), "not among the models held"
    )
    assert str(half_family.base) in text
    assert str(family.base) in text


def test_missing_and_misshapen_tensors_are_named_together(own_family: Family) -> None:
    code, maths, prose = own_family.tuned
    tensors = stored(code)
    rewrite(code, {n: t for n, t in tensors.items() if n != "model.norm.weight"})
    rewrite(maths, stored(maths) | {"lm_head.weight": torch.zeros(3, 16)})
    rewrite(prose, stored(prose) | {"model.norm.weight": torch.ones(16, dtype=torch.int64)})
    text = refused(own_family, recipe_of(own_family, "ties"), live_of(own_family), "has no model")
    assert f"model.norm.weight: {code} has no model.norm.weight" in text
    assert f"lm_head.weight: shapes differ: {own_family.base} [30, 16]" in text
    assert f"{maths} [3, 16]" in text
    assert "floating in some models only" in text
    assert f"{prose} torch.int64" in text


def test_a_live_model_that_lacks_or_keeps_tensors_is_refused(family: Family) -> None:
    recipe = recipe_of(family, "ties")
    smaller = llama(num_hidden_layers=NUM_LAYERS - 1)
    refused(family, recipe, smaller, r"has no tensor model\.layers\.3\.")
    larger = llama(num_hidden_layers=NUM_LAYERS + 1)
    refused(family, recipe, larger, r"model\.layers\.4\.\S+ of the live Llama\S+ would stay")
    refused(family, recipe, llama(vocab_size=31), r"lm_head\.weight is \[30, 16\], but \[31, 16\]")


def test_a_narrower_live_model_is_refused(family: Family) -> None:
    recipe = recipe_of(family, "ties")
    for narrow in (torch.bfloat16, torch.float16):
        refused(family, recipe, live_of(family, narrow), "does not hold torch.float32")
    half = recipe_of(family, "ties", dtype="bfloat16")
    refused(family, half, live_of(family, torch.float16), "does not hold torch.bfloat16")


def test_a_live_model_without_memory_is_refused(family: Family) -> None:
    with torch.device("meta"):
        live = llama()
    with pytest.raises(RecipeError, match="meta device"):
        engine_of(family).merge_into(live, recipe_of(family, "ties"))


def test_a_replaced_parameter_is_written_to(family: Family) -> None:
    engine, live, recipe = engine_of(family), live_of(family), recipe_of(family, "ties")
    engine.merge_into(live, recipe)
    live.lm_head = torch.nn.Linear(16, 30, bias=False)
    engine.merge_into(live, recipe)
    same_bits(state(live), dict(engine.tensors(recipe)))


def test_float64_is_refused(family: Family) -> None:
    recipe = recipe_of(family, "ties", dtype="float64")
    with pytest.raises(RecipeError, match="float64 is not supported"):
        next(engine_of(family).tensors(recipe))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("resident", [True, False])
def test_a_damaged_checkpoint_is_refused_by_name(
    own_family: Family, bad: float, resident: bool
) -> None:
    tensors = stored(own_family.tuned[1])
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = bad
    rewrite(own_family.tuned[1], tensors)
    with pytest.raises(CheckpointError, match=r"maths: model\.layers\.1\.mlp\.up_proj\.weight"):
        dict(engine_of(own_family, resident=resident).tensors(recipe_of(own_family, "ties")))


def test_an_overflow_fails_the_trial_by_name_and_the_next_one_is_whole(family: Family) -> None:
    engine, live = engine_of(family), live_of(family)
    steep = [{"filter": "up_proj", "value": 1e9}, {"value": 0.5}]
    recipe = recipe_of(family, "task_arithmetic", (steep, 0.1, 0.1), dtype="float16")
    with pytest.raises(TrialError, match=r"^model\.layers\.0\.mlp\.up_proj\.weight: .*float16"):
        engine.merge_into(live, recipe)
    sound = recipe_of(family, "task_arithmetic")
    engine.merge_into(live, sound)
    same_bits(state(live), dict(engine.tensors(sound)))


# Layers.


def test_a_llamas_layers(family: Family) -> None:
    layout = layout_of(Checkpoint.open(str(family.base)))
    assert layout.num_layers == NUM_LAYERS
    assert layout.tensors["model.layers.2.mlp.up_proj.weight"] == 2
    assert layout.last == {"model.norm.weight", "lm_head.weight"}
    assert layout.tensors["model.embed_tokens.weight"] is None


def test_layers_of_other_kinds_of_models() -> None:
    names = {
        "transformer.wte.weight": "first",
        "transformer.h.1.mlp.c_fc.weight": 1,
        "transformer.ln_f.weight": "last",
        "bert.embeddings.LayerNorm.weight": "first",
        "bert.encoder.layer.0.output.dense.weight": 0,
        "model.layers.1.mlp.experts.3.w1.weight": 1,
        "model.layers.2.mtp.weight": "last",
        "gpt_neox.embed_in.weight": "first",
        "embed_out.weight": "last",
        "cls.predictions.decoder.weight": "last",
        "model.layers.01.weight": "last",
    }
    layout = make_layout(names, 2)
    for name, where in names.items():
        assert layout.tensors[name] == (where if isinstance(where, int) else None), name
        assert (name in layout.last) == (where == "last"), name


def test_a_gpt2_is_merged_in_place(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20, n_positions=16)
    family = Family(tmp_path / "base", (tmp_path / "code", tmp_path / "maths"))
    for folder in family.all:
        GPT2LMHeadModel(config).save_pretrained(folder)
    recipe = recipe_of(family, "dare_ties")
    engine, live = engine_of(family), live_of(family)
    engine.merge_into(live, recipe)
    for name, tensor in engine.tensors(recipe):
        assert torch.equal(bits(live.state_dict()[name]), bits(tensor))


def test_a_merged_model_is_a_model(family: Family) -> None:
    engine = engine_of(family)
    made = dict(engine.tensors(recipe_of(family, "ties", out_dtype="bfloat16")))
    stage = MergedModel(ModelReference("stage"), engine.like, made)
    later = Recipe.from_yaml(
        f"{{merge_method: task_arithmetic, base_model: stage, models: "
        f"[{{model: {family.tuned[0]}, parameters: {{weight: 0.5}}}}]}}"
    )
    again = MergeEngine(stage, [str(family.tuned[0])])
    assert again.dtype(later) == torch.bfloat16
    code = stored(family.tuned[0])
    for name, tensor in again.tensors(later):
        start = made[name].float()
        assert torch.equal(tensor, (start + 0.5 * (code[name] - start)).bfloat16())


def test_what_is_read_as_it_is_needed_is_what_is_held(half_family: Family) -> None:
    """One merge reads ahead in a thread; several at once, or in another order, get the same."""
    held, read = engine_of(half_family), engine_of(half_family, resident=False)
    recipes = [recipe_of(half_family, method) for method in ("ties", "dare_linear", "linear")]
    expected = [dict(held.tensors(recipe)) for recipe in recipes]
    for recipe, wanted in zip(recipes, expected, strict=True):
        same_bits(dict(read.tensors(recipe)), wanted)
    together = zip(*(read.tensors(recipe) for recipe in recipes), strict=True)
    found = [dict(part) for part in zip(*together, strict=True)]
    for mine, wanted in zip(found, expected, strict=True):
        same_bits(mine, wanted)


def test_reading_ahead_ends_with_what_it_was_for(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With room for the inputs of one merge alone, nothing is prepared beyond the first.
    monkeypatch.setattr("evomerge.merging.engine._AHEAD", 1)
    threads = torch.get_num_threads()
    tensors = engine_of(family, resident=False).tensors(recipe_of(family, "ties"))
    next(tensors)
    assert readers()
    tensors.close()
    assert readers() == []
    assert torch.get_num_threads() == threads


def readers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("ahead")]


def test_what_is_not_finite_is_refused_when_its_turn_comes(own_family: Family) -> None:
    folder, name = own_family.tuned[1], "model.layers.2.mlp.up_proj.weight"
    tensors = stored(folder)
    tensors[name][3, 4] = float("nan")
    rewrite(folder, tensors)
    engine, made = engine_of(own_family, resident=False), []
    with pytest.raises(CheckpointError, match=rf"{name}: 1 of 384 elements are not finite \(1 NaN"):
        made.extend(name for name, _ in engine.tensors(recipe_of(own_family, "linear")))
    assert name not in made
