"""The tensors of a live model, by the names that a checkpoint gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from evomerge.errors import Fault, RecipeError


class LiveTensors:
    """What can be written to in a live model: each parameter once, however many names it has.

    Args:
        model: a model with parameters in memory of their own.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._kind = type(model).__name__
        named = list(model.named_parameters(remove_duplicate=False))
        self._tensors: dict[str, torch.Tensor] = dict(model.named_buffers())
        self._tensors.update(named)
        self._parameters = {name: id(parameter) for name, parameter in named}

    def check(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, place: str) -> None:
        """Refuse merged tensors that do not fill the live model exactly.

        Args:
            shapes: of the merged tensors, by name.
            dtype: of the floating ones.
            place: the recipe's, for messages.

        Raises:
            RecipeError: names, shapes or types do not fit; everything at once.
        """
        faults = [fault for name, shape in shapes.items() for fault in self._faults(name, shape)]
        faults += self._tied_faults(shapes)
        written = {self._parameters[name] for name in shapes if name in self._parameters}
        unfilled = [name for name, which in self._parameters.items() if which not in written]
        faults += [f"{name} of the live {self._kind} would stay as it is" for name in unfilled]
        for kind in sorted(self._types(shapes), key=str):
            if torch.promote_types(kind, dtype) != kind:
                faults.append(f"the live {self._kind} is {kind}, which does not hold {dtype}")
        if faults:
            raise RecipeError(Fault(place, fault) for fault in faults)

    def place(self, name: str) -> torch.Tensor:
        """The storage of a tensor."""
        return self._tensors[name].detach()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Copy a tensor into the live model's storage, unless it was made there."""
        place = self.place(name)
        if place.data_ptr() != tensor.data_ptr():
            place.copy_(tensor)

    def _faults(self, name: str, shape: tuple[int, ...]) -> list[str]:
        live = self._tensors.get(name)
        if live is None:
            return [f"the live {self._kind} has no tensor {name}"]
        if tuple(live.shape) != shape:
            return [f"{name} is {list(shape)}, but {list(live.shape)} in the live {self._kind}"]
        if live.is_meta:
            return [f"{name} of the live {self._kind} is on the meta device, which holds no values"]
        return []

    def _tied_faults(self, names: Iterable[str]) -> list[str]:
        """Two merged tensors for one parameter: the second would overwrite the first."""
        first: dict[int | str, str] = {}
        faults = []
        for name in names:
            other = first.setdefault(self._parameters.get(name, name), name)
            if other != name:
                faults.append(
                    f"{other} and {name} are one parameter in the live {self._kind}, and two "
                    "tensors in the merge"
                )
        return faults

    def _types(self, names: Iterable[str]) -> set[torch.dtype]:
        tensors = [self._tensors[name] for name in names if name in self._tensors]
        return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
