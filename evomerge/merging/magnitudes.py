"""Which elements of a tensor are its largest: found at once, or looked up for candidate after
candidate.

Equal magnitudes count by index, the first as the larger, so that a selection has exactly its size.
Task vectors of bfloat16 models have few different magnitudes: then their counts, sorted once, tell
any threshold. Of a magnitude that many elements share it is also kept how many of them stand in
each stretch of the tensor, so that the last one that is kept is looked for in one stretch only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evomerge.merging.bracketing import Sizes, kth_largest
from evomerge.merging.pools import apart

_STRETCHES = 192
_SHORTEST = 1 << 13  # elements of a stretch, where there are that many
_HEAVY = 1 << 14  # a magnitude that one element in so many has is kept by stretches
_SPARSE = 16  # magnitudes are kept where there are so many elements of each, on average


@dataclass(frozen=True)
class Largest:
    """The elements above ``limit``, and of those at ``limit`` the ones up to index ``last``.

    Args:
        limit: the smallest magnitude among them; float32's value.
        last: the last index of that magnitude among them.
    """

    limit: float
    last: int

    @property
    def later(self) -> float:
        """The smallest magnitude that is among them behind ``last``."""
        return float(np.nextafter(np.float32(self.limit), np.float32(np.inf)))


NONE = Largest(float("inf"), -1)
"""No element at all."""

ALL = Largest(0.0, 1 << 62)
"""Every element."""


class Magnitudes:
    """The magnitudes of one tensor, counted.

    Args:
        sizes: gives them.
        numel: how many, at least 1.
    """

    def __init__(self, sizes: Sizes, numel: int) -> None:
        self._sizes, self._numel = sizes, numel
        self._step = max(-(-numel // _STRETCHES), _SHORTEST)
        found = self._counted()
        self.sparse = sum(len(values) for values, _ in found) * 2 <= numel
        if self.sparse:
            self._join(found)
            self.sparse = len(self._values) * _SPARSE <= numel

    @property
    def nbytes(self) -> int:
        """What is kept, in bytes."""
        if not self.sparse:
            return 0
        return self._values.nbytes + self._above.nbytes + self._places.nbytes

    def largest(self, wanted: int, sizes: Sizes) -> Largest:
        """The ``wanted`` largest, 1 … numel.

        Args:
            wanted: how many.
            sizes: gives the same magnitudes as before.
        """
        if not self.sparse:
            return select(sizes, self._numel, wanted)
        index = int(np.searchsorted(self._above, wanted))
        limit = float(self._values[index])
        spare = wanted - (int(self._above[index - 1]) if index else 0)
        if int(self._above[index]) == wanted:
            return Largest(limit, self._numel - 1)
        start, stop = 0, self._numel
        row = int(self._rows[index])
        if row >= 0:
            stretch = int(np.searchsorted(self._places[row], spare))
            spare -= int(self._places[row, stretch - 1]) if stretch else 0
            start, stop = stretch * self._step, min((stretch + 1) * self._step, self._numel)
        return Largest(limit, _nth(sizes, limit, spare, start, stop, self._step))

    def _counted(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The magnitudes of each stretch and how often they stand there."""
        starts = range(0, self._numel, self._step)
        threads = min(torch.get_num_threads(), len(starts))
        if threads == 1:
            return [self._count(start) for start in starts]
        with apart(threads, "magnitudes") as pool:
            return list(pool.map(self._count, starts))

    def _count(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        stop = min(start + self._step, self._numel)
        values = np.sort(self._sizes(start, stop).cpu().numpy())
        firsts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        return values[firsts], np.diff(firsts, append=len(values))

    def _join(self, found: list[tuple[np.ndarray, np.ndarray]]) -> None:
        every = np.concatenate([values for values, _ in found])
        counts = np.concatenate([counts for _, counts in found])
        ascending, where = np.unique(every, return_inverse=True)
        where = len(ascending) - 1 - where
        self._values = ascending[::-1].copy()
        totals = np.bincount(where, weights=counts, minlength=len(ascending)).astype(np.int64)
        self._above = totals.cumsum()
        heavy = np.flatnonzero(totals * _HEAVY >= self._numel)
        self._rows = np.full(len(totals), -1, dtype=np.int32)
        self._rows[heavy] = np.arange(len(heavy), dtype=np.int32)
        stretches = np.repeat(np.arange(len(found)), [len(values) for values, _ in found])
        self._places = np.zeros((len(heavy), len(found)), dtype=np.int32)
        rows = self._rows[where]
        mine = rows >= 0
        self._places[rows[mine], stretches[mine]] = counts[mine]
        self._places = self._places.cumsum(1, dtype=np.int32)


def select(sizes: Sizes, numel: int, wanted: int) -> Largest:
    """The ``wanted`` largest of ``numel``, 1 … numel, without anything kept."""
    if sizes(0, 0).device.type == "cpu":
        return Largest(*kth_largest(sizes, numel, wanted))
    whole = sizes(0, numel)
    limit = float(whole.kthvalue(numel - wanted + 1).values)
    spare = wanted - int((whole > limit).sum())
    return Largest(limit, int((whole == limit).nonzero()[spare - 1, 0]))


def _nth(sizes: Sizes, limit: float, wanted: int, start: int, stop: int, step: int) -> int:
    """The index of the ``wanted``-th element, from 1, of a magnitude."""
    for begin in range(start, stop, step):
        # numpy finds them in a short stretch in half of torch's time.
        found = np.flatnonzero(sizes(begin, min(begin + step, stop)).cpu().numpy() == limit)
        if len(found) >= wanted:
            return begin + int(found[wanted - 1])
        wanted -= len(found)
    raise AssertionError(f"{wanted} more elements than there are of magnitude {limit}")
