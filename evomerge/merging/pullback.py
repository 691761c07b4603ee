"""From a gradient in a live model to how fast a value changes between two recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from evomerge.checkpoints import Conversion, placements
from evomerge.merging.adding import Term
from evomerge.merging.engine import MergeEngine
from evomerge.merging.stages import StagedEngine
from evomerge.recipe import Recipe

Reader = Callable[[str], torch.Tensor]


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
    ) -> dict[str, float]:
        """⟨gradient, merged(after) − merged(before)⟩ of each tensor, the merges in float32, summed
        in float64.

        Only tensors that the recipes make differently are merged. Tensors that the live model joins
        are one, under the name of the first.

        Args:
            engine: holds the models of both.
            before, after: stages of recipes, for the same live model.

        Raises:
            RecipeError: a recipe does not fit the models held.
            TrialError: a merged tensor holds NaN or infinity.
        """
        names, readers = self._differing(engine, before, after)
        placed = placements(self._model, self._shapes)
        found = {}
        for name in sorted(names & set(placed.places)):
            place = placed.places[name]
            if place.parameter in self._gradient:
                mine = place.view(self._gradient[place.parameter])
                found[name] = _dot(mine, readers[1](name) - readers[0](name))
        for conversion in placed.conversions:
            sources = conversion.group.sources
            if names.intersection(sources):
                changes = {name: readers[1](name) - readers[0](name) for name in sources}
                found[min(sources)] = sum(self._converted(conversion, changes))
        return found

    def along(self, engine: MergeEngine, recipe: Recipe) -> dict[Term, float] | None:
        """⟨gradient, task vector⟩ of each contribution to each tensor, in float32, summed in
        float64; without those of which there is no gradient.

        Args:
            engine: holds the models.
            recipe: of a method with a base.

        Returns:
            None where the live model joins stored tensors.
        """
        placed = placements(self._model, self._shapes_of(engine, recipe))
        if placed.conversions:
            return None
        found: dict[Term, float] = {}
        for spec in engine.merges(recipe):
            place = placed.places.get(spec.name)
            if place is None or place.parameter not in self._gradient or not spec.contributions:
                continue
            mine = place.view(self._gradient[place.parameter])
            base, tensors = engine.inputs(spec)
            assert base is not None  # for the type checker: the method has one
            # As they are stored they are carried faster than their float32 difference would be.
            there = _meeting(mine, base)
            mine, base = mine.to(there), base.to(there).float()
            for number, tensor in enumerate(tensors):
                found[spec.name, number] = _dot(mine, tensor.to(there).float() - base)
        return found

    def touched(
        self, engine: StagedEngine, before: Sequence[Recipe], after: Sequence[Recipe]
    ) -> frozenset[str]:
        """The tensors that :meth:`between` may give a change of; nothing is merged."""
        names, _ = self._differing(engine, before, after)
        placed = placements(self._model, self._shapes)
        joined = [one.group.sources for one in placed.conversions]
        return frozenset(names & set(placed.places)).union(
            min(sources) for sources in joined if names.intersection(sources)
        )

    def _differing(
        self, engine: StagedEngine, before: Sequence[Recipe], after: Sequence[Recipe]
    ) -> tuple[set[str], tuple[Reader, Reader]]:
        first, second = _exact(before), _exact(after)
        engines = engine.engine_of(first), engine.engine_of(second)
        names = set(self._shapes_of(engines[1], second[-1]))
        if first[:-1] == second[:-1]:
            names = engines[1].differing(first[-1], second[-1])
        return names, (engines[0].reader(first[-1]), engines[1].reader(second[-1]))

    def _shapes_of(self, engine: MergeEngine, recipe: Recipe) -> dict[str, tuple[int, ...]]:
        if not self._shapes:
            outline = engine.outline(recipe)
            self._shapes = {name: tuple(one.shape) for name, one in outline.items()}
        return self._shapes

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
    there = _meeting(gradient, change)
    product = gradient.to(there) * change.to(there)
    return float(product.sum(dtype=torch.float64))


def _meeting(one: torch.Tensor, other: torch.Tensor) -> torch.device:
    """Where two tensors are multiplied: on an accelerator, if either of them lies there."""
    return other.device if one.device.type == "cpu" else one.device
