"""The largest of many numbers, found by counting: nothing is sorted, copied or kept.

Numbers are float32 and not negative; their bits, read as integers, are ordered as they are. Of
equal numbers the first count as larger, so that every selection has exactly its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from evomerge.merging.taskvectors import pieces

Bits = Callable[[int, int], torch.Tensor]
"""The numbers' bits for elements ``start … stop - 1``: int32, shape [stop - start]."""

_HALF = 1 << 16


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


def among(
    bits: torch.Tensor, start: int, least: int | torch.Tensor, last: int | torch.Tensor
) -> torch.Tensor:
    """Whether numbers are among the largest.

    Args:
        bits: of the numbers from element ``start`` on, shape [size], size < 2³¹.
        start: their first index.
        least, last: a :class:`Limit`'s ``bits`` and ``last``.

    Returns:
        Booleans, shape [size].
    """
    size = len(bits)
    end = torch.as_tensor(last - start).clamp(-1, size).to(torch.int32)
    late = torch.arange(size, dtype=torch.int32, device=bits.device) > end
    return bits >= late.to(torch.int32) + least  # an equal one that comes late must be larger


def count(bits: Bits, numel: int, device: torch.device) -> Counts:
    """Go through all the numbers once."""
    counts = torch.zeros(_HALF // 2, dtype=torch.int64, device=device)
    nonzero = 0
    for start, stop in pieces(numel, device):
        tile = bits(start, stop)
        counts += torch.bincount(tile >> 16, minlength=len(counts))
        nonzero += int(tile.count_nonzero())
    halves = counts.nonzero()[:, 0].flip(0)
    return Counts(halves, counts[halves].cumsum(0), nonzero)


def limit(bits: Bits, counts: Counts, wanted: int, numel: int) -> Limit:
    """Of the ``wanted`` largest numbers, 1 … ``numel``. Goes through the numbers once or twice."""
    device = counts.above.device
    place = int(torch.searchsorted(counts.above, wanted))
    high = int(counts.halves[place])
    spare = wanted - (int(counts.above[place - 1]) if place else 0)
    lower = torch.zeros(_HALF, dtype=torch.int64, device=device)
    for start, stop in pieces(numel, device):
        tile = bits(start, stop)
        inside = tile[(tile >> 16) == high].bitwise_and_(_HALF - 1)
        if len(inside):
            lower += torch.bincount(inside, minlength=_HALF)
    above = lower.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, spare))
    value = high << 16 | (_HALF - 1 - place)
    if int(above[place]) == spare:
        return Limit(value, numel - 1)
    spare -= int(above[place - 1]) if place else 0
    return Limit(value, _nth(bits, value, spare, pieces(numel, device)))


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


def _nth(bits: Bits, value: int, wanted: int, ranges: Iterator[tuple[int, int]]) -> int:
    """The index of the ``wanted``-th element, from 1, that equals ``value``."""
    for start, stop in ranges:
        found = (bits(start, stop) == value).nonzero()[:, 0]
        if len(found) >= wanted:
            return start + int(found[wanted - 1])
        wanted -= len(found)
    raise AssertionError(f"{wanted} more elements than there are equal {value}")
