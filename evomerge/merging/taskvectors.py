"""Task vectors, made piece by piece, and what is worth remembering about them.

A task vector is never stored: it is the difference of two tensors that are resident anyway, in
float32, for as many elements at a time as a processor's cache holds. How a tensor is cut changes no
result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Protocol, TypeVar

import torch

TILES = {"cpu": 1 << 18, "other": 1 << 26}
"""Elements per piece: on a CPU what its cache holds, elsewhere what hides a kernel's launch."""

_T = TypeVar("_T")


class Sized(Protocol):
    """What is as large as tensors are."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        ...


_S = TypeVar("_S", bound=Sized)


def pieces(
    numel: int, device: torch.device, unit: int = 1, most: int | None = None
) -> Iterator[tuple[int, int]]:
    """Cut ``numel`` elements into ranges of whole units (rows), at least one unit each.

    Args:
        numel: how many.
        device: where the tensors are.
        unit: elements of a unit; ``numel`` is a multiple.
        most: elements of a range; None is ``TILES``'.
    """
    tile = most or TILES["cpu" if device.type == "cpu" else "other"]
    step = max(tile // unit, 1) * unit
    for start in range(0, numel, step):
        yield start, min(start + step, numel)


class Memory:
    """What merging a tensor again need not compute again, because no candidate changes it.

    What is small beside a tensor is always kept; what grows with it (ranks, counted magnitudes)
    while it fits.

    Args:
        budget: bytes of the latter at most; what goes beyond is computed each time.
    """

    def __init__(self, budget: int = 64 << 20) -> None:
        self._budget = budget
        self._large: dict[Hashable, Sized] = {}
        self._small: dict[Hashable, tuple[Hashable, object]] = {}
        self.nbytes = 0

    @property
    def remembers(self) -> bool:
        """Whether anything large is ever kept."""
        return self._budget > 0

    def kept(self, key: Hashable, compute: Callable[[], _T], version: Hashable = None) -> _T:
        """What is small beside a tensor; computed the first time, and anew for another ``version``.

        Only the last version is kept.
        """
        found = self._small.get(key)
        if found is None or found[0] != version:
            found = self._small[key] = (version, compute())
        return found[1]  # type: ignore[return-value]

    def large(self, key: Hashable, compute: Callable[[], _S]) -> _S:
        """What grows with a tensor; computed the first time, and again if it does not fit."""
        kept = self._large.get(key)
        if kept is not None:
            return kept  # type: ignore[return-value]
        made = compute()
        if self.nbytes + made.nbytes <= self._budget:
            self._large[key] = made
            self.nbytes += made.nbytes
        return made

    def has_room(self, nbytes: int) -> bool:
        """Whether something of this size would be kept."""
        return self.nbytes + nbytes <= self._budget


class TaskVector:
    """One tensor's δ = θ − θ₀, in float32.

    Args:
        base: θ₀, any floating type; None stands for 0 (the tensor itself is looked at).
        tensor: θ, of the same shape.
    """

    def __init__(self, base: torch.Tensor | None, tensor: torch.Tensor) -> None:
        self._base = None if base is None else base.reshape(-1)
        self._tensor = tensor.reshape(-1)
        self.numel, self.device = tensor.numel(), tensor.device

    def piece(self, start: int, stop: int, step: int = 1) -> torch.Tensor:
        """Elements ``start … stop - 1``, or every ``step``-th; float32, the caller's to change."""
        delta = self._tensor[start:stop:step].to(torch.float32, copy=True)
        return delta if self._base is None else delta.sub_(self._base[start:stop:step])

    def sizes(self, start: int, stop: int, step: int = 1) -> torch.Tensor:
        """Their magnitudes."""
        return self.piece(start, stop, step).abs_()
