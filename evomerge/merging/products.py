"""Inner products of tensors: what angles and norms are made of, and no candidate changes.

The sums are float64 and taken in an order of their own: blocks that one thread sums each, whatever
the number of threads and however the merge cuts a tensor. Squares of float16 and float32 numbers
cannot overflow in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

Tiles = Callable[[int, int], Sequence[torch.Tensor]]
"""Elements ``start … stop - 1`` of several tensors: floating, each of shape [stop - start]."""

Vectors = Literal["whole", "rows", "columns"]

_SPAN = 1 << 18
_BLOCK = 4096


@dataclass(frozen=True)
class Fibres:
    """A tensor of any shape, seen as vectors side by side; its elements are numbered as flattened.

    Args:
        count: how many vectors.
        length: their length.
        across: element e belongs to vector e mod ``count``; else to vector ⌊e / ``length``⌋.
    """

    count: int
    length: int
    across: bool = False

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Fibres:
        """The tensor as one vector."""
        return cls(1, prod(shape))

    @classmethod
    def last(cls, shape: Sequence[int]) -> Fibres:
        """A vector along the last dimension for each index of the others: a matrix's rows."""
        length = shape[-1] if shape else 1
        return cls(prod(shape[:-1]), length)

    @classmethod
    def first(cls, shape: Sequence[int]) -> Fibres:
        """A vector along the first dimension for each index of the others: a matrix's columns."""
        if len(shape) < 2:
            return cls.whole(shape)
        return cls(prod(shape[1:]), shape[0], across=True)

    @property
    def numel(self) -> int:
        """Elements in all."""
        return self.count * self.length

    @property
    def unit(self) -> int:
        """A piece of the tensor must hold a multiple of so many elements."""
        if self.count == 1:
            return 1
        return self.count if self.across else self.length

    @property
    def seen(self) -> Vectors:
        """What the vectors are in a :meth:`table`."""
        if self.count == 1:
            return "whole"
        return "columns" if self.across else "rows"

    def table(self, tile: torch.Tensor) -> torch.Tensor:
        """A piece of whole units as a matrix of which the vectors are rows or columns; or flat."""
        if self.count == 1:
            return tile
        return tile.view(-1, self.count if self.across else self.length)

    def cut(self, values: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The values of the vectors that the piece of whole units ``start … stop - 1`` is part of.

        Args:
            values: shape [count], or [any, count].
        """
        if self.count == 1 or self.across:
            return values
        return values[..., start // self.length : stop // self.length].contiguous()

    def sums(self, tile: torch.Tensor) -> torch.Tensor:
        """Each vector's sum over a tile of whole units; float64, [vectors in it]."""
        rows = self.table(tile)
        if self.count == 1:
            rows = rows.view(1, -1)
        elif self.across:
            rows = rows.t().contiguous()
        return _sums(rows)


def products(tiles: Tiles, pairs: Sequence[tuple[int, int]], fibres: Fibres) -> torch.Tensor:
    """Σxy over each vector, for pairs of tensors.

    Args:
        tiles: the tensors, of ``fibres.numel`` elements each, at least one.
        pairs: which of them are multiplied.
        fibres: the vectors.

    Returns:
        float64, shape [pairs, count].
    """
    step = max(_SPAN // fibres.unit, 1) * fibres.unit
    parts = []
    for start in range(0, fibres.numel, step):
        tile = [x.to(torch.float64) for x in tiles(start, min(start + step, fibres.numel))]
        parts.append(torch.stack([fibres.sums(tile[i] * tile[j]) for i, j in pairs]))
    if fibres.count > 1 and not fibres.across:
        return torch.cat(parts, dim=1)
    total = parts[0]
    for part in parts[1:]:
        total.add_(part)
    return total


def _sums(rows: torch.Tensor) -> torch.Tensor:
    """Sums of rows. No sum is longer than a block, because torch would share it among threads."""
    while rows.shape[1] > _BLOCK:
        whole = rows.shape[1] - rows.shape[1] % _BLOCK
        parts = [rows[:, :whole].unflatten(1, (-1, _BLOCK)).sum(2)]
        if whole < rows.shape[1]:
            parts.append(rows[:, whole:].sum(1, keepdim=True))
        rows = torch.cat(parts, dim=1)
    return rows.sum(1)
