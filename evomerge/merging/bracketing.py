"""The largest of a tensor's magnitudes, found once: a sample says where to look, a pass counts.

The k-th largest is looked for among few: a sorted sample gives two magnitudes that it most probably
lies between (Floyd and Rivest, Expected time bounds for selection, 1975). One pass counts what is
above them and takes out what is between. A bad guess costs another pass, never a wrong result.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch

TILE = 1 << 16
"""Elements that are looked at at a time: they stay in a processor's cache, and their memory with
the process (larger blocks go back to the system each time, and cost a page fault every 4 KB)."""

_LEAST, _MOST = 1 << 11, 1 << 16  # elements of a sample
_SHARE = 6  # one of so many, as a power of two
_DEVIATIONS = 3.0  # of the sample's quantile, to both sides
_WIDER = 8.0  # by which a guess that failed is wider


class Sizes(Protocol):
    """Magnitudes of elements ``start … stop - 1``, or every ``step``-th; float32, at least 0."""

    def __call__(self, start: int, stop: int, step: int = 1) -> torch.Tensor: ...


def kth_largest(sizes: Sizes, numel: int, wanted: int) -> tuple[float, int]:
    """The ``wanted``-th largest magnitude and its index; of equal ones the first is the largest.

    Args:
        sizes: gives the magnitudes.
        numel: how many, at least 1.
        wanted: 1 … numel.
    """
    count = min(max(numel >> _SHARE, _LEAST), _MOST)
    step = max(numel // count, 1) | 1  # odd: no column of a matrix again and again
    sample = np.sort(sizes(0, numel, step).numpy())
    deviations = _DEVIATIONS
    while True:
        low, high = _bracket(sample, 1 - wanted / numel, deviations)
        above, values, places = _between(sizes, numel, low, high)
        if above < wanted <= above + len(values):
            return _place(values, places, wanted - above)
        deviations *= _WIDER


def _bracket(sample: np.ndarray, share: float, deviations: float) -> tuple[np.float32, np.float32]:
    """Two magnitudes that the one with this share of all below it is between, or is one of."""
    count = len(sample)
    spread = deviations * math.sqrt(count * share * (1 - share)) + 1
    first, last = math.floor(share * count - spread), math.ceil(share * count + spread)
    low = sample[first] if first >= 0 else np.float32(0)
    return low, sample[last] if last < count else np.float32(np.inf)


def _between(
    sizes: Sizes, numel: int, low: np.float32, high: np.float32
) -> tuple[int, np.ndarray, np.ndarray]:
    """How many are above ``high``; what is from ``low`` to ``high``, and its indices, ascending."""
    above, values, places = 0, [], []
    for start in range(0, numel, TILE):
        tile = sizes(start, min(start + TILE, numel)).numpy()
        over = tile > high
        above += int(np.count_nonzero(over))
        inside = np.flatnonzero((tile >= low) ^ over)
        values.append(tile[inside])
        places.append(inside + start)
    return above, np.concatenate(values), np.concatenate(places)


def _place(values: np.ndarray, places: np.ndarray, wanted: int) -> tuple[float, int]:
    limit = np.sort(values)[len(values) - wanted]  # faster than a partition: vectorised
    equal = np.flatnonzero(values == limit)
    spare = wanted - int(np.count_nonzero(values > limit))
    return float(limit), int(places[equal[spare - 1]])
