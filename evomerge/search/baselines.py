"""The recipes that nobody searched for: what a searched one has to beat.

The base model, each fine-tuned model as it is, and the uniform blend of the space's method (of each
of its methods, where it is searched), at a few lambdas and densities too. They are the study's
first trials. One that the genome can express is also a point of the search space, where CMA-ES can
start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.recipe import METHODS, Recipe, write_recipes
from evomerge.references import ModelReference, labels
from evomerge.search.records import PlannedBaseline
from evomerge.space import equal_weights, method_keys, recipe_types

if TYPE_CHECKING:
    from evomerge.space import SearchSpace, Stage

BASE, ONLY, UNIFORM = "base", "only ", "uniform"

_WHOLE: dict[str, Any] = {"density": 1.0, "lambda_": 1.0, "trim": 1.0, "select_topk": 1.0}
"""A model as it is needs every element, and lambda 1."""

_DENSITIES = (0.5, 0.2)
"""Of the uniform blends of sparsifying methods; 0.2 is what TIES recommends (arXiv 2306.01708)."""


def baselines(
    space: SearchSpace, num_layers: int, *, one_vocabulary: bool = True
) -> list[PlannedBaseline]:
    """The baselines of a space: the base model, the blends, and the models alone, of which most are
    so far behind a blend that was scored before that they are stopped early.

    Args:
        space: the search space.
        num_layers: of its models.
        one_vocabulary: whether the models' rows stand for the same tokens as they are. Else the
            recipe of one model names the others too, at weight 0, in each of the stages: what the
            merged vocabulary is depends on all of them. A base that no recipe of the space names
            has no such recipe.
    """
    bases = _bases(space)
    named = one_vocabulary or (bases and _way(space, bases[0]) is not None)
    planned = [_alone(BASE, space, bases[0], num_layers, one_vocabulary)] if bases and named else []
    tuned = [model for _, stage in space.every_stage for model in stage.models]
    stored = [model for model in dict.fromkeys(tuned) if model in space.stored_models]
    if not space.stages:
        stored = list(space.models)
    names = labels([model for model in stored if not space.stages or model not in bases])
    for method in space.methods:
        if len(space.models) > 1 or method == "slerp":
            label = UNIFORM if len(space.methods) == 1 else f"{UNIFORM} {method}"
            planned.append(_uniform(label, space, method, num_layers))
    planned += _variations(space, num_layers)
    return planned + [
        _alone(f"{ONLY}{label}", space, model, num_layers, one_vocabulary)
        for model, label in names.items()
    ]


def decode(space: SearchSpace, genome: Mapping[str, float], num_layers: int) -> str:
    """The recipe (YAML, a document for each stage) that a genome stands for."""
    mappings = space.recipe_mappings(genome, num_layers)
    return write_recipes([Recipe.from_mapping(mapping, "genome") for mapping in mappings])


def _bases(space: SearchSpace) -> list[ModelReference]:
    """The stored models that are a base, the last merge's first."""
    stages = [stage for _, stage in reversed(space.every_stage)]
    named = dict.fromkeys(stage.base_model for stage in stages)
    return [model for model in named if model is not None and model in space.stored_models]


def _participants(stage: Stage) -> tuple[ModelReference, ...]:
    """The models that the recipes of a merge name, in their order."""
    named = stage.base_model is not None and (
        METHODS[stage.methods[0]].takes_base or stage.base_model in stage.models
    )
    base = (stage.base_model,) if stage.base_model is not None and named else ()
    return tuple(dict.fromkeys((*base, *stage.models)))


def _way(space: SearchSpace, model: ModelReference) -> dict[str, ModelReference] | None:
    """What each merge on the way from a model to the space's result takes, by the merge's prefix.

    None where the model has no part in it.
    """
    for prefix, stage in reversed(space.every_stage):
        if model in _participants(stage):
            if not prefix:
                return {prefix: model}
            further = _way(space, ModelReference(stage.name))
            return None if further is None else {prefix: model, **further}
    return None


def _alone(
    label: str, space: SearchSpace, model: ModelReference, num_layers: int, one_vocabulary: bool
) -> PlannedBaseline:
    """A stored model as it is: a point of the space if it can be, else a blend of one."""
    names = space.labels
    if model in names or model == space.base_model:
        weights = {other: float(one == model) for one, other in names.items()}
        genome = space.encode(num_layers, weights, **_WHOLE)
        if genome is not None:
            return PlannedBaseline(label, decode(space, genome, num_layers), genome)
    if one_vocabulary:
        mappings = [_choice(space, model, (model,))]
    else:
        way = _way(space, model) or {}
        mappings = []
        for prefix, stage in space.every_stage:
            members = _participants(stage)
            name = {"name": stage.name} if prefix else {}
            mappings.append({**name, **_choice(stage, way.get(prefix, members[0]), members)})
    recipes = [Recipe.from_mapping(mapping, label) for mapping in mappings]
    return PlannedBaseline(label, write_recipes(recipes), None)


