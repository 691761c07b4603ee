"""mergekit-evolve's genome of a space: its own classes, called as its command calls them.

A user who moves from a space to that command writes the same models, method, layer groups and
filters; it has no bounds, no lambda and five methods. Its recipes are merged by our engine, in the
space's type instead of its bfloat16, with the space's masks.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import numpy as np
from mergekit.evo.genome import ModelGenome, ModelGenomeDefinition

from evomerge.recipe import Recipe, write_recipes
from evomerge.space import Gene, SearchSpace, method_keys, recipe_types

LEAST_DENSITY = 0.001
"""Theirs folds to [0, 1]; a density of 0 is refused by us, and drops a task vector whole."""

_METHODS = ("linear", "task_arithmetic", "ties", "dare_ties")


class EvolveGenome:
    """The genome that mergekit-evolve would search.

    Args:
        space: the space; the first of its methods, or the nearest of theirs.
        genes: of the space.
        num_layers: of the models.
    """

    def __init__(self, space: SearchSpace, genes: tuple[Gene, ...], num_layers: int) -> None:
        self._space = space
        negative = any(gene.low < 0 for gene in genes if gene.name.startswith("weight"))
        sparse = space.genome.density is not None
        method = space.methods[0]
        if method not in _METHODS:
            method = "dare_ties" if sparse else "task_arithmetic"
        self._definition = ModelGenomeDefinition.model_validate(
            {
                "models": [str(model) for model in space.models],
                "base_model": str(space.base_model) if space.base_model else None,
                "merge_method": method,
                "layer_granularity": granularity(space.group_count(num_layers), num_layers),
                "normalize": space.genome.normalize,
                "allow_negative_weights": negative,
                "filters": list(space.genome.filters) or None,
                "smooth": space.genome.layers.smooth,
            }
        )

    @cached_property
    def _genome(self) -> ModelGenome:
        return ModelGenome(self._definition)

    @property
    def start(self) -> np.ndarray:
        """Weight 1 / models, density 1."""
        return self._genome.initial_genotype().view(-1).numpy().astype(float)

    def recipe(self, numbers: np.ndarray) -> str:
        """Folded by their code: |weight| unless negative ones are allowed, |density| cut at 1."""
        config = self._genome.genotype_merge_config(numbers)
        mapping: dict[str, Any] = json.loads(config.model_dump_json(exclude_none=True))
        mapping["parameters"].pop("int8_mask")  # the type of the masks, which are no numbers here
        _raise_densities(mapping)
        mapping |= recipe_types(self._space.dtype)
        mapping |= method_keys(self._space, mapping["merge_method"])
        return write_recipes([Recipe.from_mapping(mapping, "mergekit-evolve")])


def granularity(groups: int, num_layers: int) -> int:
    """Layers in a group of theirs: the fewest that make no more groups; 0 where there is one."""
    if groups == 1:
        return 0
    return next(
        size
        for size in range(1, num_layers + 1)
        if num_layers % size == 0 and num_layers // size <= groups
    )


def _raise_densities(node: Any) -> None:
    """Put the least density wherever a lower one stands."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "density":
                node[key] = _at_least(value)
            else:
                _raise_densities(value)
    elif isinstance(node, list):
        for one in node:
            _raise_densities(one)


def _at_least(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_least(one) for one in value]
    if isinstance(value, dict):
        return {**value, "value": _at_least(value["value"])}
    return max(float(value), LEAST_DENSITY)
