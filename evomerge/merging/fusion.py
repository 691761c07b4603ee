"""The passes of SCE: how much the models vary, what the selected elements weigh, and the result.

They go through the elements apart and must agree on each one's variance to the last bit: the
operations are float32, the same in each, and none is fused. Sums are of integers, so that neither
threads nor the order show in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Literal

import torch

from evomerge.merging.kernels import total

Goal = Literal["variances", "squares", "merge"]

_SMALLEST = 1e-6  # divisor
_NO_SIGN = (1 << 31) - 1

REMAINDER = 30
"""Bits of a square that are summed beyond the integer ones."""


class Entry(IntEnum):
    """Where a number stands in ``ints``."""

    LEAST = 0  # a limit's bits
    LAST = 1  # the last element that is selected at the limit, from the piece's first on
    HALF = 2  # the upper half of the bits that are looked for


@dataclass(frozen=True)
class Fusion:
    """One pass; a kernel (see ``programs``).

    Its tensors, of shape [n] but for the sums and the last two: the base and the models; the
    outputs; ``floats`` (shape [models + 2]: a weight each, then what task vectors are multiplied by
    before they are squared, then what their squares are) and ``ints`` (see :class:`Entry`).

    Args:
        goal: ``variances`` writes the bits of each element's variance (int32) and whether their
            upper half is HALF (booleans); ``squares`` Σδ² of each model over the selected elements
            (int64, shape [2 · models]: first the integer parts, then those of the remainders, in
            units of 2⁻³⁰); ``merge`` the merged tensor.
        dtypes: of the models' tensors.
        base: the base's type.
        out: the merged tensor's type; None where there is none.
        selects: only the elements among the largest variances are selected; else all.
    """

    goal: Goal
    dtypes: tuple[str, ...]
    base: str
    out: str | None = None
    selects: bool = False

    eager: ClassVar[float] = 2e-9
    compares: ClassVar[bool] = True

    def run(self, tensors: Sequence[torch.Tensor]) -> None:
        """Do the pass."""
        models = len(self.dtypes)
        *outs, floats, ints = tensors[models + 1 :]
        base = tensors[0].to(torch.float32)
        deltas = [tensor.to(torch.float32) - base for tensor in tensors[1 : models + 1]]
        if self.goal == "variances":
            bits = _variance_bits(deltas)
            outs[0].copy_(bits)
            outs[1].copy_((bits >> 16) == ints[Entry.HALF])
            return
        keep = _among(_variance_bits(deltas), ints) if self.selects else None
        if self.goal == "squares":
            outs[0].copy_(torch.stack(_squares(_only(deltas, keep), floats[-2], floats[-1])))
            return
        made = base - (0.0 - _fused(_only(deltas, keep), floats))  # a base's -0 stays that
        outs[0].copy_(made.to(outs[0].dtype))


def _variance_bits(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """The models' variance at each element (of the population): a float32's bits, as int32.

    From the differences to the first model, of which the largest is no larger than the spread:
    nothing cancels, and equal models have exactly 0.
    """
    gaps = [delta - deltas[0] for delta in deltas[1:]]
    mean = total([torch.zeros_like(deltas[0]), *gaps]) / len(deltas)
    spread = mean * mean
    for gap in gaps:
        apart = gap - mean
        spread = spread + apart * apart
    # Without a sign, because what overflows may be no number, and one that would come last.
    return (spread / len(deltas)).view(torch.int32) & _NO_SIGN


def _among(bits: torch.Tensor, ints: torch.Tensor) -> torch.Tensor:
    """Whether an element's variance is among the largest; booleans.

    Args:
        bits: of the variances, int32, shape [n].
        ints: LEAST and LAST.
    """
    index = torch.arange(bits.shape[0], dtype=torch.int32, device=bits.device)
    # An equal one that comes late must be larger.
    late = (index > ints[Entry.LAST]).to(torch.int32)
    return bits >= ints[Entry.LEAST] + late


def _only(deltas: Sequence[torch.Tensor], keep: torch.Tensor | None) -> Sequence[torch.Tensor]:
    if keep is None:
        return deltas
    mask = _mask(keep)
    return [_where(mask, delta) for delta in deltas]


def _squares(
    deltas: Sequence[torch.Tensor], scale: torch.Tensor, unit: torch.Tensor
) -> list[torch.Tensor]:
    """Σ(δ · scale)² · unit: the sums of their integer parts, and those of what these lack."""
    whole, rest = [], []
    for delta in deltas:
        scaled = delta * scale
        square = scaled * scaled * unit
        integer = square.to(torch.int64)
        whole.append(integer.sum())
        # Exact: what is left of a float32 without its integer part is one.
        remainder = (square - integer.to(torch.float32)) * 2.0**REMAINDER
        rest.append(remainder.to(torch.int64).sum())
    return whole + rest


def _fused(deltas: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Σwδ/Σw over the models that agree with the sign of Σδ; 0 where none does."""
    summed = total(deltas)
    # + for a sum of +0; a sum is -0 only where all terms are, and none agrees.
    sign = torch.copysign(torch.ones_like(summed), summed)
    # Turned by it, those that agree are positive.
    turned = [delta * sign for delta in deltas]
    agree = [_mask(one > 0) for one in turned]
    terms = zip(agree, turned, strict=True)
    change = total([_where(mask, one) * weights[i] for i, (mask, one) in enumerate(terms)])
    divisor = total([_where(mask, weights[i]) for i, mask in enumerate(agree)])
    return change * sign / divisor.clamp_min(_SMALLEST)


def _mask(condition: torch.Tensor) -> torch.Tensor:
    """All bits of an int32 where it is true, none elsewhere."""
    return -condition.to(torch.int32)


def _where(mask: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The float32 value where the mask's bits are set, else 0.

    Uncompiled, torch.where takes ten times as long.
    """
    return (value.view(torch.int32) & mask).view(torch.float32)
