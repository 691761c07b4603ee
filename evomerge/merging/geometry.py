"""Merge methods that go by angles between models: SLERP, NuSLERP and Model Stock.

The angles depend on the models alone: they are computed once per tensor, in float64, and kept in a
memory. What a candidate chooses is then a combination Σcx with one c per tensor and model, or per
row, made in one pass. Special cases are mergekit 0.1.5's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from evomerge.merging.mixtures import Copied, Made, mixed, same
from evomerge.merging.products import Fibres, Tiles, products
from evomerge.merging.taskvectors import Memory
from evomerge.recipe import TensorMerge

_ON_A_LINE = 0.9995  # slerp: a larger |cos| interpolates linearly
_NO_NORM = 1e-8  # slerp: a norm no larger counts as 1, so that nothing is near in angle
_ROUNDS_TO_ONE = 1 - 2.0**-25  # nuslerp: a |cos| of 1 in float32
_SMALLEST_NORM = 1e-7  # nuslerp: smaller norms count as this
_SMALLEST_PRODUCT = 1e-6  # model_stock: the same for the product of two norms
_SINGULAR = 1e-6  # model_stock: 1 + (N - 1)cos nearer to 0 keeps the base


def slerp(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    memory: Memory,
) -> Made:
    """From the base to one other model along the arc between their weights (Shoemake, 1985).

    With θ the angle between the tensors as wholes: θ₀·sin((1 − t)θ)/sin θ + θ₁·sin(tθ)/sin θ, or
    (1 − t)θ₀ + tθ₁ where |cos θ| > 0.9995. t = 0 is the base, t = 1 the other model.

    Args:
        spec: ``t`` and the names; its one contribution's weight plays no part.
        base: the base model's tensor, any shape.
        tensors: the other model's, of the same shape; none at all gives the base.
        memory: keeps the angle.

    Raises:
        ValueError: there is no base, or more than one other model.
    """
    start = _based(spec, base)
    if not tensors:
        return Copied(start)
    if len(tensors) > 1:
        raise ValueError(f"{spec.name}: slerp merges 1 model with the base, not {len(tensors)}")
    pair, fibres = (start, tensors[0]), Fibres.whole(start.shape)
    key = ("slerp", spec.base, *_names(spec))
    return _arc(pair, None, spec.t, fibres, lambda: memory.kept(key, lambda: _whole_angle(pair)))


def nuslerp(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    memory: Memory,
) -> Made:
    """Two models along the arc between their task vectors, or between their weights without a base.

    t is the second weight's share of both (0.5 where |Σw| < 1e-6). The vectors are the whole
    tensors (``flatten``), their columns (first dimension, ``row_wise``) or their rows (last
    dimension). Vectors whose cosine is ±1 in float32 are interpolated linearly.

    Args:
        spec: weights, ``flatten``, ``row_wise`` and the names.
        base: the base model's tensor, or None.
        tensors: the two models', of one shape.
        memory: keeps the angles.

    Raises:
        ValueError: there are not two models.
    """
    if len(tensors) != 2:
        raise ValueError(f"{spec.name}: nuslerp merges 2 models, not {len(tensors)}")
    first, second = (part.weight for part in spec.contributions)
    total = first + second
    t = 0.5 if abs(total) < 1e-6 else second / total
    shape, pair = tensors[0].shape, (tensors[0], tensors[1])
    along = Fibres.first if spec.row_wise else Fibres.last
    fibres = (Fibres.whole if spec.flatten else along)(shape)
    key = ("nuslerp", spec.base, fibres, *_names(spec))
    return _arc(
        pair, base, t, fibres, lambda: memory.kept(key, lambda: _angles(pair, base, fibres))
    )


def model_stock(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    memory: Memory,
) -> Made:
    """Between the base and the models' mean, by how alike they are (arXiv 2403.19522, eq. 5 and 6).

    tθ̄ + (1 − t)θ₀ with t = N·c/(1 + (N − 1)c), c the mean cosine of all pairs of task vectors:
    of whole tensors, or of each row (last dimension) with ``filter_wise``.

    Args:
        spec: ``filter_wise`` and the names; the weights play no part.
        base: the base model's tensor.
        tensors: the models', of its shape, at least two; none at all gives the base.
        memory: keeps t.

    Raises:
        ValueError: there is no base, or a single model.
    """
    start = _based(spec, base)
    if not tensors or start.numel() == 0:
        return Copied(start)
    if len(tensors) == 1:
        raise ValueError(f"{spec.name}: model_stock merges at least 2 models with the base, not 1")
    fibres = (Fibres.last if spec.filter_wise else Fibres.whole)(start.shape)
    key = ("model_stock", spec.base, fibres, *_names(spec))
    ratio = memory.kept(key, lambda: _ratio(start, tensors, fibres))
    share = ratio / len(tensors)
    if fibres.count == 1 and float(ratio) < 0.5:
        return mixed(start, [(share, tensor) for tensor in tensors], fibres)
    terms = [(1 - ratio, start), *((share, tensor) for tensor in tensors[1:])]
    still = ratio.eq(0)
    return mixed(tensors[0], terms, fibres, (start, still) if bool(still.any()) else None)


def _based(spec: TensorMerge, base: torch.Tensor | None) -> torch.Tensor:
    if base is None:
        raise ValueError(f"{spec.name}: {spec.method} needs a base model")
    return base


def _names(spec: TensorMerge) -> tuple[Hashable, ...]:
    return tuple((part.model, part.tensor) for part in spec.contributions)


@dataclass(frozen=True)
class _Angles:
    """Between two tensors' vectors.

    Args:
        theta: in radians, float64, shape [count].
        linear: the vectors between which the way is a straight line; booleans, shape [count].
        equal: the tensors hold the same numbers.
    """

    theta: torch.Tensor
    linear: torch.Tensor
    equal: bool


def _whole_angle(pair: tuple[torch.Tensor, torch.Tensor]) -> _Angles:
    """Between two tensors' weights."""
    square, other, dot = _gram(pair, None, Fibres.whole(pair[0].shape))
    no_norm = _NO_NORM**2
    norms = [torch.where(x > no_norm, x, 1.0) for x in (square, other)]
    cos = dot.div((norms[0] * norms[1]).sqrt()).clamp(-1, 1)
    equal = bool(square == dot) and bool(other == dot) and same(pair)
    return _Angles(cos.acos(), cos.abs() > _ON_A_LINE, equal)


