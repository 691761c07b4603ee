"""Ranks within rows by sorting 32-bit integers: a magnitude's highest bits and its index.

Half as many bits sort more than twice as fast. What the highest bits leave out decides nothing
where no other magnitude of the row has the same ones: the rows where it might are looked at again,
and those where it does are sorted by all bits.
"""

from __future__ import annotations

import numpy as np
import torch

BITS = 31
"""Of a magnitude: a float32's, without its sign."""

_RANGE = 28  # bits below the largest magnitude's that are looked at: 32 halvings
_LONGEST = 12  # bits of an index; more leave a magnitude so few that all rows are doubtful


class PackedRanks:
    """Ranks magnitudes within rows, in memory that is taken once: asked for again and again, it
    would be given back to the system and taken from it each time, page by page.

    Args:
        elements: as many as are ranked at a time, at most.
        row: the length of a row, with ``(row - 1).bit_length() + 31 <= 63``.
    """

    def __init__(self, elements: int, row: int) -> None:
        self._shift = (row - 1).bit_length()
        # A row's index takes what 32 bits leave; the bits of a magnitude below that are lost.
        self._lost = max(_RANGE - (32 - self._shift), 0)
        shape = (-(-elements // row), row)
        self._keys, self._ranks = np.empty(shape, np.uint32), np.empty(shape, np.int32)
        self._order, self._index = np.empty(shape, np.int64), np.arange(row, dtype=np.uint32)

    def of(self, sizes: torch.Tensor) -> np.ndarray:
        """Ascending ranks from 0 within each row, equal magnitudes by index.

        Args:
            sizes: magnitudes: float32, at least 0, no NaN, contiguous, shape [rows, row], on a CPU.

        Returns:
            int32, of the same shape; the caller's until the next call.
        """
        rows = len(sizes)
        order, ranks = self._order[:rows], self._ranks[:rows]
        bits = sizes.numpy().view(np.int32)
        if bits.size and self._shift <= _LONGEST:
            doubtful = self._by_highest(bits, self._keys[:rows], order)
            if len(doubtful):
                wrong = doubtful[_unsorted(sizes[doubtful], torch.from_numpy(order[doubtful]))]
                if len(wrong):
                    order[wrong] = _by_all(bits[wrong])
        else:
            order[:] = _by_all(bits)
        counter = torch.from_numpy(self._index.view(np.int32)).expand_as(sizes)
        torch.from_numpy(ranks).scatter_(1, torch.from_numpy(order), counter)
        return ranks

    def _by_highest(self, bits: np.ndarray, keys: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Enter rows' ascending order by the highest bits; the rows that others may have a say in.

        A key is a magnitude above a floor, without the bits that are lost, and behind it the index.
        """
        unit = 1 << self._lost
        floor = max((int(bits.max()) - (1 << _RANGE) + unit) // unit * unit, 0)
        doubtful = (np.bitwise_or.reduce(bits, axis=1) & (unit - 1)) != 0
        # What is between 0 and the floor comes to lie with 0. (0 less 1 is the largest there is.)
        np.subtract(bits, np.int32(1), out=keys.view(np.int32))
        if keys.min() < max(floor - 1, 0):
            doubtful |= keys.min(axis=1) < floor - 1
        # torch's is faster than numpy's maximum with a number, by four times.
        torch.clamp(torch.from_numpy(bits), min=floor, out=torch.from_numpy(keys.view(np.int32)))
        keys <<= self._shift - self._lost
        if self._lost:
            keys &= np.uint32((-1 << self._shift) % (1 << 32))
        keys += self._index - np.uint32((floor << (self._shift - self._lost)) % (1 << 32))
        keys.sort(axis=1)
        keys &= np.uint32((1 << self._shift) - 1)
        np.copyto(order, keys)
        return np.flatnonzero(doubtful)


def _unsorted(sizes: torch.Tensor, order: torch.Tensor) -> np.ndarray:
    """Which rows are not in ascending order after all; equal ones are by index."""
    found = sizes.gather(1, order).numpy()
    return np.flatnonzero((found[:, 1:] < found[:, :-1]).any(axis=1))


def _by_all(bits: np.ndarray) -> np.ndarray:
    """The rows' ascending order (int64), by magnitude and index."""
    shift = (bits.shape[1] - 1).bit_length()
    keys = bits.astype(np.int64) << shift
    keys |= np.arange(bits.shape[1])
    keys.sort(axis=1)
    keys &= (1 << shift) - 1
    return keys
