"""slerp, nuslerp, model_stock, sce and breadcrumbs in float64, as their definitions read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from evomerge.recipe import TensorMerge

Tensor = torch.Tensor


@dataclass(frozen=True)
class Expected:
    """A merged tensor, and how exactly it is known.

    Args:
        value: float64.
        scale: what rounding errors are relative to, element by element.
        undecided: elements that a sum of 0 but for rounding decides.
        brittle: a choice about the whole tensor hangs on a rounding.
    """

    value: Tensor
    scale: Tensor
    undecided: Tensor
    brittle: bool = False

    def check(self, merged: Tensor, unit: float = 2.0**-24) -> None:
        """Refuse a tensor that differs by more than a few roundings of size ``unit``."""
        wrong = (merged.to(torch.float64) - self.value).abs() > 16 * unit * self.scale
        assert not (wrong & ~self.undecided).any()


def expected(spec: TensorMerge, base: Tensor | None, tensors: Sequence[Tensor]) -> Expected:
    """The merge of one tensor."""
    start = None if base is None else base.to(torch.float64)
    return _METHODS[spec.method](spec, start, [tensor.to(torch.float64) for tensor in tensors])


def _slerp(spec: TensorMerge, base: Tensor | None, tensors: Sequence[Tensor]) -> Expected:
    assert base is not None
    (other,) = tensors
    norms = [float(x.norm()) for x in (base, other)]
    norms = [norm if norm > 1e-8 else 1.0 for norm in norms]
    cos = max(-1.0, min(1.0, float((base / norms[0] * (other / norms[1])).sum())))
    theta, t = math.acos(cos), spec.t
    if abs(cos) > 0.9995:
        a, b = 1 - t, t
    else:
        a, b = (math.sin(x * theta) / math.sin(theta) for x in (1 - t, t))
    scale = (1 + abs(a) + abs(b)) * (base.abs() + other.abs())
    return _known(a * base + b * other, scale, abs(abs(cos) - 0.9995) < 1e-9)


def _nuslerp(spec: TensorMerge, base: Tensor | None, tensors: Sequence[Tensor]) -> Expected:
    first, second = (part.weight for part in spec.contributions)
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    origin = torch.zeros_like(tensors[0]) if base is None else base
    x, y = (tensor - origin for tensor in tensors)
    if spec.flatten or x.dim() == 0:
        change, size, brittle = _along(t, x.reshape(1, -1), y.reshape(1, -1))
        change, size = change.reshape(x.shape), size.reshape(x.shape)
    elif spec.row_wise:
        change, size, brittle = _along(t, x.transpose(0, -1), y.transpose(0, -1))
        change, size = change.transpose(0, -1), size.transpose(0, -1)
    else:
        change, size, brittle = _along(t, x, y)
    scale = size + origin.abs() + x.abs() + y.abs()
    return _known(origin + change, scale, brittle)


def _along(t: float, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Vectors along the last dimension."""
    units = [v / v.norm(dim=-1, keepdim=True).clamp(min=1e-7) for v in (x, y)]
    cos = (units[0] * units[1]).sum(-1, keepdim=True).clamp(-1, 1)
    linear = cos.to(torch.float32).abs() == 1
    theta = torch.where(linear, 0.5, cos.acos())
    a = torch.where(linear, 1 - t, ((1 - t) * theta).sin() / theta.sin())
    b = torch.where(linear, t, (t * theta).sin() / theta.sin())
    brittle = bool(((cos.abs() - (1 - 2.0**-25)).abs() < 1e-12).any())
    return a * x + b * y, (1 + a.abs() + b.abs()) * (x.abs() + y.abs()), brittle


def _model_stock(spec: TensorMerge, base: Tensor | None, tensors: Sequence[Tensor]) -> Expected:
    assert base is not None
    shape, count = base.shape, len(tensors)
    rows = (-1, shape[-1]) if spec.filter_wise and len(shape) > 1 else (1, -1)
    origin, *models = (x.reshape(rows) if x.numel() else x for x in (base, *tensors))
    if base.numel() == 0:
        return _known(base, base)
    cosines = []
    for one, other in combinations([model - origin for model in models], 2):
        norms = (one.norm(dim=-1) * other.norm(dim=-1)).clamp(min=1e-6)
        cosines.append(((one * other).sum(-1) / norms).clamp(-1, 1))
    cos = torch.stack(cosines).mean(0)[:, None]
    divisor = 1 + (count - 1) * cos
    brittle = bool(((divisor.abs() - 1e-6).abs() < 1e-9).any())
    t = torch.where(divisor.abs() < 1e-6, 0.0, count * cos / divisor)
    mean = torch.stack(models).mean(0)
    size = torch.stack([origin, *models]).abs().sum(0)
    # The cosine's own error grows where the divisor is small.
    scale = size * (1 + t.abs()) * (1 + 1e-7 / divisor.abs().clamp(min=1e-6))
    return _known((t * mean + (1 - t) * origin).reshape(shape), scale.reshape(shape), brittle)


def _sce(spec: TensorMerge, base: Tensor | None, tensors: Sequence[Tensor]) -> Expected:
    assert base is not None
    if base.numel() == 0:
        return _known(base, base)
    deltas = torch.stack([tensor - base for tensor in tensors])
    keep, brittle = _varying(deltas, spec.select_topk)
    deltas = deltas * keep
    squares = deltas.square().reshape(len(tensors), -1).mean(1)
    total = float(squares.sum())
    brittle |= abs(total - 1e-6) < 1e-12
    weights = [1 / len(tensors)] * len(tensors) if total < 1e-6 else (squares / total).tolist()
    sums, size = deltas.sum(0), deltas.abs().sum(0)
    sign = torch.where(sums >= 0, 1.0, -1.0)
    change, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = delta.sign() == sign
        change += torch.where(agrees, weight * delta, 0.0)
        divisor += torch.where(agrees, weight, 0.0)
    value = base + change / divisor.clamp(min=1e-6)
    undecided = (sums.abs() < 1e-6 * size) & torch.tensor(len(tensors) > 2)
    return Expected(value, base.abs() + size, undecided, brittle)


def _varying(deltas: Tensor, share: float) -> tuple[Tensor, bool]:
    """The elements of largest variance, of equal ones the first; whether that is a close call."""
    shape, sizes = deltas.shape[1:], deltas.var(0, correction=0).reshape(-1).tolist()
    keep = torch.ones(len(sizes), dtype=torch.bool)
    if share >= 1:
        return keep.reshape(shape), False
    count = int(sum(size != 0 for size in sizes) * share)
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    keep[order[count:]] = False
    close = 0 < count < len(sizes) and sizes[order[count - 1]] < sizes[order[count]] * (1 + 1e-5)
    largest = max(sizes)
    # A variance of 0 but for rounding counts or not.
    tiny = any(0 < size < 1e-12 * largest for size in sizes)
    return keep.reshape(shape), close or tiny


def _known(value: Tensor, scale: Tensor, brittle: bool = False) -> Expected:
    return Expected(value, scale, torch.zeros(value.shape, dtype=torch.bool), brittle)


_METHODS: dict[str, Callable[[TensorMerge, Tensor | None, Sequence[Tensor]], Expected]] = {
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "model_stock": _model_stock,
    "sce": _sce,
}
