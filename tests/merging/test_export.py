"""Merged models on disk: one stage or several, whole or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, RecipeError, TrialError
from evomerge.merging import MergeEngine, staged_engine, write_merge
from evomerge.recipe import Recipe, load_recipes
from tests.merging.worlds import (
    NUM_LAYERS,
    Family,
    config_of,
    recipe_of,
    recipe_text,
    rewrite,
    run_mergekit,
    same_bits,
    stored,
    write_family,
)


@pytest.fixture(autouse=True)
def _only_expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_written_model_is_complete(family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(family, "dare_ties", out_dtype="bfloat16", mask_seed=4)
    summary = write_merge([recipe], tmp_path / "deep" / "out", max_shard_bytes=5000)
    out = tmp_path / "deep" / "out"
    assert entries(tmp_path / "deep") == {"out"}
    tensors = stored(out)
    assert summary.folder == out
    assert summary.tensors == len(tensors) == len(stored(family.base))
    assert summary.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert summary.nbytes == 2 * summary.parameters
    assert set(summary.weight_files) == {path.name for path in out.glob("*.safetensors")}
    assert len(summary.weight_files) > 1
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    same_bits(dict(model.state_dict()), tensors)
    assert AutoTokenizer.from_pretrained(out).vocab_size == 30
    assert (out / "generation_config.json").is_file()


def test_the_card_tells_models_method_and_recipe(family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(family, "della")
    write_merge([recipe], tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert "merge" in front["tags"]
    assert "base_model" not in front, "local folders are no names of the hub"
    for folder in family.all:
        fingerprint = Checkpoint.open(str(folder)).fingerprint()
        assert f"`{folder}`, SHA-256 of its weights `{fingerprint}`" in card
    assert "2406.11617" in card
    assert f"torch {torch.__version__}" in card
    assert recipe.to_yaml().rstrip() in card


def test_the_written_recipe_makes_the_same_model_again(family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(family, "dare_ties", ([0.1, 0.7], 0.3, 0.2), mask_seed=9)
    write_merge([recipe], tmp_path / "one")
    again = load_recipes(tmp_path / "one" / "mergekit_config.yml")
    assert again == (recipe,)
    write_merge(again, tmp_path / "two")
    same_bits(stored(tmp_path / "two"), stored(tmp_path / "one"))


@pytest.mark.parametrize("method", ["linear", "ties", "della"])
def test_mergekit_runs_the_written_recipe(family: Family, tmp_path: Path, method: str) -> None:
    write_merge([recipe_of(family, method, mask_seed=3)], tmp_path / "out")
    theirs = run_mergekit((tmp_path / "out" / "mergekit_config.yml").read_text(), tmp_path / "mk")
    ours = stored(tmp_path / "out")
    assert set(ours) == set(theirs)
    if method != "della":
        assert all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in ours)


# Several stages.


def stages(family: Family, tmp_path: Path, **first: Any) -> tuple[str, str]:
    """Two recipes; the second one names the first one's result ``stage``."""
    one = recipe_text(Family(family.base, family.tuned[:2]), "dare_ties", **first)
    two = yaml.safe_dump(
        {
            "merge_method": "ties",
            "base_model": "stage",
            "models": [
                {"model": str(family.tuned[2]), "parameters": {"weight": 1, "density": 0.5}}
            ],
            "parameters": {"lambda": 0.5},
        }
    )
    return one, two


@pytest.mark.parametrize("first", [{}, {"out_dtype": "bfloat16"}, {"dtype": "float16"}])
def test_stages_in_memory_are_the_same_stages_through_the_disk(
    family: Family, tmp_path: Path, first: dict[str, Any]
) -> None:
    one, two = stages(family, tmp_path, **first)
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: stage\n{one}---\n{two}")
    recipes = load_recipes(file)
    write_merge(recipes, tmp_path / "memory")
    write_merge([Recipe.from_yaml(one)], tmp_path / "stage")
    through = two.replace("base_model: stage", f"base_model: {tmp_path / 'stage'}")
    write_merge([Recipe.from_yaml(through)], tmp_path / "disk")
    same_bits(stored(tmp_path / "memory"), stored(tmp_path / "disk"))
    assert config_of(tmp_path / "memory") == config_of(tmp_path / "disk")
    assert not (tmp_path / "memory" / "stage").exists()
    written = load_recipes(tmp_path / "memory" / "mergekit_config.yml")
    assert written == recipes
    card = (tmp_path / "memory" / "README.md").read_text()
    assert "name: stage" in card
    assert "`dare_ties`" in card
    assert "`ties`" in card


