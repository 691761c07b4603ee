"""The baselines that every search is measured against: a grid that is the same for all of them.

Written here and not taken from the search's own baselines, so that what others are compared with
stays what it is when the search learns to try more of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evomerge.recipe import METHODS, Recipe, write_recipes
from evomerge.references import ModelReference
from evomerge.space import SearchSpace, method_keys, recipe_types

LAMBDAS = (0.5, 1.0, 1.5, 2.0, 3.0)
DENSITIES = (0.2, 0.5, 1.0)

PLAIN = "task_arithmetic"


def grid(space: SearchSpace) -> dict[str, str]:
    """Name → recipe: the base, each fine-tuned model, and uniform blends.

    A blend gives each of n models weight 1/n; lambda and, where the method sparsifies, density go
    through :data:`LAMBDAS` and :data:`DENSITIES`. Beside the space's own methods stands the plain
    sum of task vectors, wherever there is a base.
    """
    found: dict[str, str] = {}
    if space.base_model is not None:
        found["base"] = _alone(space, space.base_model)
    for model, label in space.labels.items():
        found[f"only {label}"] = _alone(space, model)
    plain = (PLAIN,) if space.base_model is not None else ()
    for method in dict.fromkeys((*space.methods, *plain)):
        if "weight" in METHODS[method].reads(space.variant):
            found |= dict(_blends(space, method))
    return found


def _blends(space: SearchSpace, method: str) -> Iterator[tuple[str, str]]:
    spec = METHODS[method]
    scaled = "lambda" in spec.reads(space.variant)
    for density in DENSITIES if spec.sparsifies else (None,):
        for factor in LAMBDAS if scaled else (None,):
            words = [f"lambda {factor:g}"] if factor is not None else []
            words += [f"density {density:g}"] if density is not None else []
            yield " ".join([f"uniform {method}", *words]), _blend(space, method, factor, density)


def _blend(space: SearchSpace, method: str, factor: float | None, density: float | None) -> str:
    spec = METHODS[method]
    own = {"weight": 1 / len(space.models)} | ({} if density is None else {"density": density})
    mapping: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": model.as_data(), "parameters": own} for model in space.models],
        **method_keys(space, method),
    }
    if space.base_model is not None and spec.takes_base:
        mapping["base_model"] = space.base_model.as_data()
    shared: dict[str, Any] = {
        name: value
        for name, value in space.genome.switches.items()
        if name in spec.reads(space.variant)
    }
    if factor is not None:
        shared["lambda"] = factor
    mapping |= {"parameters": shared} if shared else {}
    return _written(space, mapping)


def _alone(space: SearchSpace, model: ModelReference) -> str:
    """One model as it is."""
    listed = [{"model": model.as_data(), "parameters": {"weight": 1.0}}]
    return _written(space, {"merge_method": "linear", "models": listed})


def _written(space: SearchSpace, mapping: dict[str, Any]) -> str:
    return write_recipes([Recipe.from_mapping(mapping | recipe_types(space.dtype), "baseline")])
