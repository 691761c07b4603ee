"""The merge of one tensor: task vectors → sparsify → weigh → consensus → λ → base.

The table of methods is ``recipe.METHODS`` (sparsifier × election × defaults); here is what its
words mean. Order of operations and special cases are mergekit 0.1.5's; the arithmetic is float32
whatever the checkpoints' types are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.masks import Stream
from evomerge.merging.sparsifiers import keep_at_random, keep_by_rank, keep_largest, masked
from evomerge.recipe import METHODS, Contribution, TensorMerge

_NO_WEIGHT = 1e-8  # a sum of weights nearer to 0 divides by 1 instead (without election)


def merge(
    spec: TensorMerge, base: torch.Tensor | None, tensors: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Merge one tensor.

    Args:
        spec: what is to be done; every coefficient is set.
        base: the base model's tensor; None for a method without a base.
        tensors: the fine-tuned models' tensors, one per contribution, of the base's shape.

    Returns:
        float32, of the same shape and in memory of its own. It is the base bit for bit where all
        weights (or lambda) are 0, and the fine-tuned model bit for bit where a single model's whole
        task vector is added.
    """
    # A weight of 0 adds nothing anywhere: not to the sum, the election or the divisor.
    parts = [
        (part, tensor)
        for part, tensor in zip(spec.contributions, tensors, strict=True)
        if part.weight != 0 and spec.lambda_ != 0
    ]
    if len(parts) == 1 and _is_whole(spec, parts[0][0]):
        return parts[0][1].to(torch.float32, copy=True)
    if base is None:
        return _blend(spec, parts) if parts else torch.zeros_like(tensors[0], dtype=torch.float32)
    if not parts:
        return base.to(torch.float32, copy=True)
    start = base.to(torch.float32)
    deltas = [
        _sparsified(spec, part, tensor.to(torch.float32) - start).mul_(part.weight)
        for part, tensor in parts
    ]
    weights = [part.weight for part, _ in parts]
    if METHODS[spec.method].elects:
        change = _elected(deltas, weights, normalize=spec.normalize)
    else:
        change = _summed(deltas, weights, normalize=spec.normalize)
    if spec.lambda_ != 1:
        change.mul_(spec.lambda_)
    return change.add_(start)


def _is_whole(spec: TensorMerge, part: Contribution) -> bool:
    """Whether a lone model's whole task vector is added, so that the result is that model."""
    factor_is_one = part.weight == 1 or (spec.normalize and abs(part.weight) >= _NO_WEIGHT)
    whole = METHODS[spec.method].sparsifier is None or part.density >= 1
    return factor_is_one and whole and spec.lambda_ == 1


def _blend(spec: TensorMerge, parts: Sequence[tuple[Contribution, torch.Tensor]]) -> torch.Tensor:
    """Σwθ, divided by Σw if ``normalize`` (model soups, arXiv 2203.05482)."""
    (first, tensor), *others = parts
    result = tensor.to(torch.float32) * first.weight
    for part, tensor in others:
        result.add_(tensor.to(torch.float32) * part.weight)
    return result.div_(sum(part.weight for part, _ in parts)) if spec.normalize else result


def _sparsified(spec: TensorMerge, part: Contribution, delta: torch.Tensor) -> torch.Tensor:
    sparsifier = METHODS[spec.method].sparsifier
    if sparsifier is None or part.density >= 1 or delta.numel() == 0:
        return delta

    def bits() -> torch.Tensor:
        stream = Stream(spec.mask_seed, part.label, part.tensor)
        return stream.bits(delta.numel(), device=delta.device)

    if sparsifier == "magnitude":
        keep = keep_largest(delta, part.density)
    elif sparsifier == "random":
        keep = keep_at_random(delta, part.density, bits)
    else:
        keep = keep_by_rank(delta, part.density, part.epsilon, bits)
    return masked(delta, keep, rescale=spec.rescale)


def _summed(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool
) -> torch.Tensor:
    """Σwδ, divided by Σw if ``normalize`` (Task Arithmetic, arXiv 2212.04089)."""
    change = deltas[0]
    for delta in deltas[1:]:
        change.add_(delta)
    total = sum(weights)
    if normalize and abs(total) >= _NO_WEIGHT:
        change.div_(total)
    return change


def _elected(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool
) -> torch.Tensor:
    """Σwδ over the models that agree with the elected sign (TIES, arXiv 2306.01708, section 3).

    The sign is that of the sum of the weighted task vectors, and + where that is 0. An element that
    is 0 agrees with neither sign. ``normalize`` divides by Σw of those that agree (by 1 where it is
    exactly 0).
    """
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    positive = total >= 0
    change, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = torch.where(positive, delta > 0, delta < 0)
        change.add_(delta * agrees)
        divisor.add_(agrees, alpha=weight)
    if not normalize:
        return change
    return change.div_(torch.where(divisor == 0, torch.ones_like(divisor), divisor))