def test_a_stage_that_stacks_layers_is_one_like_any_other(family: Family, tmp_path: Path) -> None:
    _, code, maths, _ = map(str, family.all)
    taller = yaml.safe_dump(
        {
            "slices": [
                {"sources": [{"model": code, "layer_range": [0, 3]}]},
                {"sources": [{"model": maths, "layer_range": [1, 4]}]},
            ],
            "merge_method": "linear",
            "parameters": {"weight": 1.0},
        }
    )
    stack = Recipe.from_yaml(f"name: tall\n{taller}")
    blend = "{{merge_method: linear, models: [{{model: {}, parameters: {{weight: [1, 2]}}}}]}}"
    later = Recipe.from_yaml(blend.format("tall") + "\n")
    write_merge([stack, later], tmp_path / "memory")
    write_merge([Recipe.from_yaml(taller)], tmp_path / "tall")
    write_merge([Recipe.from_yaml(blend.format(tmp_path / "tall"))], tmp_path / "disk")
    same_bits(stored(tmp_path / "memory"), stored(tmp_path / "disk"))
    for name in ("memory", "tall", "disk"):
        assert config_of(tmp_path / name)["num_hidden_layers"] == 6
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        same_bits(dict(model.state_dict()), stored(tmp_path / name))
    expected = stored(Path(maths))["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(stored(tmp_path / "tall")["model.layers.3.mlp.up_proj.weight"], expected)


def test_layers_that_move_take_their_settings_along(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"]
    config = Qwen3Config(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=kinds,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    recipe = Recipe.from_yaml(
        yaml.safe_dump(
            {
                "slices": [
                    {"sources": [{"model": str(tmp_path / "model"), "layer_range": [1, 2]}]},
                    {"sources": [{"model": str(tmp_path / "model"), "layer_range": [0, 2]}]},
                ],
                "merge_method": "linear",
                "parameters": {"weight": 1.0},
            }
        )
    )
    write_merge([recipe], tmp_path / "out")
    written = config_of(tmp_path / "out")
    assert written["layer_types"] == [kinds[1], *kinds]
    assert written["num_hidden_layers"] == 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    same_bits(
        {n: t for n, t in model.state_dict().items() if n in stored(tmp_path / "out")},
        stored(tmp_path / "out"),
    )


# Refusals. Nothing stays behind.


def nothing_written(folder: Path, recipes: list[Recipe], error: type[Exception], why: str) -> None:
    before = entries(folder)
    with pytest.raises(error, match=why):
        write_merge(recipes, folder / "made" / "out")
    assert entries(folder) == before


def test_a_taken_folder_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    recipe = Recipe.from_yaml(
        "{merge_method: linear, models: [{model: nowhere, parameters: {weight: 1}}]}"
    )
    with pytest.raises(CheckpointError, match="not overwritten"):
        write_merge([recipe], tmp_path / "out")
    assert entries(tmp_path / "out") == {"mine.txt"}


def test_an_empty_folder_is_taken(family: Family, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_merge([recipe_of(family, "linear")], tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_failing_merge_leaves_nothing(own_family: Family, tmp_path: Path) -> None:
    steep = recipe_of(own_family, "task_arithmetic", (1e9, 0.1, 0.1), dtype="float16")
    nothing_written(tmp_path, [steep], TrialError, "infinity")
    tensors = stored(own_family.tuned[0])
    tensors["lm_head.weight"][0, 0] = float("nan")
    rewrite(own_family.tuned[0], tensors)
    broken = recipe_of(own_family, "ties")
    nothing_written(tmp_path, [broken], CheckpointError, r"code: lm_head\.weight")


def test_models_that_do_not_fit_are_refused_together(family: Family, tmp_path: Path) -> None:
    wide = write_family(tmp_path / "wide", intermediate_size=32)
    mixed = Family(family.base, (family.tuned[0], wide.tuned[1], Path("nowhere/at-all")))
    nothing_written(tmp_path, [recipe_of(mixed, "ties")], CheckpointError, "nowhere/at-all")
    fitting = Family(family.base, mixed.tuned[:2])
    with pytest.raises(CheckpointError) as caught:
        write_merge([recipe_of(fitting, "ties")], tmp_path / "out")
    assert "mlp.up_proj.weight: has shape [32, 16], but [24, 16]" in str(caught.value)


def test_a_fault_of_the_last_stage_costs_no_merge(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stages(family, tmp_path)
    first = Recipe.from_yaml(f"name: stage\n{one}")
    wide = write_family(tmp_path / "wide", intermediate_size=32)
    misfit = Recipe.from_yaml(two.replace(str(family.tuned[2]), str(wide.tuned[2])))
    adapter = Recipe.from_yaml(two.replace("base_model: stage", "base_model: stage+lora"))

    def forbidden(*_: object) -> None:
        raise AssertionError("merged before everything was checked")

    monkeypatch.setattr(MergeEngine, "tensors", forbidden)
    nothing_written(tmp_path, [first, misfit], CheckpointError, r"prose: .*\[32, 16\]")
    nothing_written(tmp_path, [first, adapter], RecipeError, "no revision and no adapter")
    nothing_written(tmp_path, [Recipe.from_yaml(one), first], RecipeError, "without a name")
    nothing_written(tmp_path, [], RecipeError, "at least one")


def test_what_is_not_supported_is_said(family: Family, tmp_path: Path) -> None:
    for key, value, why in (
        ("dtype", "float64", "float64"),
        ("chat_template", "chitchat", "no template's text and no name; allowed: auto, alpaca"),
    ):
        recipe = recipe_of(family, "ties", **{key: value})
        nothing_written(tmp_path, [recipe], RecipeError, why)


def test_a_chat_template_is_written(family: Family, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_merge([recipe_of(family, "linear", chat_template=template)], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template


def test_a_tokenizer_can_be_another_models(own_family: Family, tmp_path: Path) -> None:
    code = own_family.tuned[0]
    tokenizer = AutoTokenizer.from_pretrained(code)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(code)
    for source, template in ((str(code), "{{ messages }}"), ("base", None)):
        out = tmp_path / f"out-{template is None}"
        write_merge([recipe_of(own_family, "ties", tokenizer_source=source)], out)
        assert AutoTokenizer.from_pretrained(out).chat_template == template


def test_an_engine_of_stages_merges_live_what_is_written(family: Family, tmp_path: Path) -> None:
    one, two = stages(family, tmp_path)
    recipes = [Recipe.from_yaml(f"name: stage\n{one}"), Recipe.from_yaml(two)]
    opened: dict[Any, Checkpoint] = {}
    engine = staged_engine(recipes, opened)
    assert len(opened) == 4
    assert engine.layout.num_layers == NUM_LAYERS
    live = engine.like.load_model()
    engine.merge_into(live, recipes[-1])
    write_merge(recipes, tmp_path / "out")
    same_bits(dict(live.state_dict()), stored(tmp_path / "out"))
