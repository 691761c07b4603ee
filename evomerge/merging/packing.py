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


def packed_ranks(sizes: torch.Tensor) -> torch.Tensor:
    """Ascending ranks from 0 within each row, equal magnitudes by index.

    Args:
        sizes: magnitudes: float32, at least 0, no NaN, contiguous, shape [rows, row] with
            ``(row - 1).bit_length() + 31 <= 63``, on a CPU.

    Returns:
        int32, of the same shape.
    """
    bits = sizes.numpy().view(np.int32)
    shift = (bits.shape[1] - 1).bit_length()
    if bits.size == 0 or shift > _LONGEST:
        return _entered(_by_all(bits))
    order, doubtful = _by_highest(sizes.numpy(), shift)
    if len(doubtful):
        wrong = doubtful[_unsorted(sizes[doubtful], torch.from_numpy(order[doubtful]))]
        if len(wrong):
            order[wrong] = _by_all(bits[wrong])
    return _entered(order)


def _by_highest(sizes: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows' ascending order (int64) by the highest bits; rows that other bits may have a say in."""
    bits = sizes.view(np.int32)
    low = max(_RANGE - (32 - shift), 0)
    floor = np.int32(max(int(bits.max()) - (1 << _RANGE) + 1, 0))
    # What is between 0 and the floor comes to lie with 0. (0 less 1 is the largest there is.)
    lost = (np.bitwise_or.reduce(bits, axis=1) & ((1 << low) - 1)) != 0
    lost |= (bits - np.int32(1)).view(np.uint32).min(axis=1) < max(int(floor) - 1, 0)
    keys = np.maximum(sizes, floor.view(np.float32)).view(np.int32)
    keys -= floor
    keys >>= low
    packed = keys.view(np.uint32)
    packed <<= shift
    packed |= np.arange(bits.shape[1], dtype=np.uint32)
    packed.sort(axis=1)
    packed &= (1 << shift) - 1
    return packed.astype(np.int64), np.flatnonzero(lost)


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


def _entered(order: np.ndarray) -> torch.Tensor:
    ranks = torch.empty(order.shape, dtype=torch.int32)
    counter = torch.arange(ranks.shape[1], dtype=torch.int32).expand_as(ranks)
    return ranks.scatter_(1, torch.from_numpy(order), counter)