def _choice(
    stage: Stage, chosen: ModelReference, members: Sequence[ModelReference]
) -> dict[str, Any]:
    """The recipe of a merge that gives one of its members as it is."""
    mapping: dict[str, Any] = {
        "merge_method": "linear",
        "models": [
            {"model": one.as_data(), "parameters": {"weight": float(one == chosen)}}
            for one in members
        ],
        **_types(stage),
    }
    if len(members) > 1 and stage.base_model in members and stage.base_model is not None:
        mapping["base_model"] = stage.base_model.as_data()
    return mapping


def _variations(space: SearchSpace, num_layers: int) -> list[PlannedBaseline]:
    """The uniform blend at other lambdas and densities, where a single merge method has them.

    With N models: half of it; √N times, where N orthogonal task vectors of one length add up to a
    task vector of that length; and the geometric mean of 1 and that.
    """
    method, number = space.methods[0], len(space.models)
    if not space.search.scan or space.stages or len(space.methods) > 1 or number < 2:
        return []
    reads = space.reads(method)
    scales = (0.5, number**0.25, number**0.5) if "lambda" in reads else ()
    densities = _DENSITIES if "density" in reads else ()
    return [
        _uniform(f"{UNIFORM} × {scale:.3g}", space, method, num_layers, scale=scale)
        for scale in scales
    ] + [
        _uniform(f"{UNIFORM} density {density:g}", space, method, num_layers, density=density)
        for density in densities
    ]


def _uniform(
    label: str,
    space: SearchSpace,
    method: str,
    num_layers: int,
    *,
    scale: float = 1.0,
    density: float | None = None,
) -> PlannedBaseline:
    """A method's blend of equal weights, what else it reads as near to its default as can be.

    The scale is the weights' where they are not normalized, as far as the genome allows; else
    lambda's.
    """
    weights = equal_weights(space, method)
    scaled = {name: scale * weight for name, weight in weights.items()}
    ways = [(scaled, None)] if _scales_by_weight(space, method) else []
    for weighted, lambda_ in [*ways, (weights, scale if scale != 1.0 else None)]:
        genome = space.encode(num_layers, weighted, density=density, lambda_=lambda_, method=method)
        if genome is not None:
            return PlannedBaseline(label, decode(space, genome, num_layers), genome)
    recipes = []
    for prefix, stage in space.every_stage:
        mapping = _blend(stage, stage.methods[0] if prefix else method, scale, density)
        mapping = {"name": stage.name, **mapping} if prefix else mapping
        recipes.append(Recipe.from_mapping(mapping, label))
    return PlannedBaseline(label, write_recipes(recipes), None)


def _scales_by_weight(stage: Stage, method: str) -> bool:
    """Whether weights that are all twice as large make a task vector twice as large."""
    switch = stage.genome.normalize
    normalizes = METHODS[method].normalize if switch is None else switch
    return "weight" in stage.reads(method) and not normalizes


def _blend(stage: Stage, method: str, scale: float, density: float | None) -> dict[str, Any]:
    """A method's blend at constant weights, whatever the genome's bounds are."""
    spec, reads = METHODS[method], stage.reads(method)
    weights = equal_weights(stage, method)
    kept = {} if density is None else {"density": density}
    own = {model: {"weight": weights[label]} for model, label in stage.labels.items()}
    listed: list[dict[str, Any]] = [
        {
            "model": model.as_data(),
            **_given({**(own[model] if "weight" in reads else {}), **kept}),
        }
        for model in stage.models
    ]
    mapping = {"merge_method": method, "models": listed, **method_keys(stage, method)}
    if stage.base_model is not None and spec.takes_base:
        mapping["base_model"] = stage.base_model.as_data()
    parameters: dict[str, Any] = {"t": next(iter(weights.values()))} if "t" in reads else {}
    parameters |= {"lambda": scale} if scale != 1.0 else {}
    parameters |= {name: value for name, value in stage.genome.switches.items() if name in reads}
    return {**mapping, **_given(parameters), **_types(stage)}


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": parameters} if parameters else {}


def _types(stage: Stage) -> dict[str, Any]:
    source = {"tokenizer_source": stage.tokenizer_source} if stage.tokenizer_source else {}
    return {**recipe_types(stage.dtype), **source}
