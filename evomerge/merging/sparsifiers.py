"""Which elements of a task vector are kept, and what the kept ones are multiplied by.

Everything takes and gives float32. ``density`` d is the share that is kept; at d ≥ 1 nothing is
done. mergekit 0.1.5's meaning (METHODS: Sparsifiers), apart from ties in magnitude, which it breaks
arbitrarily and we by index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch

from evomerge.merging.masks import BITS, threshold

_NEGLIGIBLE = 1e-7  # mergekit leaves a task vector alone whose sum of magnitudes is smaller
_RUN = 1 << 14  # elements that are summed as one; torch shares out sums of 2¹⁵ or more

Bits = Callable[[], torch.Tensor]
"""Makes the elements' random integers, int32 ``[numel]``; called only where a mask is drawn."""


def keep_largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The ⌊d·n⌋ elements of largest magnitude, at least one (TIES, arXiv 2306.01708, trim).

    Of elements of equal magnitude at the threshold, those of smaller index.

    Args:
        delta: any shape with at least one element.
        density: in (0, 1).

    Returns:
        Booleans of the same shape.
    """
    size = delta.reshape(-1).abs()
    count = max(1, int(density * size.numel()))
    threshold = torch.kthvalue(size, size.numel() - count + 1).values
    keep = size > threshold
    tied = size == threshold
    keep |= tied & (tied.cumsum(0) <= count - keep.sum())
    return keep.reshape(delta.shape)


def keep_at_random(delta: torch.Tensor, density: float, bits: Bits) -> torch.Tensor:
    """Each element with probability d (DARE, arXiv 2311.03099, eq. 2 with p = 1 − d)."""
    return (bits() < threshold(density)).reshape(delta.shape)


def keep_by_rank(delta: torch.Tensor, density: float, epsilon: float, bits: Bits) -> torch.Tensor:
    """Each element with a probability that grows with its rank (DELLA, arXiv 2406.11617, eq. 1–3).

    Within each row (the last dimension; a vector is one row) the ascending rank r = 1 … n of |δ|
    gives q = (d − ε) + 2ε·(r − 1)/(n − 1); in a row of one element q = d. Equal magnitudes rank by
    index.
    """
    length = delta.shape[-1] if delta.dim() else 1
    if length == 1 or epsilon == 0:
        return keep_at_random(delta, density, bits)
    rows = delta.reshape(-1, length)
    order = rows.abs().argsort(dim=1, stable=True)
    by_rank = _rank_thresholds(length, density, epsilon).to(delta.device).expand_as(order)
    below = torch.empty(order.shape, dtype=torch.int32, device=delta.device)
    below.scatter_(1, order, by_rank)
    return (bits().reshape(rows.shape) < below).reshape(delta.shape)


def masked(delta: torch.Tensor, keep: torch.Tensor, *, rescale: bool) -> torch.Tensor:
    """The kept elements, times Σ|δ| / Σ|kept δ| if ``rescale`` (one factor per tensor)."""
    kept = torch.where(keep, delta, torch.zeros((), dtype=delta.dtype, device=delta.device))
    if not rescale:
        return kept
    before, after = magnitude_sum(delta), magnitude_sum(kept)
    if before < _NEGLIGIBLE or after < _NEGLIGIBLE:
        return kept
    return kept.mul_(before / after)


def magnitude_sum(delta: torch.Tensor) -> float:
    """Σ|δ|, in float64 (thousands of millions of float32 terms would lose digits).

    Runs of a fixed length are summed first: torch splits one long sum among the threads that there
    are, and the last digit would tell how many.
    """
    sizes = delta.reshape(-1).abs()
    whole = sizes.numel() // _RUN * _RUN
    runs = sizes[:whole].view(-1, _RUN).sum(dim=1, dtype=torch.float64)
    rest = sizes[whole:].view(1, -1).sum(dim=1, dtype=torch.float64)
    # fsum is exact before it rounds once: the order of the runs does not matter either.
    return math.fsum(torch.cat([runs, rest]).tolist())


@lru_cache(maxsize=256)
def _rank_thresholds(length: int, density: float, epsilon: float) -> torch.Tensor:
    """What the bits of the element of rank 1 … n must be below, in float64 until it is rounded."""
    step = torch.arange(length, dtype=torch.float64) / (length - 1)
    share = (density - epsilon) + 2 * epsilon * step
    return share.mul_(2.0**BITS).ceil_().clamp_(0, 2**BITS).to(torch.int32)
