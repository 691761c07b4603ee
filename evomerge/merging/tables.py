"""The two tables of numbers that a kernel gets: a row for each kind, a column for each model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from evomerge.merging.entries import F, I
from evomerge.merging.magnitudes import Largest
from evomerge.merging.masks import Stream

_BEHIND = {F.LIMIT: (F.LATER, I.LAST), F.OUTLIER: (F.OUTLIER_LATER, I.OUTLIER_LAST)}
_FAR = (1 << 31) - 1


class Tables:
    """Filled once for a tensor, asked for once for each of its pieces.

    Args:
        models: how many.
        device: where the kernel runs.
    """

    def __init__(self, models: int, device: torch.device) -> None:
        columns = max(models, 2)
        self._device = device
        self._floats = np.zeros((len(F), columns))
        self._ints = np.zeros((len(I), columns), dtype=np.int32)
        self._streams: dict[int, Stream] = {}
        self._largest: dict[tuple[F, int], Largest] = {}

    def set(self, row: F | I, column: int, value: float) -> None:
        """Fill one place, the same for all pieces."""
        if isinstance(row, F):
            self._floats[row, column] = value
        else:
            self._ints[row, column] = int(value)

    def fill(self, row: F, values: Sequence[float]) -> None:
        """Fill a row's first places, the same for all pieces."""
        self._floats[row, : len(values)] = values

    def draw(self, column: int, stream: Stream) -> None:
        """Let a model's numbers come from a stream."""
        self._streams[column] = stream

    def select(self, row: F, column: int, largest: Largest) -> None:
        """Let a row of magnitudes say which elements are among a model's largest."""
        self._largest[row, column] = largest

    def at(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``floats`` and ``ints`` for a piece from element ``start`` on."""
        for column, stream in self._streams.items():
            for key, value in stream.keys(start).items():
                self._ints[key, column] = value
        for (row, column), found in self._largest.items():
            later, last = _BEHIND[row]
            self._floats[row, column], self._floats[later, column] = found.limit, found.later
            self._ints[last, column] = min(max(found.last - start, -1), _FAR)
        # torch's conversion, unlike numpy's, gives no warning: a huge coefficient is infinite.
        floats = torch.from_numpy(self._floats).to(torch.float32)
        ints = torch.from_numpy(self._ints.copy())
        if self._device.type == "cpu":
            return floats, ints
        return floats.to(self._device), ints.to(self._device)
