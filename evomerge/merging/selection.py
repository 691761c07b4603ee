"""The largest of many numbers, found by counting: nothing is sorted, and next to nothing kept.

Numbers are float32 and not negative; their bits, read as integers, are ordered as they are. Of
equal numbers the first count as larger, so that every selection has exactly its size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from evomerge.merging.taskvectors import pieces

_HALF = 1 << 16
_KEPT = 1 << 22  # numbers of one upper half that are kept while they are counted


class Numbers(Protocol):
    """Where the numbers come from, asked piece by piece."""

    def bits(self, start: int, stop: int) -> torch.Tensor:
        """The bits of elements ``start … stop - 1``: int32, shape [stop - start]."""
        ...

    def inside(self, start: int, stop: int, half: int) -> torch.Tensor:
        """Those of them, in their order, whose upper half is ``half``."""
        ...


@dataclass(frozen=True)
class Counts:
    """How many numbers have which upper half of their bits.

    Args:
        halves: those that there are, descending; int64.
        above: how many numbers are that large or larger; int64, of the same shape.
        nonzero: how many are not 0.
    """

    halves: torch.Tensor
    above: torch.Tensor
    nonzero: int


@dataclass(frozen=True)
class Limit:
    """Which numbers are among the largest.

    Args:
        bits: of the smallest number among them.
        last: the index of the last element among them that equals it.
    """

    bits: int
    last: int


def count(numbers: Numbers, numel: int, device: torch.device) -> Counts:
    """Go through all the numbers once."""
    counts = torch.zeros(_HALF // 2, dtype=torch.int64, device=device)
    nonzero = 0
    for start, stop in pieces(numel, device):
        tile = numbers.bits(start, stop)
        counts += torch.bincount(tile >> 16, minlength=len(counts))
        nonzero += int(tile.count_nonzero())
    halves = counts.nonzero()[:, 0].flip(0)
    return Counts(halves, counts[halves].cumsum(0), nonzero)


def limit(numbers: Numbers, counts: Counts, wanted: int, numel: int) -> Limit:
    """Of the ``wanted`` largest numbers, 1 … ``numel``. Goes through the numbers once or twice."""
    place = int(torch.searchsorted(counts.above, wanted))
    high = int(counts.halves[place])
    spare = wanted - (int(counts.above[place - 1]) if place else 0)
    found = _Lower(numbers, high, numel, counts.above.device)
    above = found.counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, spare))
    lower = _HALF - 1 - place
    value = high << 16 | lower
    if int(above[place]) == spare:
        return Limit(value, numel - 1)
    spare -= int(above[place - 1]) if place else 0
    ranges, spare = found.near(lower, spare)
    return Limit(value, _nth(numbers, value, spare, ranges))


class _Lower:
    """The lower halves of the numbers that have one upper half.

    Args:
        numbers: all of them.
        high: the upper half.
        numel: how many numbers.
        device: where they are.
    """

    def __init__(self, numbers: Numbers, high: int, numel: int, device: torch.device) -> None:
        self.counts = torch.zeros(_HALF, dtype=torch.int64, device=device)
        self._ranges = list(pieces(numel, device))
        self._kept: list[torch.Tensor] = []
        uncounted, size = [], 0
        for start, stop in self._ranges:
            mine = numbers.inside(start, stop, high) & (_HALF - 1)
            uncounted.append(mine)
            size += len(mine)
            if size <= _KEPT:
                self._kept.append(mine)
            # Together, because a count takes as long as it has places.
            if stop == numel or sum(map(len, uncounted)) > _HALF:
                self.counts += torch.bincount(torch.cat(uncounted), minlength=_HALF)
                uncounted.clear()

    def near(self, lower: int, wanted: int) -> tuple[list[tuple[int, int]], int]:
        """Where the ``wanted``-th one, from 1, that equals ``lower`` is, and its place there."""
        for number, mine in enumerate(self._kept):
            equal = int((mine == lower).sum())
            if equal >= wanted:
                return self._ranges[number : number + 1], wanted
            wanted -= equal
        return self._ranges[len(self._kept) :], wanted


def middle(numel: int, density: float, gamma: float) -> tuple[int, int]:
    """Model Breadcrumbs' places, from the largest on (arXiv 2312.06795, section 3).

    The ⌊γn⌋ largest go, fewer if less than ⌊dn⌋ would stay, and then the smallest.

    Args:
        numel: n.
        density: d, the share that is kept; all are from 1 on.
        gamma: γ, the share of the largest that is not.

    Returns:
        The kept places ``first … end - 1`` in descending order.
    """
    if density >= 1:
        return 0, numel
    kept = max(int(density * numel), 0)
    first = min(int(gamma * numel), numel - kept)
    return first, first + kept


def _nth(numbers: Numbers, value: int, wanted: int, ranges: Iterable[tuple[int, int]]) -> int:
    """The index of the ``wanted``-th element, from 1, that equals ``value``."""
    for start, stop in ranges:
        found = (numbers.bits(start, stop) == value).nonzero()[:, 0]
        if len(found) >= wanted:
            return start + int(found[wanted - 1])
        wanted -= len(found)
    raise AssertionError(f"{wanted} more elements than there are equal {value}")
