"""Which elements of a task vector are kept, and what the kept ones are multiplied by.

Everything takes and gives float32. ``density`` d is the share that is kept; at d ≥ 1 nothing is
done. mergekit 0.1.5's meaning (METHODS: Sparsifiers), apart from ties in magnitude, which it breaks
arbitrarily and we by index.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_NEGLIGIBLE = 1e-7  # mergekit leaves a task vector alone whose sum of magnitudes is smaller

Uniform = Callable[[], torch.Tensor]
"""Makes the elements' uniform numbers, shape ``[numel]``; called only where a mask is drawn."""


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


def keep_at_random(delta: torch.Tensor, density: float, uniform: Uniform) -> torch.Tensor:
    """Each element with probability d (DARE, arXiv 2311.03099, eq. 2 with p = 1 − d)."""
    return (uniform() < density).reshape(delta.shape)


def keep_by_rank(
    delta: torch.Tensor, density: float, epsilon: float, uniform: Uniform
) -> torch.Tensor:
    """Each element with a probability that grows with its rank (DELLA, arXiv 2406.11617, eq. 1–3).

    Within each row (the last dimension; a vector is one row) the ascending rank r = 1 … n of |δ|
    gives q = (d − ε) + 2ε·(r − 1)/(n − 1); in a row of one element q = d. Equal magnitudes rank by
    index.
    """
    rows = delta.reshape(-1, delta.shape[-1] if delta.dim() else 1)
    length = rows.shape[1]
    if length == 1:
        return keep_at_random(delta, density, uniform)
    order = rows.abs().argsort(dim=1, stable=True)
    place = torch.arange(length, device=delta.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place).to(torch.float32)
    probability = rank.mul_(2 * epsilon / (length - 1)).add_(density - epsilon)
    return (uniform().reshape(rows.shape) < probability).reshape(delta.shape)


def masked(delta: torch.Tensor, keep: torch.Tensor, *, rescale: bool) -> torch.Tensor:
    """The kept elements, times Σ|δ| / Σ|kept δ| if ``rescale`` (one factor per tensor).

    The sums are taken in float64: thousands of millions of float32 terms would lose digits.
    """
    kept = torch.where(keep, delta, torch.zeros((), dtype=delta.dtype, device=delta.device))
    if not rescale:
        return kept
    before = float(delta.abs().sum(dtype=torch.float64))
    after = float(kept.abs().sum(dtype=torch.float64))
    if before < _NEGLIGIBLE or after < _NEGLIGIBLE:
        return kept
    return kept.mul_(before / after)
