"""From a gradient in a live model to how fast a value changes between two recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from evomerge.checkpoints import Conversion, placements
from evomerge.merging.stages import StagedEngine
from evomerge.recipe import Recipe


class Pullback:
    """A gradient with respect to a live model's parameters, as one of merged tensors.

    Args:
        model: the live model.
        gradient: parameter → its gradient, float32, contiguous and of its shape; one that is absent
            is 0.
    """

    def __init__(self, model: torch.nn.Module, gradient: Mapping[str, torch.Tensor]) -> None:
        self._model = model
        own = {name: id(one) for name, one in model.named_parameters(remove_duplicate=False)}
        found = {own[name]: one for name, one in gradient.items()}
        # A tied parameter goes by each of its names.
        self._gradient = {name: found[key] for name, key in own.items() if key in found}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the merged tensors, whatever the recipe

    def between(
        self, engine: StagedEngine, before: Sequence[Recipe], after: Sequence[Recipe]
    ) -> float:
        """⟨gradient, merged(after) − merged(before)⟩, the merges in float32, summed in float64.

        Only tensors that the recipes make differently are merged.

        Args:
            engine: holds the models of both.
            before, after: stages of recipes, for the same live model.

        Raises:
            RecipeError: a recipe does not fit the models held.
            TrialError: a merged tensor holds NaN or infinity.
        """
        first, second = _exact(before), _exact(after)
        engines = engine.engine_of(first), engine.engine_of(second)
        if not self._shapes:
            outline = engines[1].outline(second[-1])
            self._shapes = {name: tuple(one.shape) for name, one in outline.items()}
        names = set(self._shapes)
        if first[:-1] == second[:-1]:
            names = engines[1].differing(first[-1], second[-1])
        placed = placements(self._model, self._shapes)
        readers = engines[0].reader(first[-1]), engines[1].reader(second[-1])
        total = 0.0
        for name in sorted(names & set(placed.places)):
            place = placed.places[name]
            if place.parameter in self._gradient:
                mine = place.view(self._gradient[place.parameter])
                total += _dot(mine, readers[1](name) - readers[0](name))
        for conversion in placed.conversions:
            sources = names.intersection(conversion.group.sources)
            if sources:
                changes = {
                    name: readers[1](name) - readers[0](name) for name in conversion.group.sources
                }
                total += sum(self._converted(conversion, changes))
        return total

    def _converted(
        self, conversion: Conversion, changes: Mapping[str, torch.Tensor]
    ) -> Iterator[float]:
        # Conversions stack, join and turn tensors: they are linear.
        made = conversion.group.convert(self._model, changes)
        for name in conversion.targets:
            if name in self._gradient:
                yield _dot(self._gradient[name], made[name])


def _exact(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The same, not rounded: differences of a small step would drown in bfloat16."""
    return [replace(recipe, out_dtype="float32") for recipe in recipes]


def _dot(gradient: torch.Tensor, change: torch.Tensor) -> float:
    product = gradient * change.to(gradient.device)
    return float(product.sum(dtype=torch.float64))
