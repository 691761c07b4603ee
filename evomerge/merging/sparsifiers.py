"""Which elements of a task vector are kept, and what the kept ones are multiplied by.

``density`` d is the share that is kept, in (0, 1). The meaning is mergekit 0.1.5's, apart from
equal magnitudes at the threshold: it keeps any of them, we those of smaller index.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from evomerge.merging.masks import BITS, Stream, threshold
from evomerge.merging.taskvectors import TaskVector

_NEGLIGIBLE = 1e-7  # a smaller Σ|δ| is not rescaled
_MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 without its sign: ordered as the magnitudes are
_LOW, _HIGH = 1 << 16, 1 << 15


def keep_largest(vector: TaskVector, density: float) -> torch.Tensor:
    """The ⌊d·n⌋ elements of largest magnitude, at least one (TIES, arXiv 2306.01708, trim).

    Returns:
        Booleans, shape [numel].
    """
    count = max(1, int(density * vector.numel))
    places = vector.places()
    if places is not None:
        return places < count
    limit, spare = _limit(vector, count)
    keep = torch.empty(vector.numel, dtype=torch.bool, device=vector.device)
    for start, stop in vector.pieces():
        bits = _bits(vector, start, stop)
        keep[start:stop] = bits > limit
        if spare:
            tied = (bits == limit).nonzero()[:spare, 0]
            keep[start:stop][tied] = True
            spare -= len(tied)
    return keep


def keep_at_random(vector: TaskVector, density: float, stream: Stream) -> torch.Tensor:
    """Each element with probability d (DARE, arXiv 2311.03099, equation 2 with p = 1 − d).

    Returns:
        Booleans, shape [numel].
    """
    keep = torch.empty(vector.numel, dtype=torch.bool, device=vector.device)
    limit = threshold(density)
    for start, stop in vector.pieces():
        torch.lt(vector.bits(stream, start, stop), limit, out=keep[start:stop])
    return keep


def keep_by_rank(
    vector: TaskVector, density: float, epsilon: float, stream: Stream
) -> torch.Tensor:
    """Each element with a probability that grows with its rank (DELLA, arXiv 2406.11617, eq. 1-3).

    Within each row the ascending rank r = 1 … n of |δ| gives q = (d − ε) + 2ε·(r − 1)/(n − 1); a
    row of one element has q = d. Equal magnitudes rank by index.

    Returns:
        Booleans, shape [numel].
    """
    if vector.row == 1:
        return keep_at_random(vector, density, stream)
    keep = torch.empty(vector.numel, dtype=torch.bool, device=vector.device)
    limits = _rank_limits(vector.row, density, epsilon).to(vector.device)
    for start, stop in vector.pieces(vector.row):
        below = limits.index_select(0, vector.ranks(start, stop))
        torch.lt(vector.bits(stream, start, stop), below, out=keep[start:stop])
    return keep


def rescale_factor(vector: TaskVector, keep: torch.Tensor) -> float:
    """Σ|δ| / Σ|kept δ|, which restores the L1 norm; 1 where either sum is below 1e-7."""
    before = vector.magnitude
    if before < _NEGLIGIBLE:
        return 1.0
    after = vector.magnitude_of(keep)
    return before / after if after >= _NEGLIGIBLE else 1.0


def _bits(vector: TaskVector, start: int, stop: int) -> torch.Tensor:
    return vector.piece(start, stop).view(torch.int32).bitwise_and_(_MAGNITUDE)


@lru_cache(maxsize=256)
def _rank_limits(length: int, density: float, epsilon: float) -> torch.Tensor:
    """What the bits of the element of rank 1 … n must be below; int32, made in float64."""
    shares = torch.arange(length, dtype=torch.float64).mul_(2 * epsilon / (length - 1))
    shares.add_(density - epsilon)
    return shares.mul_(2.0**BITS).ceil_().clamp_(0, 2**BITS).to(torch.int32)


def _limit(vector: TaskVector, count: int) -> tuple[int, int]:
    """The magnitude (its bits) of the ``count``-th largest, and how many equal to it are kept.

    Found by counting the upper half of the bits, then the lower half among those at the limit: the
    tensor is gone through twice, and never sorted or copied.
    """
    counts = torch.zeros(_HIGH, dtype=torch.int64, device=vector.device)
    for start, stop in vector.pieces():
        counts += torch.bincount(_bits(vector, start, stop) >> 16, minlength=_HIGH)
    high, spare = _highest(counts, count)
    counts = torch.zeros(_LOW, dtype=torch.int64, device=vector.device)
    for start, stop in vector.pieces():
        bits = _bits(vector, start, stop)
        counts += torch.bincount(bits[(bits >> 16) == high] & (_LOW - 1), minlength=_LOW)
    low, spare = _highest(counts, spare)
    return high << 16 | low, spare


def _highest(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """The bin of the ``wanted``-th highest element, and how many of that bin are wanted."""
    above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, wanted))
    spare = wanted - (int(above[index - 1]) if index else 0)
    return len(counts) - 1 - index, spare
