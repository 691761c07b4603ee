"""Genomes and recipes: what a genome decodes to, and which genome stands for a blend."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.recipe import Recipe, TensorMerge, read_recipes, resolve, write_recipes
from evomerge.space import Range, SearchSpace, Stage
from evomerge.space.methods import METHODS

from .conftest import Load
from .spaces import genomes, layout, spaces, staged_spaces


def resolved(space: SearchSpace, genome: dict[str, float], num_layers: int) -> dict[str, Any]:
    recipe = Recipe.from_mapping(space.recipe_mapping(genome, num_layers))
    again = Recipe.from_yaml(recipe.to_yaml())  # through a file nothing is lost
    merges = resolve(again, layout(num_layers))
    assert merges == resolve(recipe, layout(num_layers))
    return {merge.name: merge for merge in merges}


def weights_of(merge: TensorMerge) -> dict[str, float]:
    return {one.label: one.weight for one in merge.contributions}


def two(load: Load, small: str, genome: str, method: str = "task_arithmetic") -> SearchSpace:
    models = small.replace("models/math, models/code, models/chat", "models/math, models/code")
    return load(models.replace("density: [0.1, 1.0]", genome).replace("dare_ties", method))


def test_smooth_groups_are_a_gradient(load: Load, small: str, folder: Any) -> None:
    space = two(load, small, "layers: {groups: 3, smooth: true}\n  weight: [0, 1]")
    genome = {f"weight/math/{i}": i / 2 for i in range(3)} | {
        f"weight/code/{i}": 0.25 for i in range(3)
    }
    assert space.recipe_mapping(genome, 5) == {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "models/base"),
        "models": [
            {"model": str(folder / "models/math"), "parameters": {"weight": [0.0, 0.5, 1.0]}},
            {"model": str(folder / "models/code"), "parameters": {"weight": 0.25}},
        ],
    }
    merges = resolved(space, genome, 5)
    found = [weights_of(merges[f"model.layers.{i}.mlp.up_proj.weight"])["math"] for i in range(5)]
    assert found == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert weights_of(merges["model.embed_tokens.weight"])["math"] == 0.0
    assert weights_of(merges["lm_head.weight"])["math"] == 0.0


def test_groups_are_slices(load: Load, small: str, folder: Any) -> None:
    text = "layers: {groups: 2}\n  weight: {math: [0, 1], code: 0.5}\n  density: 0.5\n"
    space = two(
        load, small + "mask_seed: 5\ndtype: float16\ntokenizer_source: union\n", text, "ties"
    )
    space = space.model_copy(update={"merge_method": "dare_ties"})
    genome = {"weight/math/0": 0.1, "weight/math/1": 0.9}
    mapping = space.recipe_mapping(genome, 5)
    base, math_, code = (str(folder / "models" / name) for name in ("base", "math", "code"))
    assert mapping["slices"][0] == {
        "sources": [
            {
                "model": math_,
                "layer_range": [0, 2],
                "parameters": {"weight": 0.1, "density": 0.5},
            },
            {"model": code, "layer_range": [0, 2], "parameters": {"weight": 0.5, "density": 0.5}},
            {"model": base, "layer_range": [0, 2]},
        ]
    }
    assert mapping["slices"][1]["sources"][0]["layer_range"] == [2, 5]
    assert (mapping["mask_seed"], mapping["dtype"], mapping["out_dtype"]) == (
        5,
        "float32",
        "float16",
    )
    assert mapping["tokenizer_source"] == "union"
    merges = resolved(space, genome, 5)
    found = [weights_of(merges[f"model.layers.{i}.mlp.up_proj.weight"])["math"] for i in range(5)]
    assert found == [0.1, 0.1, 0.9, 0.9, 0.9]
    assert weights_of(merges["model.embed_tokens.weight"])["math"] == 0.1
    assert weights_of(merges["lm_head.weight"])["math"] == 0.9


def test_filters_lambda_and_switches(load: Load, small: str) -> None:
    genome = "filters: [mlp]\n  lambda: [0.5, 2]\n  normalize: true"
    space = two(load, small, genome)
    point = {
        "weight/math/mlp": 0.1,
        "weight/math/rest": 0.2,
        "weight/code/mlp": 0.3,
        "weight/code/rest": 0.3,
        "lambda": 1.5,
    }
    mapping = space.recipe_mapping(point, 2)
    assert mapping["parameters"] == {"normalize": True, "lambda": 1.5}
    assert mapping["models"][0]["parameters"] == {
        "weight": [{"filter": "mlp", "value": 0.1}, {"value": 0.2}]
    }
    assert mapping["models"][1]["parameters"] == {"weight": 0.3}
    merges = resolved(space, point, 2)
    assert weights_of(merges["model.layers.1.mlp.up_proj.weight"])["math"] == 0.1
    assert weights_of(merges["model.norm.weight"])["math"] == 0.2
    assert all(merge.lambda_ == 1.5 and merge.normalize for merge in merges.values())


def test_linear_blends_its_models_only(load: Load, small: str) -> None:
    space = two(load, small, "weight: [0, 1]", "linear")
    point = {"weight/math": 0.25, "weight/code": 0.75}
    assert "base_model" not in space.recipe_mapping(point, 2)
    assert weights_of(resolved(space, point, 2)["lm_head.weight"]) == {"math": 0.25, "code": 0.75}
    assert weights_of(
        resolved(space, {"weight/math": 0, "weight/code": 0}, 2)["lm_head.weight"]
    ) == {
        "math": 1.0,
        "code": 1.0,
    }
    listed = small.replace("models/math, models/code, models/chat", "models/base, models/code")
    with_base = two(load, listed, "layers: {groups: 2}", "linear")
    genome = {gene.name: 0.5 for gene in with_base.genes(2)}
    mapping = with_base.recipe_mapping(genome, 2)
    assert len(mapping["slices"][0]["sources"]) == 2
    assert weights_of(resolved(with_base, genome, 2)["lm_head.weight"]) == {
        "base": 0.5,
        "code": 0.5,
    }


def test_epsilon_is_cut_down_to_what_density_allows(load: Load, small: str) -> None:
    space = two(load, small, "density: [0.1, 1.0]\n  epsilon: 0.2", "della")
    values = {"weight/math": 1.0, "weight/code": 1.0}

    def epsilons(**densities: float) -> list[float]:
        genome = values | {f"density/{label}": value for label, value in densities.items()}
        models = space.recipe_mapping(genome, 2)["models"]
        return [model["parameters"]["epsilon"] for model in models]

    assert epsilons(math=0.5, code=0.1) == [0.2, pytest.approx(0.1, abs=1e-8)]
    assert epsilons(math=1.0, code=0.9) == [0.0, pytest.approx(0.1, abs=1e-8)]
    default = two(load, small, "density: [0.1, 1.0]", "della_linear")
    genome = values | {"density/math": 0.5, "density/code": 0.9}
    found = [m["parameters"]["epsilon"] for m in default.recipe_mapping(genome, 2)["models"]]
    assert found == [0.15, pytest.approx(0.1, abs=1e-8)]


def test_a_wrong_genome_is_refused_with_every_reason(load: Load, small: str) -> None:
    space = two(load, small, "weight: [0, 1]\n  lambda: [0, 1]")
    with pytest.raises(SpaceError) as raised:
        space.recipe_mapping({"weight/math": 1.5, "lambda": math.nan, "other": 1.0}, 2)
    assert [str(fault) for fault in raised.value.faults] == [
        "genome: weight/math: 1.5 is refused: must be in [0.0, 1.0]",
        "genome: weight/code: is missing; a value in [0.0, 1.0] is needed",
        "genome: lambda: nan is refused: must be in [0.0, 1.0]",
        "genome: other: is not a gene of this space",
    ]


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), spaces(), st.integers(4, 7))
def test_any_genome_decodes_to_a_legal_recipe(
    data: st.DataObject, space: SearchSpace, num_layers: int
) -> None:
    genome = data.draw(genomes(space, num_layers))
    merges = resolved(space, genome, num_layers)
    assert set(merges) == set(layout(num_layers).tensors)
    for merge in merges.values():
        legal(merge, space)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), staged_spaces(), st.integers(4, 7))
def test_any_genome_of_several_stages_decodes_to_legal_recipes(
    data: st.DataObject, space: SearchSpace, num_layers: int
) -> None:
    genome = data.draw(genomes(space, num_layers))
    mappings = space.recipe_mappings(genome, num_layers)
    recipes = [Recipe.from_mapping(mapping) for mapping in mappings]
    assert read_recipes(write_recipes(recipes)) == tuple(recipes)
    assert [recipe.name for recipe in recipes] == [*(one.name for one in space.stages), None]
    for recipe, (_, stage) in zip(recipes, space.every_stage, strict=True):
        for merge in resolve(recipe, layout(num_layers)):
            legal(merge, stage)


def legal(merge: TensorMerge, stage: Stage) -> None:
    """What the merging room may rely on."""
    assert merge.method in stage.methods
    method = METHODS[merge.method]
    assert merge.variant == (stage.variant if method.paper else "mergekit")
    assert math.isfinite(merge.lambda_)
    assert math.isfinite(merge.t)
    assert 0 < merge.select_topk <= 1
    assert (merge.base is not None) == (method.takes_base and stage.base_model is not None)
    assert set(weights_of(merge)) == set(stage.labels.values())
    for one in merge.contributions:
        assert math.isfinite(one.weight)
        assert 0 < one.density <= 1
        assert 0 < one.trim <= 1
        assert 0 <= one.gamma < 1
        assert one.epsilon >= 0
        if method.widens and one.density < 1:
            assert one.density - one.epsilon > 0
            assert one.density + one.epsilon < 1
        gamma = stage.genome.gamma
        if gamma is not None and gamma.share and "gamma" in method.reads:
            assert one.gamma + one.density <= 1 + 1e-9


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), spaces(), st.integers(4, 7))
def test_decoding_an_encoded_blend_gives_its_weights(
    data: st.DataObject, space: SearchSpace, num_layers: int
) -> None:
    known = list(space.labels.values())
    weights = {label: data.draw(st.sampled_from([0.0, 1.0, 0.25, -0.5])) for label in known}
    method = data.draw(st.sampled_from(space.methods))
    genome = space.encode(num_layers, weights, method=method)
    reads = space.reads(method)
    if genome is None:
        assert not expressible(space, method, weights)
        return
    assert set(genome) == {gene.name for gene in space.genes(num_layers)}
    for merge in resolved(space, genome, num_layers).values():
        assert merge.method == method
        if "weight" in reads:
            assert weights_of(merge) == pytest.approx(weights, rel=1e-15)
        if "t" in reads:
            assert merge.t == pytest.approx(next(iter(weights.values())), rel=1e-15)


def expressible(space: SearchSpace, method: str, weights: dict[str, float]) -> bool:
    """Whether a method has the merge of these weights, and the space's bounds allow it."""
    reads = space.reads(method)
    if "t" in reads:
        t = space.genome.t
        return t is None or allows(t.setting, next(iter(weights.values())))
    if "weight" not in reads:
        return any(weights.values()) and len(set(weights.values())) == 1
    if method in ("linear", "nuslerp") and not any(weights.values()):
        return False
    if method == "linear" and space.genome.normalize is not False and sum(weights.values()) == 0:
        return False
    return all(allows(space.genome.weight.of(label), weights[label]) for label in weights)


