"""Random numbers for masks that depend on (seed, model, tensor, element) and on nothing else.

No generator state: element ``i`` of a tensor has the number ``hash(key, i)``. It is the same on a
CPU and on a GPU, in any order, shard, thread or worker, and is drawn once per element, so that two
densities share their masks (the smaller one's lies in the larger one's) and candidates differ by
their genes, not by luck.

Everything is arithmetic on 32-bit integers that wrap around, so that a compiled kernel computes the
same bits. Comparisons are between integers too: a threshold in floating point would leave the last
bit to whether a device fuses a multiplication with an addition.

Half of the hash depends on the tensor and the element alone, and is done once for all the models;
the other half has a key and a multiplier for each model (``kernels.mix``, ``kernels.draw``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from evomerge.merging.entries import I
from evomerge.merging.kernels import GOLDEN, draw, mix

BITS = 24
"""Densities are compared with the 24 highest bits of a number."""

_SIGNIFICANT = 11
_BLOCK = 1 << 32


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

    def keys(self, start: int = 0) -> dict[I, int]:
        """Its rows of a kernel's ``ints``, for the elements from ``start`` on.

        Up to the next multiple of 2³²: each run of 2³² elements has keys of its own.
        """
        block, offset = divmod(start, _BLOCK)
        key, multiplier = _digest("model", self.seed, self.label, self.tensor, block)
        counter, second = _digest("tensor", self.seed, self.tensor, block)
        return {
            I.KEY: key,
            I.MULTIPLIER: multiplier | 1,
            I.COUNTER: signed(offset * GOLDEN + counter),
            I.SECOND: second,
        }


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
        float64, shape [numel], multiples of 2⁻³². An element is kept at density d where its number
        is below ``drawn_density(d)``.
    """
    stream = Stream(seed, label, tensor)
    bits = uniform_bits(stream, start, start + numel, torch.device(device))
    return (bits.to(torch.float64) + 2.0**31) * 2.0**-32


def uniform_bits(stream: Stream, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """The drawn integers of elements ``start … stop - 1``; int32, uniform over its whole range."""
    parts = [torch.empty(0, dtype=torch.int32, device=device)]
    while start < stop:
        size = min(stop - start, _BLOCK - start % _BLOCK)
        parts.append(_draw(stream.keys(start), size, device))
        start += size
    return torch.cat(parts)


@lru_cache(maxsize=1 << 12)
def threshold(density: float) -> int:
    """The density that masks are drawn at, in units of 2⁻²⁴; from 1 to 2²⁴.

    A density has 11 significant bits here, more than bfloat16's 8: it is off by a share of 2⁻¹² at
    most, and what a mask keeps can be summed up once for all the densities of a search.
    """
    scaled = min(max(density, 0.0), 1.0) * 2**BITS
    exponent = math.frexp(scaled)[1] - _SIGNIFICANT
    unit = 2.0 ** max(exponent, 0)
    return min(max(round(scaled / unit) * int(unit), 1), 2**BITS)


def drawn_density(density: float) -> float:
    """The density that masks are drawn at: the given one, to 11 significant bits."""
    return threshold(density) * 2.0**-BITS


def limit(density: float) -> int:
    """The largest drawn integer (int32) that is kept at a density."""
    return (threshold(density) << (32 - BITS)) - 1 - _BLOCK // 2


@lru_cache(maxsize=1 << 12)
def rank_limits(length: int, density: float, epsilon: float) -> Mapping[I, int]:
    """The rows of ``ints`` that keep rank r = 0 … length - 1 with its probability.

    That is q = (d − ε) + 2ε·r/(length − 1), DELLA's (arXiv 2406.11617, equations 1 to 3), its step
    rounded to a multiple of 2⁻³²: q is off by ``length``·2⁻³⁴ at most. With ε = 0, or in a row of
    one element, the limit is the one of ``limit``: DARE's, bit for bit.

    Args:
        length: of a row.
        density, epsilon: d and ε.
    """
    if epsilon == 0 or length == 1:
        return {I.LIMIT: limit(density), I.STEP: 0}
    step = min(round(2 * epsilon * _BLOCK / (length - 1)), (_BLOCK - 1) // (length - 1))
    # The middle rank has d itself, so that the share that is kept is d whatever the rounding.
    first = max(round(density * _BLOCK - step * (length - 1) / 2), 1)
    # Beyond 2³² the highest ranks would wrap around, and never be kept.
    first = min(first, _BLOCK - step * (length - 1))
    return {I.LIMIT: first - 1 - _BLOCK // 2, I.STEP: signed(step)}


def signed(number: int) -> int:
    """The number modulo 2³², as a signed 32-bit integer."""
    return (number + _BLOCK // 2) % _BLOCK - _BLOCK // 2


@lru_cache(maxsize=1 << 16)
def _digest(*key: str | int) -> tuple[int, int]:
    """Two 32-bit keys, as signed numbers."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8, person=b"evomerge-mask")
    raw = digest.digest()
    first, second = (int.from_bytes(part, "little", signed=True) for part in (raw[:4], raw[4:]))
    return first, second


def _draw(keys: dict[I, int], count: int, device: torch.device) -> torch.Tensor:
    ints = torch.zeros((len(I), 1), dtype=torch.int32)
    for row, value in keys.items():
        ints[row, 0] = value
    ints = ints.to(device)
    if count <= _BLOCK // 2:
        counter = torch.arange(count, dtype=torch.int32, device=device) * GOLDEN
    else:
        # 2³¹ does not fit into int32; narrowing int64 wraps as the multiplication does.
        counter = torch.arange(count, dtype=torch.int64, device=device).to(torch.int32) * GOLDEN
    return draw(mix(counter, ints, 0), ints, 0)
