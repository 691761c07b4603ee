"""The recipes that nobody searched for: what a searched one has to beat.

The base model, each fine-tuned model as it is, and the uniform blend of the space's method (of each
of its methods, where it is searched). They are the study's first trials. One that the genome can
express is also a point of the search space, where CMA-ES can start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge.recipe import METHODS, Recipe, write_recipes
from evomerge.references import ModelReference, labels
from evomerge.search.records import PlannedBaseline
from evomerge.space import equal_weights, method_keys, recipe_types

if TYPE_CHECKING:
    from evomerge.space import SearchSpace, Stage

BASE, UNIFORM = "base", "uniform"

_WHOLE: dict[str, Any] = {"density": 1.0, "lambda_": 1.0, "trim": 1.0, "select_topk": 1.0}
"""A model as it is needs every element, and lambda 1."""


def baselines(space: SearchSpace, num_layers: int) -> list[PlannedBaseline]:
    """The baselines of a space, the base model first.

    Args:
        space: the search space.
        num_layers: of its models.
    """
    bases = _bases(space)
    planned = [_alone(BASE, space, bases[0], num_layers)] if bases else []
    tuned = [model for _, stage in space.every_stage for model in stage.models]
    stored = [model for model in dict.fromkeys(tuned) if model in space.stored_models]
    if not space.stages:
        stored = list(space.models)
    names = labels([model for model in stored if not space.stages or model not in bases])
    planned += [_alone(f"only {label}", space, model, num_layers) for model, label in names.items()]
    for method in space.methods:
        if len(space.models) > 1 or method == "slerp":
            label = UNIFORM if len(space.methods) == 1 else f"{UNIFORM} {method}"
            planned.append(_uniform(label, space, method, num_layers))
    return planned


def decode(space: SearchSpace, genome: Mapping[str, float], num_layers: int) -> str:
    """The recipe (YAML, a document for each stage) that a genome stands for."""
    mappings = space.recipe_mappings(genome, num_layers)
    return write_recipes([Recipe.from_mapping(mapping, "genome") for mapping in mappings])


def _bases(space: SearchSpace) -> list[ModelReference]:
    """The stored models that are a base, the last merge's first."""
    stages = [stage for _, stage in reversed(space.every_stage)]
    named = dict.fromkeys(stage.base_model for stage in stages)
    return [model for model in named if model is not None and model in space.stored_models]


def _alone(
    label: str, space: SearchSpace, model: ModelReference, num_layers: int
) -> PlannedBaseline:
    """A stored model as it is: a point of the space if it can be, else a blend of one."""
    names = space.labels
    if model in names or model == space.base_model:
        weights = {other: float(one == model) for one, other in names.items()}
        genome = space.encode(num_layers, weights, **_WHOLE)
        if genome is not None:
            return PlannedBaseline(label, decode(space, genome, num_layers), genome)
    mapping = {
        "merge_method": "linear",
        "models": [{"model": model.as_data(), "parameters": {"weight": 1.0}}],
        **_types(space),
    }
    return PlannedBaseline(label, Recipe.from_mapping(mapping, label).to_yaml(), None)


def _uniform(label: str, space: SearchSpace, method: str, num_layers: int) -> PlannedBaseline:
    """A method's blend of equal weights, what else it reads as near to its default as can be."""
    genome = space.encode(num_layers, equal_weights(space, method), method=method)
    if genome is not None:
        return PlannedBaseline(label, decode(space, genome, num_layers), genome)
    recipes = []
    for prefix, stage in space.every_stage:
        mapping = _blend(stage, stage.methods[0] if prefix else method)
        mapping = {"name": stage.name, **mapping} if prefix else mapping
        recipes.append(Recipe.from_mapping(mapping, label))
    return PlannedBaseline(label, write_recipes(recipes), None)


def _blend(stage: Stage, method: str) -> dict[str, Any]:
    """A method's blend at constant weights, whatever the genome's bounds are."""
    spec, reads = METHODS[method], stage.reads(method)
    weights = equal_weights(stage, method)
    own = {model: {"weight": weights[label]} for model, label in stage.labels.items()}
    listed: list[dict[str, Any]] = [
        {"model": model.as_data(), **({"parameters": own[model]} if "weight" in reads else {})}
        for model in stage.models
    ]
    mapping = {"merge_method": method, "models": listed, **method_keys(stage, method)}
    if stage.base_model is not None and spec.takes_base:
        mapping["base_model"] = stage.base_model.as_data()
    parameters: dict[str, Any] = {"t": next(iter(weights.values()))} if "t" in reads else {}
    switches = {name: value for name, value in stage.genome.switches.items() if name in reads}
    parameters |= switches
    mapping |= {"parameters": parameters} if parameters else {}
    return {**mapping, **_types(stage)}


def _types(stage: Stage) -> dict[str, Any]:
    source = {"tokenizer_source": stage.tokenizer_source} if stage.tokenizer_source else {}
    return {**recipe_types(stage.dtype), **source}
