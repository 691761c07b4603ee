"""The recipes that nobody searched for: what a searched one has to beat.

The base model, each fine-tuned model as it is, and the uniform blend of the space's method. They
are the study's first trials. One that the genome can express is also a point of the search space,
where CMA-ES can start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge.recipe import METHODS, Recipe
from evomerge.references import ModelReference, labels
from evomerge.search.records import PlannedBaseline
from evomerge.space import recipe_types

if TYPE_CHECKING:
    from evomerge.space import SearchSpace

BASE, UNIFORM = "base", "uniform"


def baselines(space: SearchSpace, num_layers: int) -> list[PlannedBaseline]:
    """The baselines of a space, the base model first.

    Args:
        space: the search space.
        num_layers: of its models.
    """
    names = labels(space.models)
    planned = []
    if space.base_model is not None:
        nothing = dict.fromkeys(names.values(), 0.0)
        planned.append(_planned(BASE, space, nothing, num_layers, space.base_model))
    for model, label in names.items():
        alone = {other: float(other == label) for other in names.values()}
        planned.append(_planned(f"only {label}", space, alone, num_layers, model))
    if len(names) > 1:
        equal = {label: 1.0 / len(names) for label in names.values()}
        planned.append(_planned(UNIFORM, space, equal, num_layers, None))
    return planned


def decode(space: SearchSpace, genome: Mapping[str, float], num_layers: int) -> str:
    """The recipe (YAML) that a genome stands for."""
    return Recipe.from_mapping(space.recipe_mapping(genome, num_layers), "genome").to_yaml()


def _planned(
    label: str,
    space: SearchSpace,
    weights: Mapping[str, float],
    num_layers: int,
    model: ModelReference | None,
) -> PlannedBaseline:
    # A model as it is needs every element and lambda 1; a blend takes what the space has nearest.
    exact = {} if model is None else {"density": 1.0, "lambda_": 1.0}
    genome = space.encode(num_layers, weights, **exact)
    if genome is not None:
        return PlannedBaseline(label, decode(space, genome, num_layers), genome)
    mapping = _one_model(space, model) if model else _blend(space, weights)
    return PlannedBaseline(label, Recipe.from_mapping(mapping, label).to_yaml(), None)


def _one_model(space: SearchSpace, model: ModelReference) -> dict[str, Any]:
    """A model as it is: a blend of one."""
    return {
        "merge_method": "linear",
        "models": [{"model": model.as_data(), "parameters": {"weight": 1.0}}],
        **_types(space),
    }


def _blend(space: SearchSpace, weights: Mapping[str, float]) -> dict[str, Any]:
    """The method's blend at constant weights, whatever the genome's bounds are."""
    names = labels(space.models)
    mapping = {
        "merge_method": space.merge_method,
        "models": [
            {"model": model.as_data(), "parameters": {"weight": weights[names[model]]}}
            for model in space.models
        ],
        "mask_seed": space.mask_seed,
        **_types(space),
    }
    if space.base_model is not None and METHODS[space.merge_method].needs_base:
        mapping["base_model"] = space.base_model.as_data()
    switches = {"normalize": space.genome.normalize, "rescale": space.genome.rescale}
    parameters = {name: value for name, value in switches.items() if value is not None}
    return {**mapping, "parameters": parameters} if parameters else mapping


def _types(space: SearchSpace) -> dict[str, Any]:
    source = {"tokenizer_source": space.tokenizer_source} if space.tokenizer_source else {}
    return {**recipe_types(space.dtype), **source}
