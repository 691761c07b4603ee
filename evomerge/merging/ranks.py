"""Ranks of magnitudes within rows, as DELLA's keep probabilities need them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch

from evomerge.merging.packing import BITS, packed_ranks

Sizes = Callable[[int, int], torch.Tensor]
"""Magnitudes of elements ``start … stop - 1``: float32, at least 0, shape [stop - start]."""

_TILE = 1 << 16  # elements that are ranked at a time


def kind(row: int) -> Literal["uint8", "split", "int32"]:
    """How the ranks of rows of this length are stored (``kernels.Kernel.ranks``)."""
    if row <= 1 << 8:
        return "uint8"
    return "split" if row <= 1 << 16 else "int32"


def nbytes(numel: int, row: int) -> int:
    """Size of a tensor's ranks."""
    return numel * {"uint8": 1, "split": 2, "int32": 4}[kind(row)]


def rank_rows(sizes: Sizes, numel: int, row: int, device: torch.device) -> list[torch.Tensor]:
    """Ascending ranks from 0 within each row, equal magnitudes by index.

    Args:
        sizes: gives the magnitudes.
        numel: how many, a multiple of ``row``.
        row: the length of a row.
        device: where they are.

    Returns:
        One tensor of shape [numel], or for ``split`` the low bytes and the high bytes.
    """
    how = kind(row)
    types = {"uint8": [torch.uint8], "split": [torch.uint8] * 2, "int32": [torch.int32]}[how]
    planes = [torch.empty(numel, dtype=dtype, device=device) for dtype in types]
    step = max(_TILE // row, 1) * row

    def fill(start: int) -> None:
        stop = min(start + step, numel)
        ranks = _ranked(sizes(start, stop).view(-1, row)).view(-1)
        planes[0][start:stop] = ranks & 0xFF if how == "split" else ranks
        if how == "split":
            planes[1][start:stop] = ranks >> 8

    starts = range(0, numel, step)
    threads = min(torch.get_num_threads(), len(starts)) if device.type == "cpu" else 1
    if threads <= 1:
        for start in starts:
            fill(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, starts))
    return planes


def _ranked(rows: torch.Tensor) -> torch.Tensor:
    """int32 ranks of float32 rows [m, row]."""
    row = rows.shape[1]
    shift = (row - 1).bit_length()
    if rows.device.type != "cpu" or shift + BITS > 63:
        order = rows.argsort(dim=1, stable=True)
        counter = torch.arange(row, dtype=torch.int32, device=rows.device)
        ranks = torch.empty_like(order, dtype=torch.int32)
        return ranks.scatter_(1, order, counter.expand_as(order))
    return packed_ranks(rows)
