"""What a resolved recipe asks of the models, and whether they have it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch

from evomerge.errors import Fault, RecipeError
from evomerge.merging.sources import Source
from evomerge.recipe import Recipe, TensorMerge
from evomerge.references import ModelReference


class Inputs:
    """The tensors that merged ones are made of.

    Args:
        sources: the models; the first one gives integer tensors, and shapes where it has part.
    """

    def __init__(self, sources: Mapping[ModelReference, Source]) -> None:
        self._sources = sources
        self._first = next(iter(sources))
        self._checked: set[Hashable] = set()
        self._kinds: dict[tuple[ModelReference, str], torch.dtype] = {}

    def check(self, specs: Sequence[TensorMerge], recipe: Recipe) -> None:
        """Refuse tensors that a model lacks or has in another shape or kind, all at once.

        Looked through once for all recipes that differ in numbers alone.

        Args:
            specs: the merged tensors.
            recipe: whose they are.

        Raises:
            RecipeError: there are such tensors.
        """
        wiring = recipe.wiring
        if wiring in self._checked:
            return
        faults: list[Fault] = []
        for spec in specs:
            faults += _faults(spec, self._sources, f"{recipe.place}: {spec.name}")
        if faults:
            raise RecipeError(faults)
        self._checked.add(wiring)

    def tensors(self, spec: TensorMerge) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """The base's tensor, if it has part, and the contributions', all on one device."""
        base = self._sources[spec.base[0]].tensor(spec.base[1]) if spec.base else None
        tensors = [self._sources[part.model].tensor(part.tensor) for part in spec.contributions]
        # Layers that a recipe moves may come from another device.
        device = (tensors[0] if base is None else base).device
        return base, [one if one.device == device else one.to(device) for one in tensors]

    def with_base(self, spec: TensorMerge) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The same of a method that needs a base."""
        base, tensors = self.tensors(spec)
        assert base is not None
        return base, tensors

    def only(self, spec: TensorMerge) -> torch.Tensor:
        """What is taken as it is where tensors are no floating numbers: the first model's."""
        model, name = self._lead(spec)
        return self._sources[model].tensor(name)

    def shape(self, spec: TensorMerge) -> tuple[int, ...]:
        """Of the merged tensor."""
        model, name = self._lead(spec)
        return self._sources[model].shape(name)

    def size(self, spec: TensorMerge) -> int:
        """Bytes of all that it is made of."""
        inputs = [(part.model, part.tensor) for part in spec.contributions]
        wanted = [*([spec.base] if spec.base else []), *inputs]
        return sum(
            math.prod(self._sources[model].shape(name)) * self._sources[model].dtype(name).itemsize
            for model, name in wanted
        )

    def kind(self, spec: TensorMerge) -> torch.dtype:
        """The type that the merged tensor has as it is stored."""
        lead = self._lead(spec)
        if lead not in self._kinds:
            self._kinds[lead] = self._sources[lead[0]].dtype(lead[1])
        return self._kinds[lead]

    def _lead(self, spec: TensorMerge) -> tuple[ModelReference, str]:
        """The model and its tensor that give a merged tensor's shape: the base if it has part."""
        if spec.base:
            return spec.base
        inputs = [(part.model, part.tensor) for part in spec.contributions]
        return next((one for one in inputs if one[0] == self._first), inputs[0])


def _faults(spec: TensorMerge, sources: Mapping[ModelReference, Source], place: str) -> list[Fault]:
    faults: list[Fault] = []
    shapes, kinds = {}, {}
    wanted = [spec.base] if spec.base else []
    for model, name in [*wanted, *((p.model, p.tensor) for p in spec.contributions)]:
        source = sources[model]
        if name not in source:
            faults.append(Fault(place, f"{model} has no {name}"))
            continue
        shapes[str(model)] = source.shape(name)
        kinds[str(model)] = source.dtype(name)
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{model} {list(shape)}" for model, shape in shapes.items())
        faults.append(Fault(place, f"shapes differ: {listed}"))
    if len({kind.is_floating_point for kind in kinds.values()}) > 1:
        listed = ", ".join(f"{model} {kind}" for model, kind in kinds.items())
        faults.append(Fault(place, f"floating in some models only: {listed}"))
    return faults
