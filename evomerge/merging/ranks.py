"""Ranks of magnitudes within rows, as DELLA's keep probabilities need them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from evomerge.merging.kernels import Ranks
from evomerge.merging.packing import BITS, PackedRanks
from evomerge.merging.pools import apart

Sizes = Callable[[int, int], torch.Tensor]
"""Magnitudes of elements ``start … stop - 1``: float32, at least 0, shape [stop - start]."""

_TILE = 1 << 18  # elements that are ranked at a time, at most: of less the calls take too much


def kind(row: int) -> Ranks:
    """How the ranks of rows of this length are stored (``kernels.Kernel.ranks``)."""
    if row <= 1 << 8:
        return "uint8"
    return "int16" if row <= 1 << 16 else "int32"


def rank_rows(sizes: Sizes, numel: int, row: int, device: torch.device) -> torch.Tensor:
    """Ascending ranks from 0 within each row, equal magnitudes by index.

    Args:
        sizes: gives the magnitudes.
        numel: how many, a multiple of ``row``.
        row: the length of a row.
        device: where they are.

    Returns:
        Shape [numel], of the type that ``kind`` names.
    """
    ranks = torch.empty(numel, dtype=getattr(torch, kind(row)), device=device)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    step = max(min(_TILE, numel // threads) // row, 1) * row
    starts = range(0, numel, step)
    if device.type != "cpu" or (row - 1).bit_length() + BITS > 63:
        for start in starts:
            stop = min(start + step, numel)
            ranks[start:stop] = _sorted(sizes(start, stop).view(-1, row)).view(-1)
        return ranks

    def fill(mine: range) -> None:
        room = PackedRanks(min(step, numel), row)
        for start in mine:
            stop = min(start + step, numel)
            found = room.of(sizes(start, stop).view(-1, row)).reshape(-1)
            # numpy's conversion, which keeps the low bits, is faster than torch's.
            np.copyto(ranks.numpy()[start:stop], found, casting="unsafe")

    if min(threads, len(starts)) <= 1:
        fill(starts)
    else:
        with apart(threads, "ranks") as pool:
            list(pool.map(fill, [starts[first::threads] for first in range(threads)]))
    return ranks


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    """int32 ranks of float32 rows [m, row]."""
    order = rows.argsort(dim=1, stable=True)
    counter = torch.arange(rows.shape[1], dtype=torch.int32, device=rows.device)
    ranks = torch.empty_like(order, dtype=torch.int32)
    return ranks.scatter_(1, order, counter.expand_as(order))