def _angles(
    pair: tuple[torch.Tensor, torch.Tensor], base: torch.Tensor | None, fibres: Fibres
) -> _Angles:
    """Between two tensors' vectors, measured from the base's."""
    square, other, dot = _gram(pair, base, fibres)
    norms = [x.clamp(min=_SMALLEST_NORM**2) for x in (square, other)]
    cos = dot.div((norms[0] * norms[1]).sqrt()).clamp(-1, 1)
    equal = bool((square == dot).all()) and bool((other == dot).all()) and same(pair)
    return _Angles(cos.acos(), cos.abs() >= _ROUNDS_TO_ONE, equal)


def _ratio(base: torch.Tensor, tensors: Sequence[torch.Tensor], fibres: Fibres) -> torch.Tensor:
    """Model Stock's t; float64, shape [count]."""
    count = len(tensors)
    pairs = list(combinations(range(count), 2))
    sums = products(_from(base, tensors), [*((i, i) for i in range(count)), *pairs], fibres)
    cosines = [
        # The root of a product, which is exact where both are equal.
        sums[count + k].div((sums[i] * sums[j]).sqrt().clamp(min=_SMALLEST_PRODUCT)).clamp(-1, 1)
        for k, (i, j) in enumerate(pairs)
    ]
    cos = torch.stack(cosines).mean(0)
    divisor = 1 + (count - 1) * cos
    return (count * cos).div(divisor).masked_fill(divisor.abs() < _SINGULAR, 0.0)


def _gram(
    pair: tuple[torch.Tensor, torch.Tensor], base: torch.Tensor | None, fibres: Fibres
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """‖x‖², ‖y‖² and xy of two tensors' vectors; float64, shape [count] each."""
    square, other, dot = products(_from(base, pair), [(0, 0), (1, 1), (0, 1)], fibres)
    return square, other, dot


def _from(base: torch.Tensor | None, tensors: Sequence[torch.Tensor]) -> Tiles:
    """The tensors, or their task vectors, in float64."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    if base is None:
        return lambda start, stop: [x[start:stop].to(torch.float64) for x in flat]
    origin = base.reshape(-1)

    def tiles(start: int, stop: int) -> list[torch.Tensor]:
        place = origin[start:stop].to(torch.float64)
        return [x[start:stop].to(torch.float64) - place for x in flat]

    return tiles


def _arc(
    pair: tuple[torch.Tensor, torch.Tensor],
    base: torch.Tensor | None,
    t: float,
    fibres: Fibres,
    angles: Callable[[], _Angles],
) -> Made:
    """From the first tensor (t = 0) to the second (t = 1), along arcs around the base's or 0."""
    if t in (0, 1) or fibres.numel == 0:
        return Copied(pair[int(t == 1)])
    found = angles()
    if found.equal:
        return Copied(pair[0])
    # Made from the nearer one.
    (near, far), t = (pair, t) if t <= 0.5 else (pair[::-1], 1 - t)
    theta = torch.where(found.linear, 0.5, found.theta)
    to_far = torch.where(found.linear, t, (t * theta).sin() / theta.sin())
    to_near = torch.where(found.linear, 1 - t, ((1 - t) * theta).sin() / theta.sin())
    rest = torch.where(found.linear, 0.0, 1 - to_near - to_far)
    return mixed(near, [(to_far, far), (rest, base)], fibres)
