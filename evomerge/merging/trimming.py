"""Trim and dominant sign over whole models, as the TIES paper's own code has them.

Arithmetic over all of the tensors goes before the merge of the first one (arXiv 2306.01708, section
3, and its published code): the trim's threshold is that of the flattened model, and where a sum of
task vectors is 0 the sign is that of most elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from evomerge.merging.masks import limit, uniform_bits
from evomerge.merging.parts import Part, scale_of
from evomerge.merging.taskvectors import pieces
from evomerge.merging.whole import Whole
from evomerge.recipe import METHODS, TensorMerge
from evomerge.references import ModelReference

Inputs = Callable[[TensorMerge], tuple[torch.Tensor, Sequence[torch.Tensor]]]
"""The base's tensor and the models' tensors of an output tensor."""

_HALF = 1 << 16


def measure(specs: Sequence[TensorMerge], inputs: Inputs) -> Whole | None:
    """What holds for whole models; None for methods that look at one tensor at a time.

    Reads everything two or three times, in pieces.

    Args:
        specs: of all floating tensors.
        inputs: gives their tensors.
    """
    if not specs or METHODS[specs[0].method].trims_whole(specs[0].variant) is None:
        return None
    models = list(dict.fromkeys(part.model for spec in specs for part in spec.contributions))
    found = Whole({model: _limit(specs, inputs, model) for model in models})
    return replace(found, sign=_dominant(specs, inputs, found))


def trimmed(part: Part, spec: TensorMerge, whole: Whole, start: int, stop: int) -> torch.Tensor:
    """What DARE and the trim leave of a task vector; float32, shape [stop - start]."""
    values = _dropped(part, spec, start, stop)
    keep = values.abs() >= whole.limits[part.contribution.model]
    return torch.where(keep, values, 0.0)


def _dropped(part: Part, spec: TensorMerge, start: int, stop: int) -> torch.Tensor:
    """What DARE leaves, rescaled; for TIES the task vector."""
    values = part.masked.piece(start, stop)
    if METHODS[spec.method].sparsifier != "random" or part.density >= 1:
        return values
    drawn = uniform_bits(part.stream, start, stop, values.device)
    return torch.where(drawn <= limit(part.density), values, 0.0) * scale_of(spec, part)


def _share(spec: TensorMerge, part: Part) -> float:
    if METHODS[spec.method].trims_whole(spec.variant) == "trim":
        return part.contribution.trim
    return part.density


def _tiles(
    specs: Sequence[TensorMerge], inputs: Inputs
) -> Iterator[tuple[TensorMerge, list[Part], int, int]]:
    for spec in specs:
        base, tensors = inputs(spec)
        pairs = zip(spec.contributions, tensors, strict=True)
        parts = [Part(spec, contribution, base, tensor) for contribution, tensor in pairs]
        for start, stop in pieces(base.numel(), base.device):
            yield spec, parts, start, stop


def _limit(specs: Sequence[TensorMerge], inputs: Inputs, model: ModelReference) -> float:
    """The (n − ⌊dn⌋)-th smallest magnitude of a model's n; 0 where that is none."""
    mine = [
        replace(spec, contributions=tuple(p for p in spec.contributions if p.model == model))
        for spec in specs
    ]

    by_name = {spec.name: spec for spec in specs}

    def of_model(spec: TensorMerge) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        whole = by_name[spec.name]
        base, tensors = inputs(whole)
        pairs = zip(whole.contributions, tensors, strict=True)
        return base, [tensor for part, tensor in pairs if part.model == model]

    counts, share, total = torch.zeros(_HALF // 2, dtype=torch.int64), 1.0, 0
    for spec, parts, start, stop in _tiles(mine, of_model):
        for part in parts:
            bits = _dropped(part, spec, start, stop).abs().view(torch.int32)
            counts += torch.bincount(bits >> 16, minlength=len(counts)).cpu()
            share, total = _share(spec, part), total + len(bits)
    place = total - int(share * total)
    if place < 1:
        return 0.0
    high = int(torch.searchsorted(counts.cumsum(0), place))
    place -= int(counts[:high].sum())
    lower = torch.zeros(_HALF, dtype=torch.int64)
    for spec, parts, start, stop in _tiles(mine, of_model):
        for part in parts:
            bits = _dropped(part, spec, start, stop).abs().view(torch.int32)
            inside = bits[(bits >> 16) == high] & (_HALF - 1)
            lower += torch.bincount(inside, minlength=_HALF).cpu()
    low = int(torch.searchsorted(lower.cumsum(0), place))
    return float(torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32))


def _dominant(specs: Sequence[TensorMerge], inputs: Inputs, whole: Whole) -> int:
    balance = 0
    for spec, parts, start, stop in _tiles(specs, inputs):
        if not parts:  # the base's tensor as it is
            continue
        total = trimmed(parts[0], spec, whole, start, stop)
        for part in parts[1:]:
            total += trimmed(part, spec, whole, start, stop)
        balance += int(total.sign().sum(dtype=torch.float64))
    return (balance > 0) - (balance < 0)
