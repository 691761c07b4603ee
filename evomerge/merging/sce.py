"""SCE: select the elements that vary most, weigh the models by what is left, erase minorities.

From FuseChat (arXiv 2408.07990, section 3.2); special cases are mergekit 0.1.5's. Only the choice
of ``select_topk`` changes between candidates: with all elements selected, and whenever the choice
is the last one again, a candidate is one pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evomerge.merging.mixtures import Pass, as_it_is, same
from evomerge.merging.products import Fibres, products
from evomerge.merging.selection import Counts, Limit, count, limit
from evomerge.merging.taskvectors import Memory, TaskVector
from evomerge.recipe import TensorMerge

_NO_SUM = 1e-6  # a smaller sum of mean squares weighs all models alike
_SMALLEST_DIVISOR = 1e-6


@dataclass(frozen=True)
class _Chosen:
    """The elements that are merged, and Σδ² over them for each model."""

    limit: Limit | None
    squares: tuple[float, ...]


def sce(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    memory: Memory | None = None,
) -> Pass:
    """θ₀ + Σwδ/Σw over the models that agree with the elected sign, at the selected elements.

    Selected are the ⌊select_topk·m⌋ elements whose task vectors vary most between the models, m
    being how many vary at all; of equal ones the first. Elsewhere the base stays. w is a model's
    share of Σδ² over the selected elements (alike where the mean squares sum to less than 1e-6).
    The sign is that of Σδ, + where that is 0. Σw below 1e-6 divides by 1e-6.

    Args:
        spec: ``select_topk`` and the names; the weights play no part.
        base: the base model's tensor.
        tensors: the models', of its shape; none at all gives the base.
        memory: keeps how the variances are spread, and the last selection.

    Raises:
        ValueError: there is no base.
    """
    if base is None:
        raise ValueError(f"{spec.name}: sce needs a base model")
    if not tensors or base.numel() == 0 or spec.select_topk <= 0:
        return as_it_is(base)
    names = tuple((part.model, part.tensor) for part in spec.contributions)
    deltas = _Deltas([TaskVector(base, tensor) for tensor in tensors])
    memory = memory or Memory()
    key = ("sce", spec.base, *names)
    if spec.select_topk >= 1:
        if memory.kept((*key, "equal"), lambda: same(tensors)):
            return as_it_is(tensors[0])
        chosen = memory.kept((*key, "all"), lambda: _Chosen(None, deltas.squares(None)))
    else:
        counts = memory.kept((*key, "variances"), deltas.counts)
        wanted = int(counts.nonzero * spec.select_topk)
        if wanted == 0:
            return as_it_is(base)
        chosen = memory.kept((*key, "chosen"), lambda: deltas.choose(counts, wanted), wanted)
    return _merged(base, deltas, chosen)


class _Deltas:
    """Several models' task vectors of one tensor."""

    def __init__(self, vectors: Sequence[TaskVector]) -> None:
        self._vectors = vectors
        self.numel, self.device = vectors[0].numel, vectors[0].device

    def tiles(self, start: int, stop: int, within: Limit | None = None) -> list[torch.Tensor]:
        """Elements ``start … stop - 1``, 0 where they are not chosen; the caller's to change."""
        tiles = [vector.piece(start, stop) for vector in self._vectors]
        if within is not None:
            keep = within.above(_variance(tiles).view(torch.int32), start).to(torch.float32)
            for tile in tiles:
                tile.mul_(keep)
        return tiles

    def squares(self, within: Limit | None) -> tuple[float, ...]:
        """Σδ² of each model over the chosen elements."""
        pairs = [(i, i) for i in range(len(self._vectors))]
        fibres = Fibres.whole((self.numel,))
        sums = products(lambda start, stop: self.tiles(start, stop, within), pairs, fibres)
        return tuple(sums[:, 0].tolist())

    def counts(self) -> Counts:
        """How the variances are spread."""
        return count(self._bits, self.numel, self.device)

    def choose(self, counts: Counts, wanted: int) -> _Chosen:
        """The ``wanted`` elements of largest variance."""
        within = limit(self._bits, counts, wanted, self.numel)
        return _Chosen(within, self.squares(within))

    def _bits(self, start: int, stop: int) -> torch.Tensor:
        return _variance(self.tiles(start, stop)).view(torch.int32)


def _variance(tiles: Sequence[torch.Tensor]) -> torch.Tensor:
    """The models' variance at each element (of the population), float32.

    From the differences to the first model, of which the largest is no larger than the spread:
    nothing cancels, and equal models have exactly 0.
    """
    first, size = tiles[0], len(tiles)
    gaps = [tile - first for tile in tiles[1:]]
    mean = torch.zeros_like(first)
    for gap in gaps:
        mean.add_(gap)
    mean.div_(size)
    total = mean.square()
    for gap in gaps:
        total.add_(gap.sub_(mean).square_())
    return total.div_(size)


def _weights(squares: Sequence[float], numel: int) -> list[float]:
    total = math.fsum(squares)
    if total / numel < _NO_SUM:
        return [1 / len(squares)] * len(squares)
    return [square / total for square in squares]


def _merged(base: torch.Tensor, deltas: _Deltas, chosen: _Chosen) -> Pass:
    weights = _weights(chosen.squares, base.numel())
    start_from = base.reshape(-1)

    def piece(start: int, stop: int) -> torch.Tensor:
        change = fuse(deltas.tiles(start, stop, chosen.limit), weights)
        return change.add_(start_from[start:stop])

    return Pass(piece)


def fuse(tiles: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Σwδ/Σw over those that agree with the sign of Σδ; 0 where none does.

    Args:
        tiles: the models' task vectors, float32, of one shape.
        weights: w, one per model.

    Returns:
        float32, of that shape.
    """
    total = tiles[0].clone()
    for tile in tiles[1:]:
        total.add_(tile)
    # Turned by the elected sign, those that agree are positive. (It can be - for -0: then all
    # tiles are 0, and none agrees.)
    sign = torch.copysign(torch.ones_like(total), total)
    change, divisor = total.zero_(), torch.zeros_like(total)
    for tile, weight in zip(tiles, weights, strict=True):
        agreeing = (tile * sign).relu_()
        change.add_(agreeing.mul(weight))
        divisor.add_(agreeing.sign_().mul_(weight))
    return change.mul_(sign).div_(divisor.clamp_(min=_SMALLEST_DIVISOR))
