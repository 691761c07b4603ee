"""The two tables of numbers that a kernel is given: a row for each kind, a column for each model."""

from __future__ import annotations

from itertools import pairwise

import torch

from evomerge.merging.kernels import F, I
from evomerge.merging.magnitudes import Largest
from evomerge.merging.masks import Stream


class Tables:
    """Filled once for a tensor, asked for once for each of its pieces.

    Args:
        models: how many.
        device: where the kernel runs.
    """

    def __init__(self, models: int, device: torch.device) -> None:
        columns = max(models, 2)
        self._device = device
        self._floats = [[0.0] * columns for _ in F]
        self._ints = [[0] * columns for _ in I]
        self._streams: dict[int, Stream] = {}
        self._largest: dict[tuple[F, int], Largest] = {}

    def set(self, row: F | I, column: int, value: float) -> None:
        """Fill one place, the same for all pieces."""
        if isinstance(row, F):
            self._floats[row][column] = value
        else:
            self._ints[row][column] = int(value)

    def draw(self, column: int, stream: Stream) -> None:
        """Let a model's numbers come from a stream."""
        self._streams[column] = stream

    def select(self, row: F, column: int, largest: Largest) -> None:
        """Let a row of magnitudes say which elements are among a model's largest."""
        self._largest[row, column] = largest

    def segments(self, numel: int) -> list[tuple[int, int]]:
        """The ranges within which no magnitude's limit changes."""
        cuts = {found.last + 1 for found in self._largest.values()}
        edges = [0, *sorted(cut for cut in cuts if 0 < cut < numel), numel]
        return list(pairwise(edges))

    def at(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``floats`` and ``ints`` for a piece from element ``start`` on."""
        for column, stream in self._streams.items():
            for key, value in stream.keys(start).items():
                self._ints[key][column] = value
        for (row, column), found in self._largest.items():
            self._floats[row][column] = found.from_(start)
        floats = torch.tensor(self._floats, dtype=torch.float64).to(torch.float32)
        ints = torch.tensor(self._ints, dtype=torch.int32)
        return floats.to(self._device), ints.to(self._device)
