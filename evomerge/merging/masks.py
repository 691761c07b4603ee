"""Random numbers for masks that depend on (seed, model, tensor, element) and on nothing else.

No generator state: element ``i`` of a tensor has the number ``hash(key, i)``. It is the same on a
CPU and on a GPU, in any order, shard, thread or worker, and is drawn once per element, so that two
densities share their masks (the smaller one's lies in the larger one's) and candidates differ by
their genes, not by luck.

Everything is arithmetic on 32-bit integers that wrap around, so that a compiled kernel computes the
same bits. Comparisons are between integers too: a threshold in floating point would leave the last
bit to whether a device fuses a multiplication with an addition.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache

import torch

BITS = 24
"""Every number is a multiple of 2⁻²⁴ in [0, 1): what float32 holds exactly."""

_BLOCK = 1 << 32
# 2³²/φ, odd: multiplied by it, neighbouring counters differ in their high bits too. Without it the
# hash below spreads counters more evenly than chance does (seen: chi-square over 400 keys).
_GOLDEN = 0x9E3779B1 - _BLOCK
# The two multipliers of "lowbias32", found by search for the least bias among hashes of this shape
# (C. Wellons, hash-prospector, public domain), as signed numbers.
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B - _BLOCK
# Counters up to here are kept: a tile of the merge on a CPU.
_KEPT = 1 << 18


@dataclass(frozen=True)
class Stream:
    """The numbers of one tensor of one model.

    Args:
        seed: of the recipe's masks; any integer.
        label: the model's short name.
        tensor: the name of the model's tensor.
    """

    seed: int
    label: str
    tensor: str

    def bits(
        self, count: int, *, start: int = 0, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Elements ``start … start + count - 1`` as integers in [0, 2²⁴).

        Returns:
            int32, shape [count]. The tensor's float numbers are these times 2⁻²⁴.
        """
        parts = []
        while count > 0:
            block, offset = divmod(start, _BLOCK)
            size = min(count, _BLOCK - offset)
            parts.append(_hash(offset, size, _keys(self, block), torch.device(device)))
            start, count = start + size, count - size
        if not parts:
            return torch.empty(0, dtype=torch.int32, device=device)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def uniform(
    seed: int,
    label: str,
    tensor: str,
    numel: int,
    *,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Numbers in [0, 1) for the elements ``start … start + numel - 1`` of a model's tensor.

    Args:
        seed: of the recipe's masks.
        label: the model's short name.
        tensor: the name of the model's tensor.
        numel: how many.
        start: the first element's index in the flattened tensor; may exceed 2³².
        device: where to compute them; the numbers are the same everywhere.

    Returns:
        float32, shape [numel], multiples of 2⁻²⁴.
    """
    bits = Stream(seed, label, tensor).bits(numel, start=start, device=device)
    return bits.to(torch.float32) * 2.0**-BITS


def threshold(share: float) -> int:
    """The integer that ``bits`` is below exactly where the number is below ``share``."""
    return min(max(math.ceil(share * 2**BITS), 0), 2**BITS)


@lru_cache(maxsize=4096)
def _keys(stream: Stream, block: int) -> tuple[int, int]:
    """Two 32-bit keys per 2³² elements, as signed numbers.

    One key alone would give every tensor the same numbers, shuffled by an exclusive or.
    """
    text = json.dumps([stream.seed, stream.label, stream.tensor, block])
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"evomerge-mask").digest()
    first, second = (
        int.from_bytes(part, "little", signed=True) for part in (digest[:4], digest[4:])
    )
    return first, second


def _hash(start: int, count: int, keys: tuple[int, int], device: torch.device) -> torch.Tensor:
    """lowbias32 of the scaled counter plus the first key, the second key let in half-way."""
    x = _scaled_counter(count, device) + _signed(start * _GOLDEN + keys[0])
    _shift_xor(x, 16)
    x.mul_(_FIRST).bitwise_xor_(keys[1])
    _shift_xor(x, 15)
    x.mul_(_SECOND)
    _shift_xor(x, 16)
    return x.bitwise_right_shift_(32 - BITS).bitwise_and_((1 << BITS) - 1)


def _signed(number: int) -> int:
    """The number modulo 2³², as a signed 32-bit integer."""
    return (number + _BLOCK // 2) % _BLOCK - _BLOCK // 2


def _shift_xor(x: torch.Tensor, shift: int) -> None:
    # torch shifts signed integers arithmetically: the copies of the sign are masked away.
    x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1))


def _scaled_counter(count: int, device: torch.device) -> torch.Tensor:
    """0, g, 2g … as 32-bit numbers that wrap around."""
    return _kept_counter(device)[:count] if count <= _KEPT else _make_counter(count, device)


@lru_cache(maxsize=16)
def _kept_counter(device: torch.device) -> torch.Tensor:
    return _make_counter(_KEPT, device)


def _make_counter(count: int, device: torch.device) -> torch.Tensor:
    if count <= _BLOCK // 2:
        return torch.arange(count, dtype=torch.int32, device=device).mul_(_GOLDEN)
    # 2³¹ does not fit into int32; narrowing int64 wraps as the multiplication does.
    return torch.arange(count, dtype=torch.int64, device=device).to(torch.int32).mul_(_GOLDEN)
