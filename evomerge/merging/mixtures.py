"""Combinations of tensors in one pass: what a candidate of the angle methods costs.

Σcx with one c per tensor, or per tensor and row, is computed as a − Σc(a − x) from one of the
tensors, a. Where the tensors are equal the result is that tensor bit for bit, and elsewhere it is
rounded at the size of their differences. What the c lack to 1 goes to the base, or to 0 where there
is none. The operations are float32 and none is fused on a CPU, so that every lane of a processor
rounds alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from evomerge.merging.kernels import total
from evomerge.merging.parts import name_of
from evomerge.merging.products import Fibres, Vectors
from evomerge.merging.programs import Programs
from evomerge.merging.taskvectors import pieces


class Made(Protocol):
    """A result that is yet to be written."""

    @property
    def reach(self) -> float:
        """How many times the largest magnitude of all inputs no element exceeds, nor what it is
        made of; infinity where that is not known.
        """
        ...

    def write(self, out: torch.Tensor, programs: Programs) -> None:
        """Write it, rounded once to the type of ``out`` (flat, of the inputs' size)."""
        ...


@dataclass(frozen=True)
class Copied:
    """A tensor's own values.

    Args:
        tensor: any shape.
    """

    tensor: torch.Tensor
    reach: ClassVar[float] = math.inf

    def write(self, out: torch.Tensor, programs: Programs) -> None:
        out.copy_(self.tensor.reshape(-1))


@dataclass(frozen=True)
class Mixture:
    """a − Σc(a − x); a kernel (see ``programs``).

    Its tensors: a and the x, then the one that stays if ``still``, then the result; the c (float32,
    one row each, shape [terms, vectors]), and if ``still`` the vectors that stay (booleans, shape
    [vectors]).

    Args:
        dtypes: of a and of each x.
        out: the result's type.
        vectors: what has a c of its own: the tensors (of shape [n]), their rows or their columns
            ([rows, columns]).
        rest: there is a term more than there are x: its x is 0.
        still: the type of another tensor that some vectors of the result are taken from.
    """

    dtypes: tuple[str, ...]
    out: str
    vectors: Vectors
    rest: bool = False
    still: str | None = None

    eager: ClassVar[float] = 0.3e-9
    compares: ClassVar[bool] = False

    @property
    def terms(self) -> int:
        """How many c each vector has."""
        return len(self.dtypes) - 1 + self.rest

    def run(self, tensors: Sequence[torch.Tensor]) -> None:
        """Do the pass."""
        count = len(self.dtypes)
        tiles, (out, factors, *where) = tensors[:count], tensors[count + bool(self.still) :]
        made = self._mixed(tiles, factors)
        if self.still:
            still = self._along(where[0])
            made = torch.where(still, tensors[count].to(torch.float32), made)
        out.copy_(made.to(out.dtype))

    def _mixed(self, tiles: Sequence[torch.Tensor], factors: torch.Tensor) -> torch.Tensor:
        origin = tiles[0].to(torch.float32)
        gaps = [origin - x.to(torch.float32) for x in tiles[1:]] + [origin] * self.rest
        return origin - total([gap * self._along(factors[i]) for i, gap in enumerate(gaps)])

    def _along(self, values: torch.Tensor) -> torch.Tensor:
        """One value of each vector, so that they broadcast to the tiles."""
        if self.vectors == "whole":
            return values[0]
        return values[:, None] if self.vectors == "rows" else values


@dataclass(frozen=True)
class Pass:
    """A mixture that is yet to be made.

    Args:
        kernel: what is done, but for the type of the result.
        inputs: the kernel's, flat.
        factors: float32, shape [terms, count].
        fibres: the vectors.
        reach: see :class:`Made`.
        still: booleans, shape [count], if the kernel takes them.
    """

    kernel: Mixture
    inputs: tuple[torch.Tensor, ...]
    factors: torch.Tensor
    fibres: Fibres
    reach: float
    still: torch.Tensor | None = None

    def write(self, out: torch.Tensor, programs: Programs) -> None:
        runner = programs.of(replace(self.kernel, out=name_of(out)))
        given = [self.factors] if self.still is None else [self.factors, self.still]
        for start, stop in runner.ranges(len(out), self.fibres.unit):
            tiles = [self.fibres.table(x[start:stop]) for x in (*self.inputs, out)]
            runner.run_piece([*tiles, *(self.fibres.cut(x, start, stop) for x in given)])


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
    still: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Made:
    """a − Σc(a − x).

    Args:
        start_from: a.
        terms: c (float64, shape [count]) and x (None stands for 0), in the order of the sum.
        fibres: the vectors that each have a c.
        still: another tensor, and the vectors (booleans, shape [count]) that are taken from it.
    """
    factors = [c.to(torch.float32) for c, _ in terms]
    sized = [(float(c.abs().max()), c, x) for c, (_, x) in zip(factors, terms, strict=True)]
    # 0 comes last: it is no tensor that a piece is taken of.
    live = sorted((term for term in sized if term[0] != 0), key=lambda term: term[2] is None)
    if not live:
        return Copied(start_from)
    inputs = [x.reshape(-1) for x in (start_from, *(x for *_, x in live)) if x is not None]
    kernel = Mixture(
        dtypes=tuple(name_of(x) for x in inputs),
        out="float32",
        vectors=fibres.seen,
        rest=any(x is None for *_, x in live),
        still=None if still is None else name_of(still[0]),
    )
    given = torch.stack([c for _, c, _ in live])
    reach = 1 + 2 * sum(size for size, *_ in live)
    if still is None:
        return Pass(kernel, tuple(inputs), given, fibres, reach)
    inputs.append(still[0].reshape(-1))
    return Pass(kernel, tuple(inputs), given, fibres, reach, still[1])
