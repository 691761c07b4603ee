"""The tensors of a live model, by the names that a checkpoint gives them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from weakref import WeakKeyDictionary

import torch

from evomerge.checkpoints import Conversion, Placements, placements
from evomerge.errors import Fault, RecipeError

_fitting: WeakKeyDictionary[torch.nn.Module, tuple[object, Placements]] = WeakKeyDictionary()
"""What was found to fit into a live model last, so that the next candidate need not look."""


class LiveTensors:
    """What can be written to in a live model: each parameter once, however many names it has.

    A checkpoint's tensor may be a parameter of another name, or a part of one, or one of several
    that transformers makes parameters of while loading; those are written once all of them came.

    Args:
        model: a model with parameters in memory of their own.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._kind = type(model).__name__
        named = list(model.named_parameters(remove_duplicate=False))
        self._tensors: dict[str, torch.Tensor] = dict(model.named_buffers())
        self._tensors.update(named)
        self._parameters = {name: id(parameter) for name, parameter in named}
        self._placed = Placements({}, (), {})
        self._shapes: Mapping[str, tuple[int, ...]] = {}
        self._conversions: dict[str, Conversion] = {}
        # Tensors of conversions that are not complete yet.
        self._staged: dict[str, torch.Tensor] = {}
        self._written: set[str] = set()

    def check(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, place: str) -> None:
        """Refuse merged tensors that do not fill the live model exactly; find their places.

        Args:
            shapes: of the merged tensors, by name.
            dtype: of the floating ones.
            place: the recipe's, for messages.

        Raises:
            RecipeError: names, shapes or types do not fit; everything at once.
        """
        self._shapes = dict(shapes)
        looked_at = (self._shapes, dtype, self._looks())
        known = _fitting.get(self._model)
        if known is not None and known[0] == looked_at:
            self._placed = known[1]
        else:
            self._placed = placements(self._model, shapes)
            self._refuse(shapes, dtype, place)
            _fitting[self._model] = (looked_at, self._placed)
        self._conversions = {
            name: one for one in self._placed.conversions for name in one.group.sources
        }

    def _looks(self) -> list[object]:
        """All of the live model that a check depends on."""
        return [
            (name, id(one), one.shape, one.dtype, one.device, one.is_contiguous())
            for name, one in self._tensors.items()
        ]

    def _refuse(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, place: str
    ) -> None:
        faults = [fault for name, shape in shapes.items() for fault in self._faults(name, shape)]
        faults += self._filling_faults()
        for kind in sorted(self._types(shapes), key=str):
            if torch.promote_types(kind, dtype) != kind:
                faults.append(f"the live {self._kind} is {kind}, which does not hold {dtype}")
        if faults:
            raise RecipeError(Fault(place, fault) for fault in faults)

    def place(self, name: str) -> torch.Tensor:
        """The storage of a tensor, which may be a part of a parameter's."""
        placement = self._placed.places.get(name)
        if placement is not None:
            return placement.view(self._tensors[placement.parameter].detach())
        if name not in self._staged:
            # A tensor that the model does without is merged for the export alone.
            held = self._placed.parameters(name) or tuple(self._parameters)
            near = self._tensors[held[0]]
            self._staged[name] = torch.empty(
                self._shapes[name], dtype=near.dtype, device=near.device
            )
        return self._staged[name]

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Copy a tensor into the live model's storage, unless it was made there."""
        if name in self._placed.ignored:
            self._staged.pop(name, None)
            return
        place = self.place(name)
        if place.data_ptr() != tensor.data_ptr():
            place.copy_(tensor)
        if name in self._conversions:
            self._written.add(name)
            self._convert(self._conversions[name])

    def _convert(self, conversion: Conversion) -> None:
        """Make the parameters, once all that they are made of was written."""
        sources = conversion.group.sources
        if not self._written.issuperset(sources):
            return
        made = conversion.group.convert(self._model, {one: self._staged[one] for one in sources})
        for name in conversion.targets:
            self._tensors[name].detach().copy_(made[name])
        for name in sources:
            del self._staged[name]
        self._written.difference_update(sources)

    def _faults(self, name: str, shape: tuple[int, ...]) -> list[str]:
        if name in self._placed.strangers:
            why = self._placed.strangers[name]
            return [f"{name} {why}" if why else f"the live {self._kind} has no tensor {name}"]
        faults = []
        placement = self._placed.places.get(name)
        if placement is not None:
            live = self._tensors[placement.parameter]
            expected = placement.shape(live)
            if expected != shape:
                there = f"{list(expected)} in the live {self._kind}"
                faults.append(f"{name} is {list(shape)}, but {there}")
            if placement.part is not None and not live.is_contiguous():
                faults.append(
                    f"{placement.parameter} of the live {self._kind} is not contiguous, so that "
                    f"{name} has no place in it"
                )
        held = self._placed.parameters(name)
        faults += [
            f"{one} of the live {self._kind} is on the meta device, which holds no values"
            for one in held
            if self._tensors[one].is_meta
        ]
        return faults

    def _filling_faults(self) -> list[str]:
        """Parameters that keep elements, or get two merged tensors, the second over the first."""
        filled: dict[int | str, int] = {}
        first: dict[int | str, str] = {}
        faults = []
        for name, parameter, count in self._fillings():
            key = self._parameters.get(parameter, parameter)
            filled[key] = filled.get(key, 0) + count
            other = first.setdefault(key, name)
            if filled[key] > self._tensors[parameter].numel():
                faults.append(
                    f"{other} and {name} are one parameter in the live {self._kind}, and two "
                    "tensors in the merge"
                )
        for name, key in self._parameters.items():
            count = filled.get(key, 0)
            if count < self._tensors[name].numel():
                how = "would stay as it is" + (" in part" if count else "")
                faults.append(f"{name} of the live {self._kind} {how}")
        return faults

    def _fillings(self) -> Iterator[tuple[str, str, int]]:
        """Merged tensor, parameter, and how many of its elements that fills."""
        for name in self._shapes:
            placement = self._placed.places.get(name)
            if placement is not None:
                live = self._tensors[placement.parameter]
                yield name, placement.parameter, math.prod(placement.shape(live))
        for conversion in self._placed.conversions:
            for target in conversion.targets:
                yield conversion.group.sources[0], target, self._tensors[target].numel()

    def _types(self, names: Iterable[str]) -> set[torch.dtype]:
        held = (self._placed.parameters(name) for name in names)
        tensors = [self._tensors[one] for parameters in held for one in parameters]
        return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