def allows(setting: float | Range | None, value: float) -> bool:
    return setting.holds(value) if isinstance(setting, Range) else setting == value


def test_a_blend_that_would_divide_by_nothing_is_no_genome(load: Load, small: str) -> None:
    space = two(load, small, "weight: [-1, 1]", "linear")
    assert space.encode(4, {"math": 0.5, "code": -0.5}) is None
    assert space.encode(4, {"math": 0.5, "code": -0.25}) is not None


def test_baselines_as_genomes(load: Load, small: str) -> None:
    space = two(load, small, "layers: {groups: 2, smooth: true}\n  density: [0.2, 1]", "dare_ties")
    uniform = space.encode(4, {"math": 0.5, "code": 0.5})
    assert uniform == {
        gene.name: 0.5 if gene.name.startswith("weight") else 1.0 for gene in space.genes(4)
    }
    assert space.encode(4, {"math": 0.9, "code": 0.9}) is not None
    assert space.encode(4, {"math": 1.1, "code": 1.1}) is None
    alone = space.encode(4, {"math": 1, "code": 0}, density=1.0, lambda_=1.0)
    assert alone is not None
    assert alone["weight/math/1"] == 1.0
    assert space.encode(4, {"math": 0, "code": 0}) is not None
    half = space.encode(4, {"math": 0.5, "code": 0.5}, density=0.5)
    assert half is not None
    assert half["density/code/0"] == 0.5
    assert space.encode(4, {"math": 0.5, "code": 0.5}, density=0.1) is None
    assert space.encode(4, {"math": 0.5, "code": 0.5}, lambda_=0.5) is None
    with pytest.raises(ValueError, match="the models are"):
        space.encode(4, {"math": 1.0})


def test_a_model_as_it_is_needs_all_of_it(load: Load, small: str) -> None:
    cut = two(load, small, "density: [0.2, 0.8]\n  lambda: [1.5, 2]", "dare_linear")
    alone = {"math": 1.0, "code": 0.0}
    assert cut.encode(4, alone, density=1.0) is None
    assert cut.encode(4, alone, lambda_=1.0) is None
    near = cut.encode(4, alone)
    assert near is not None
    assert (near["density/math"], near["lambda"]) == (0.8, 1.5)
    # Nothing of a task vector times anything is nothing: the base needs neither.
    assert cut.encode(4, {"math": 0, "code": 0}, density=1.0, lambda_=1.0) is not None
    linear = two(load, small, "weight: [0, 1]", "linear")
    assert linear.encode(4, {"math": 0, "code": 0}) is None
    assert linear.encode(4, alone, density=1.0, lambda_=1.0) is not None
