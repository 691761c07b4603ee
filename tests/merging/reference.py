"""The methods in float64, written as METHODS.md reads and without regard to speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evomerge.merging import uniform
from evomerge.merging.masks import drawn_density
from evomerge.recipe import Contribution, TensorMerge
from tests.merging.worlds import METHODS

Tensor = torch.Tensor


@dataclass(frozen=True)
class Expected:
    """A merged tensor, and how exactly it is known.

    Args:
        value: float64.
        scale: what rounding errors are relative to, element by element.
        undecided: elements whose sign was elected by a sum that is 0 but for rounding.
    """

    value: Tensor
    scale: Tensor
    undecided: Tensor

    def check(self, merged: Tensor, unit: float = 2.0**-24) -> None:
        """Refuse a tensor that differs by more than a few roundings of size ``unit``."""
        wrong = (merged.to(torch.float64) - self.value).abs() > 16 * unit * self.scale
        assert not (wrong & ~self.undecided).any()


def expected(spec: TensorMerge, base: Tensor | None, tensors: Sequence[Tensor]) -> Expected:
    """The merge of one tensor."""
    weights = [part.weight for part in spec.contributions]
    if base is None:
        return _linear(spec, weights, [tensor.to(torch.float64) for tensor in tensors])
    start = base.to(torch.float64)
    deltas = [
        sparsified(spec, part, tensor.to(torch.float64) - start) * part.weight
        for part, tensor in zip(spec.contributions, tensors, strict=True)
    ]
    size = sum((delta.abs() for delta in deltas), torch.zeros_like(start))
    undecided = torch.zeros(start.shape, dtype=torch.bool)
    if METHODS[spec.method].elects:
        total = sum(deltas, torch.zeros_like(start))
        undecided = (total.abs() < 1e-5 * size) & torch.tensor(spec.rescale)
        sign = torch.where(total >= 0, 1.0, -1.0)
        agree = [delta.sign() == sign for delta in deltas]
    else:
        agree = [torch.ones(start.shape, dtype=torch.bool) for _ in deltas]
    change, divisor = torch.zeros_like(start), torch.zeros_like(start)
    for delta, weight, use in zip(deltas, weights, agree, strict=True):
        change += torch.where(use, delta, 0.0)
        divisor += torch.where(use, weight, 0.0)
    if spec.normalize:
        divisor[divisor.abs() < 1e-8] = 1.0
        change, size = change / divisor, size / divisor.abs()
    scale = start.abs() + abs(spec.lambda_) * size
    return Expected(start + spec.lambda_ * change, scale, undecided)


def _linear(spec: TensorMerge, weights: Sequence[float], tensors: Sequence[Tensor]) -> Expected:
    divisor = sum(weights) if spec.normalize else 1.0
    pairs = list(zip(weights, tensors, strict=True))
    value = sum((w * t for w, t in pairs), torch.zeros_like(tensors[0])) / divisor
    scale = sum((abs(w) * t.abs() for w, t in pairs), torch.zeros_like(tensors[0])) / abs(divisor)
    return Expected(value, scale, torch.zeros(value.shape, dtype=torch.bool))


def sparsified(spec: TensorMerge, part: Contribution, delta: Tensor) -> Tensor:
    """A task vector with the elements dropped that its method drops, and rescaled."""
    sparsifier = METHODS[spec.method].sparsifier
    if sparsifier is None or part.density >= 1 or delta.numel() == 0:
        return delta
    if sparsifier == "magnitude":
        keep = largest(delta, part.density)
    elif sparsifier == "outliers":
        keep = middle(delta, part.density, part.gamma)
    else:
        u = uniform(spec.mask_seed, part.label, part.tensor, delta.numel()).to(torch.float64)
        keep = u.reshape(delta.shape) < probabilities(sparsifier, delta, part)
    kept = torch.where(keep, delta, 0.0)
    before, after = float(delta.abs().sum()), float(kept.abs().sum())
    if spec.rescale and before >= 1e-7 and after >= 1e-7:
        kept = kept * (before / after)
    return kept


def largest(delta: Tensor, density: float) -> Tensor:
    """The ⌊d·n⌋ largest, at least one, the first of equal ones."""
    sizes = delta.abs().reshape(-1).tolist()
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    keep = torch.zeros(len(sizes), dtype=torch.bool)
    keep[order[: max(1, int(density * len(sizes)))]] = True
    return keep.reshape(delta.shape)


def middle(delta: Tensor, density: float, gamma: float) -> Tensor:
    """⌊d·n⌋ elements below the ⌊γ·n⌋ largest, or below fewer where the two are more than n."""
    sizes = delta.abs().reshape(-1).tolist()
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    kept = int(density * len(sizes))
    first = min(int(gamma * len(sizes)), len(sizes) - kept)
    keep = torch.zeros(len(sizes), dtype=torch.bool)
    keep[order[first : first + kept]] = True
    return keep.reshape(delta.shape)


def probabilities(sparsifier: str, delta: Tensor, part: Contribution) -> Tensor:
    """Of being kept, element by element."""
    d, epsilon = part.density, part.epsilon
    length = delta.shape[-1] if delta.dim() else 1
    if sparsifier == "random" or length == 1 or epsilon == 0:
        return torch.full(delta.shape, drawn_density(d), dtype=torch.float64)
    rows = []
    for row in delta.reshape(-1, length).abs().tolist():
        order = sorted(range(length), key=lambda index: (row[index], index))
        q = [0.0] * length
        for r, index in enumerate(order, start=1):
            q[index] = (d - epsilon) + 2 * epsilon * ((r - 1) / (length - 1))
        rows.append(q)
    return torch.tensor(rows, dtype=torch.float64).reshape(delta.shape)


def unsigned(ranks: torch.Tensor) -> torch.Tensor:
    """Stored ranks as int64: those of 16 bits have no sign."""
    return (ranks.view(torch.uint16) if ranks.dtype == torch.int16 else ranks).to(torch.int64)
