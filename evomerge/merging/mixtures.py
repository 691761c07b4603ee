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

Piece = Callable[[int, int], torch.Tensor]
"""Elements ``start … stop - 1`` of a result: float32, shape [stop - start]."""


@dataclass(frozen=True)
class Pass:
    """One pass over a tensor that makes the result.

    Args:
        piece: makes a range of the result.
        unit: ranges must be whole multiples of so many elements.
    """

    piece: Piece
    unit: int = 1


def as_it_is(tensor: torch.Tensor) -> Pass:
    """A tensor's own values."""
    flat = tensor.reshape(-1)
    return Pass(lambda start, stop: flat[start:stop].to(torch.float32))


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
    inputs = [x.reshape(-1) for x in (start_from, *(x for _, x in live)) if x is not None]
    factors = [c.to(torch.float32) for c, _ in live]

    def piece(start: int, stop: int) -> torch.Tensor:
        tiles = [fibres.table(x[start:stop]) for x in inputs]
        return mix(tiles, [fibres.spread(c, start, stop) for c in factors]).view(-1)

    return Pass(piece, fibres.unit)


def mix(tiles: Sequence[torch.Tensor], factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """a − Σc(a − x), element by element; changes no input and depends on nothing else.

    Args:
        tiles: a and then the x, of one shape and any floating types.
        factors: the c, float32, of shapes that broadcast to it. One more than there are x is that
            of 0.

    Returns:
        float32.
    """
    origin = tiles[0].to(torch.float32)
    gaps = chain((origin - x for x in tiles[1:]), (origin,))
    terms = (gap * factor for gap, factor in zip(gaps, factors, strict=False))
    change = next(terms)
    for term in terms:
        change = change + term
    return origin - change


def kept_where(made: Pass, base: torch.Tensor, still: torch.Tensor, fibres: Fibres) -> Pass:
    """The base's vectors where ``still`` (shape [count])."""
    flat = base.reshape(-1)

    def piece(start: int, stop: int) -> torch.Tensor:
        new, old = (fibres.table(x) for x in (made.piece(start, stop), flat[start:stop]))
        return torch.where(fibres.spread(still, start, stop), old, new).view(-1)

    return Pass(piece, made.unit)
