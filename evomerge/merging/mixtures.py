"""Combinations of tensors in one pass: what a candidate of the angle methods costs.

Σcx with one c per tensor, or per tensor and row, is computed as a − Σc(a − x) from one of the
tensors, a. Where the tensors are equal the result is that tensor bit for bit, and elsewhere it is
rounded at the size of their differences. What the c lack to 1 goes to the base, or to 0 where there
is none. The operations are float32 and none is fused, so that every lane of a processor rounds
alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from evomerge.merging.products import Fibres
from evomerge.merging.taskvectors import pieces

Kernel = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], int], torch.Tensor]
"""Makes a piece of a result, element by element: float32, of the tiles' shape.

Takes the same piece of each input (any floating types, one shape), factors that broadcast to it,
and the index of its first element. It changes none of them and depends on nothing else, so that it
may be compiled, for pieces of any size.
"""


@dataclass(frozen=True)
class Pass:
    """One pass over a tensor that makes the result.

    Args:
        kernel: what is done.
        inputs: flat tensors of one size.
        factors: one value, or one per vector (shape [count]), each.
        fibres: the vectors.
    """

    kernel: Kernel
    inputs: tuple[torch.Tensor, ...]
    factors: tuple[torch.Tensor, ...]
    fibres: Fibres

    @property
    def unit(self) -> int:
        """Pieces must hold multiples of so many elements."""
        return self.fibres.unit

    def piece(self, start: int, stop: int) -> torch.Tensor:
        """Elements ``start … stop - 1`` of the result: float32, shape [stop - start]."""
        tiles = [self.fibres.table(x[start:stop]) for x in self.inputs]
        factors = [self.fibres.spread(x, start, stop) for x in self.factors]
        return self.kernel(tiles, factors, start).view(-1)


def as_it_is(tensor: torch.Tensor) -> Pass:
    """A tensor's own values."""
    return Pass(_copied, (tensor.reshape(-1),), (), Fibres.whole(tensor.shape))


def same(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether tensors of one shape, of any types, hold the same numbers."""
    first, *others = (tensor.reshape(-1) for tensor in tensors)
    return all(
        bool((first[start:stop].to(torch.float32) == other[start:stop].to(torch.float32)).all())
        for start, stop in pieces(len(first), first.device)
        for other in others
    )


def mixed(
    start_from: torch.Tensor,
    terms: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    fibres: Fibres,
) -> Pass:
    """a − Σc(a − x).

    Args:
        start_from: a.
        terms: c (float64, shape [count]) and x (None stands for 0), in the order of the sum.
        fibres: the vectors that each have a c.
    """
    # 0 comes last: it is no tensor that a piece is taken of.
    live = [term for term in terms if bool((term[0] != 0).any())]
    live.sort(key=lambda term: term[1] is None)
    if not live:
        return as_it_is(start_from)
    inputs = (x.reshape(-1) for x in (start_from, *(x for _, x in live)) if x is not None)
    return Pass(mix, tuple(inputs), tuple(c.to(torch.float32) for c, _ in live), fibres)


def kept_where(made: Pass, base: torch.Tensor, still: torch.Tensor) -> Pass:
    """What :func:`mixed` made, but the base's vectors where ``still`` (booleans, shape [count])."""
    return Pass(mix_or_keep, (base.reshape(-1), *made.inputs), (still, *made.factors), made.fibres)


def mix(tiles: Sequence[torch.Tensor], factors: Sequence[torch.Tensor], start: int) -> torch.Tensor:
    """a − Σc(a − x); a :data:`Kernel`.

    Args:
        tiles: a and then the x.
        factors: the c, float32. One more than there are x is that of 0.
        start: has no effect.
    """
    origin = tiles[0].to(torch.float32)
    gaps = chain((origin - x for x in tiles[1:]), (origin,))
    terms = (gap * factor for gap, factor in zip(gaps, factors, strict=False))
    change = next(terms)
    for term in terms:
        change = change + term
    return origin - change


def mix_or_keep(
    tiles: Sequence[torch.Tensor], factors: Sequence[torch.Tensor], start: int
) -> torch.Tensor:
    """The first tile where the first factor is true, else the :func:`mix` of the rest."""
    return torch.where(factors[0], tiles[0].to(torch.float32), mix(tiles[1:], factors[1:], start))


def _copied(
    tiles: Sequence[torch.Tensor], factors: Sequence[torch.Tensor], start: int
) -> torch.Tensor:
    return tiles[0].to(torch.float32)
