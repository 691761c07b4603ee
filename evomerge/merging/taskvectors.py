"""Task vectors, made piece by piece, and what is worth remembering about them.

A task vector is never stored: it is the difference of two tensors that are resident anyway, in
float32, for as many elements at a time as a processor's cache holds. How a tensor is cut changes no
result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import cached_property
from typing import TypeVar

import torch

from evomerge.merging.masks import Stream

TILES = {"cpu": 1 << 18, "other": 1 << 26}
"""Elements per piece: on a CPU what its cache holds, elsewhere what hides a kernel's launch."""

_BLOCK = 4096
_T = TypeVar("_T")


def pieces(numel: int, device: torch.device, unit: int = 1) -> Iterator[tuple[int, int]]:
    """Cut ``numel`` elements into ranges of whole units (rows), at least one unit each."""
    tile = TILES["cpu" if device.type == "cpu" else "other"]
    step = max(tile // unit, 1) * unit
    for start in range(0, numel, step):
        yield start, min(start + step, numel)


class Memory:
    """What merging a tensor again need not compute again, because no candidate changes it.

    Sums are always kept; arrays (ranks, random numbers) while they fit, which in models of some
    million parameters is all of them: there the cost of an operation is that of calling it.

    Args:
        budget: bytes of arrays at most; what goes beyond is computed each time.
    """

    def __init__(self, budget: int = 64 << 20) -> None:
        self._budget = budget
        self._sums: dict[Hashable, float] = {}
        self._arrays: dict[Hashable, torch.Tensor] = {}
        self._small: dict[Hashable, tuple[Hashable, object]] = {}
        self.nbytes = 0

    def sum(self, key: Hashable, compute: Callable[[], float]) -> float:
        """The sum kept under ``key``, computed the first time."""
        if key not in self._sums:
            self._sums[key] = compute()
        return self._sums[key]

    def kept(self, key: Hashable, compute: Callable[[], _T], version: Hashable = None) -> _T:
        """What is small beside a tensor, kept as a sum is; anew for another ``version``.

        Only the last version is kept.
        """
        found = self._small.get(key)
        if found is None or found[0] != version:
            found = self._small[key] = (version, compute())
        return found[1]  # type: ignore[return-value]

    def array(
        self, key: Hashable, nbytes: int, compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor | None:
        """The array kept under ``key``, computed the first time; None if it is too large."""
        kept = self._arrays.get(key)
        if kept is None and self.nbytes + nbytes <= self._budget:
            kept = self._arrays[key] = compute()
            self.nbytes += nbytes
        return kept


class TaskVector:
    """One tensor's δ = θ − θ₀, in float32.

    Args:
        base: θ₀, any floating type.
        tensor: θ, of the same shape.
        memory: where to remember what no candidate changes; None remembers nothing.
        key: stands for the two tensors in ``memory``.
    """

    def __init__(
        self,
        base: torch.Tensor,
        tensor: torch.Tensor,
        memory: Memory | None = None,
        key: Hashable = None,
    ) -> None:
        self._base, self._tensor = base.reshape(-1), tensor.reshape(-1)
        self._memory, self._key = memory, key
        self.numel = base.numel()
        # Ranks are taken within rows: the last dimension; a vector is one row.
        self.row = base.shape[-1] if base.dim() else 1
        self.device = base.device

    def piece(self, start: int, stop: int) -> torch.Tensor:
        """Elements ``start … stop - 1``; float32, shape [stop - start], the caller's to change."""
        delta = self._tensor[start:stop].to(torch.float32, copy=True)
        return delta.sub_(self._base[start:stop])

    def pieces(self, unit: int = 1) -> Iterator[tuple[int, int]]:
        """The ranges to go through it in."""
        return pieces(self.numel, self.device, unit)

    @cached_property
    def magnitude(self) -> float:
        """Σ|δ|."""
        if self._memory is None:
            return self.magnitude_of(None)
        return self._memory.sum(self._key, lambda: self.magnitude_of(None))

    def magnitude_of(self, keep: torch.Tensor | None) -> float:
        """Σ|δ| over the kept elements (all of them without ``keep``; boolean, shape [numel]).

        In float64: float32 would lose digits over thousands of millions of terms. One thread sums
        each block and one the blocks, so that the result does not depend on their number.
        """
        total = 0.0
        for start, stop in self.pieces():
            size = self.piece(start, stop).abs_()
            if keep is not None:
                size.mul_(keep[start:stop])
            whole = size.numel() - size.numel() % _BLOCK
            if whole:
                total += float(size[:whole].view(-1, _BLOCK).sum(1, dtype=torch.float64).sum())
            if whole < size.numel():
                total += float(size[whole:].sum(dtype=torch.float64))
        return total

    def bits(self, stream: Stream, start: int, stop: int) -> torch.Tensor:
        """The stream's integers for elements ``start … stop - 1``; int32, not to be changed."""
        kept = self._remembered(
            ("bits", stream, self.numel), lambda: stream.bits(self.numel, device=self.device)
        )
        if kept is not None:
            return kept[start:stop]
        return stream.bits(stop - start, start=start, device=self.device)

    def ranks(self, start: int, stop: int) -> torch.Tensor:
        """Ascending ranks of |δ| from 0 within each row, equal magnitudes by index.

        Args:
            start, stop: a range of whole rows.

        Returns:
            int32, shape [stop - start]; not to be changed.
        """
        kept = self._remembered(("ranks", self._key), self._rank_rows)
        return self._rank(start, stop) if kept is None else kept[start:stop]

    def places(self) -> torch.Tensor | None:
        """Each element's place from 0 in descending order of |δ|, equal magnitudes by index.

        Returns:
            int32, shape [numel], not to be changed; None where it is too large to be kept.
        """
        return self._remembered(("places", self._key), self._place)

    def _remembered(
        self, key: Hashable, compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor | None:
        if self._memory is None:
            return None
        return self._memory.array(key, 4 * self.numel, compute)

    def _rank_rows(self) -> torch.Tensor:
        ranks = torch.empty(self.numel, dtype=torch.int32, device=self.device)
        for start, stop in self.pieces(self.row):
            ranks[start:stop] = self._rank(start, stop)
        return ranks

    def _rank(self, start: int, stop: int) -> torch.Tensor:
        rows = self.piece(start, stop).abs_().view(-1, self.row)
        return _inverse(rows.argsort(dim=1, stable=True)).view(-1)

    def _place(self) -> torch.Tensor:
        size = self.piece(0, self.numel).abs_().view(1, -1)
        return _inverse(size.argsort(dim=1, stable=True, descending=True)).view(-1)


def _inverse(orders: torch.Tensor) -> torch.Tensor:
    """Where each index stands in its row's order."""
    places = torch.arange(orders.shape[1], dtype=torch.int32, device=orders.device)
    inverse = torch.empty_like(orders, dtype=torch.int32)
    return inverse.scatter_(1, orders, places.expand_as(orders))
