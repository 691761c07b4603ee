"""Ranks of magnitudes within rows, as DELLA's keep probabilities need them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch

from evomerge.merging.packing import BITS, PackedRanks

Sizes = Callable[[int, int], torch.Tensor]
"""Magnitudes of elements ``start … stop - 1``: float32, at least 0, shape [stop - start]."""

_TILE = 1 << 18  # elements that are ranked at a time, at most: of less the calls take too much


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
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    step = max(min(_TILE, numel // threads) // row, 1) * row
    starts = range(0, numel, step)
    if device.type != "cpu" or (row - 1).bit_length() + BITS > 63:
        for start in starts:
            stop = min(start + step, numel)
            _enter(planes, start, _sorted(sizes(start, stop).view(-1, row)).view(-1))
        return planes

    def fill(mine: range) -> None:
        room = PackedRanks(min(step, numel), row)
        for start in mine:
            stop = min(start + step, numel)
            _put(planes, start, room.of(sizes(start, stop).view(-1, row)).reshape(-1))

    if min(threads, len(starts)) <= 1:
        fill(starts)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, [starts[first::threads] for first in range(threads)]))
    return planes


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    """int32 ranks of float32 rows [m, row]."""
    order = rows.argsort(dim=1, stable=True)
    counter = torch.arange(rows.shape[1], dtype=torch.int32, device=rows.device)
    ranks = torch.empty_like(order, dtype=torch.int32)
    return ranks.scatter_(1, order, counter.expand_as(order))


def _enter(planes: list[torch.Tensor], start: int, ranks: torch.Tensor) -> None:
    stop = start + len(ranks)
    planes[0][start:stop] = ranks & 0xFF if len(planes) > 1 else ranks
    if len(planes) > 1:
        planes[1][start:stop] = ranks >> 8


def _put(planes: list[torch.Tensor], start: int, ranks: np.ndarray) -> None:
    """The same on a CPU, where numpy's conversions, which keep the low byte, are faster."""
    stop = start + len(ranks)
    np.copyto(planes[0].numpy()[start:stop], ranks, casting="unsafe")
    if len(planes) > 1:
        ranks >>= 8
        np.copyto(planes[1].numpy()[start:stop], ranks, casting="unsafe")
