"""The merge of one tensor: task vectors → sparsify → rescale → weigh → consensus → λ → base.

The table of methods is ``recipe.METHODS`` (sparsifier × election × defaults); here is what its
words mean. Order of operations and special cases are mergekit 0.1.5's. The arithmetic is float32
whatever the checkpoints' types are, in operations that round the same in every lane of a processor
(no fused ones), so that neither threads nor the way a tensor is cut show in a result.

What is exact, beyond rounding:

- No weight but 0, or λ = 0: the base, bit for bit.
- One model whose effective coefficient is 1 (weight 1, or any with ``normalize``), nothing dropped:
  that model, bit for bit. Its θ₀ + (θ − θ₀) in float32 could be off by a rounding of θ₀'s size.
- Density 1 equals no sparsification, epsilon 0 equals DARE: the same operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from evomerge.merging.geometry import model_stock, nuslerp, slerp
from evomerge.merging.masks import Stream
from evomerge.merging.sce import sce
from evomerge.merging.sparsifiers import (
    keep_at_random,
    keep_by_rank,
    keep_largest,
    rescale_factor,
)
from evomerge.merging.taskvectors import Memory, TaskVector, pieces
from evomerge.recipe import METHODS, Contribution, TensorMerge

Piece = Callable[[int, int], torch.Tensor]
"""Elements ``start … stop - 1`` of a result: float32, shape [stop - start]."""

_OTHERS = {"slerp": slerp, "nuslerp": nuslerp, "model_stock": model_stock, "sce": sce}
"""The methods whose coefficients are not the recipe's own."""

_NO_WEIGHT = 1e-8  # a sum of weights nearer to 0 divides by 1 instead (without election)
_LARGEST = torch.finfo(torch.float32).max


def merge(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    memory: Memory | None = None,
) -> torch.Tensor:
    """Merge one tensor.

    Args:
        spec: what is to be done; every coefficient is set.
        base: the base model's tensor, any floating type; None for a method without a base.
        tensors: the contributions' tensors, in their order, of the base's shape.
        dtype: the float32 result is rounded to it, once.
        out: where to write the result: contiguous, of the base's shape, of a type that holds
            ``dtype``'s numbers; a new tensor of ``dtype`` if None.
        memory: of task vectors merged before.

    Returns:
        ``out``. It may hold NaN or infinity, where the weights lead there.

    Raises:
        ValueError: ``linear`` is to divide by weights that sum to 0, or a method cannot merge so
            many models.
        NotImplementedError: recipes can name the method or variant, but its maths is not here.
    """
    _refuse_unknown(spec)
    example = tensors[0] if base is None else base
    if out is None:
        out = torch.empty(example.shape, dtype=dtype, device=example.device)
    flat = out.view(-1)
    with torch.no_grad():
        piece: Piece
        if spec.method in _OTHERS:
            made = _OTHERS[spec.method](spec, base, tensors, memory)
            piece, unit = made.piece, made.unit
        else:
            piece, unit = _piece(spec, base, tensors, memory), 1
        for start, stop in pieces(example.numel(), example.device, unit):
            flat[start:stop].copy_(piece(start, stop).to(dtype))
    return out


def _refuse_unknown(spec: TensorMerge) -> None:
    """Another method's arithmetic in the place of one that is missing would be a wrong model."""
    known = METHODS[spec.method]
    ours = known.consensus not in ("mean",) and known.sparsifier != "outliers"
    plain = (spec.variant, spec.mask_by, spec.mask_of) == ("mergekit", "random", "task_vectors")
    if not (ours and plain):
        asked = f"{spec.method} ({spec.variant}, {spec.mask_by}, {spec.mask_of})"
        raise NotImplementedError(f"{spec.name}: {asked} can be read but not merged")


def _piece(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    memory: Memory | None,
) -> Piece:
    pairs = zip(spec.contributions, tensors, strict=True)
    # A weight of 0 adds nothing anywhere: not to the sum, the election or a divisor.
    live = [(part, tensor) for part, tensor in pairs if part.weight != 0]
    if base is None:
        return _blend(spec, live, tensors[0])
    if not live or spec.lambda_ == 0:
        return _as_it_is(base)
    parts = [_part(spec, part, base, tensor, memory) for part, tensor in live]
    if METHODS[spec.method].elects and len(parts) > 1:
        change = _elected(parts, normalize=spec.normalize, lambda_=spec.lambda_)
    else:
        # A single model agrees with itself, and an election divides by its weight however small.
        coefficients = _coefficients(spec, parts)
        if len(parts) == 1 and parts[0].keep is None and coefficients[0] == 1:
            return _as_it_is(live[0][1])
        change = _summed(parts, coefficients)
    start_from = base.reshape(-1)
    return lambda start, stop: change(start, stop).add_(start_from[start:stop])


@dataclass(frozen=True)
class _Part:
    """A sparsified task vector: ``keep`` None keeps all, ``scale`` restores the norm."""

    vector: TaskVector
    weight: float
    keep: torch.Tensor | None
    scale: float

    def term(self, start: int, stop: int, coefficient: float) -> torch.Tensor:
        """The coefficient (with the scale in it) times the kept elements."""
        delta = self.vector.piece(start, stop)
        if self.keep is not None:
            delta.mul_(self.keep[start:stop])
        return delta if coefficient == 1 else delta.mul_(_single(coefficient))


def _part(
    spec: TensorMerge,
    part: Contribution,
    base: torch.Tensor,
    tensor: torch.Tensor,
    memory: Memory | None,
) -> _Part:
    vector = TaskVector(base, tensor, memory, (spec.base, part.model, part.tensor))
    sparsifier = METHODS[spec.method].sparsifier
    if sparsifier is None or part.density >= 1 or vector.numel == 0:
        return _Part(vector, part.weight, None, 1.0)
    stream = Stream(spec.mask_seed, part.label, part.tensor)
    if sparsifier == "magnitude":
        keep = keep_largest(vector, part.density)
    elif sparsifier == "random":
        keep = keep_at_random(vector, part.density, stream)
    else:
        keep = keep_by_rank(vector, part.density, part.epsilon, stream)
    scale = rescale_factor(vector, keep) if spec.rescale else 1.0
    return _Part(vector, part.weight, keep, scale)


def _coefficients(spec: TensorMerge, parts: Sequence[_Part]) -> list[float]:
    """w·scale·λ, divided by Σw if ``normalize``: all that a sum without election multiplies by."""
    total = math.fsum(part.weight for part in parts) if spec.normalize else 1.0
    if len(parts) > 1 or not METHODS[spec.method].elects:
        total = 1.0 if abs(total) < _NO_WEIGHT else total
    return [part.weight / total * part.scale * spec.lambda_ for part in parts]


def _summed(parts: Sequence[_Part], coefficients: Sequence[float]) -> Piece:
    """Σcδ (Task Arithmetic, arXiv 2212.04089)."""

    def piece(start: int, stop: int) -> torch.Tensor:
        change = parts[0].term(start, stop, coefficients[0])
        for part, coefficient in zip(parts[1:], coefficients[1:], strict=True):
            change.add_(part.term(start, stop, coefficient))
        return change

    return piece


def _elected(parts: Sequence[_Part], *, normalize: bool, lambda_: float) -> Piece:
    """λΣwδ over the models that agree with the elected sign (TIES, arXiv 2306.01708, section 3).

    The sign is that of the sum of the weighted task vectors, and + where that is 0. An element that
    is 0 agrees with neither. ``normalize`` divides by Σw of those that agree (by 1 where that is
    exactly 0).
    """

    def piece(start: int, stop: int) -> torch.Tensor:
        terms = [part.term(start, stop, part.weight * part.scale) for part in parts]
        total = terms[0] + terms[1]
        for term in terms[2:]:
            total.add_(term)
        positive = total.ge(0)
        change, divisor = total.zero_(), torch.zeros_like(total) if normalize else None
        for term, part in zip(terms, parts, strict=True):
            agrees = torch.where(positive, term > 0, term < 0)
            change.add_(term.mul_(agrees))
            if divisor is not None:
                divisor.add_(agrees.to(torch.float32).mul_(_single(part.weight)))
        if divisor is not None:
            change.div_(divisor.masked_fill_(divisor == 0, 1.0))
        return change if lambda_ == 1 else change.mul_(_single(lambda_))

    return piece


def _blend(
    spec: TensorMerge, parts: Sequence[tuple[Contribution, torch.Tensor]], example: torch.Tensor
) -> Piece:
    """Σwθ, divided by Σw if ``normalize`` (model soups, arXiv 2203.05482)."""
    total = math.fsum(part.weight for part, _ in parts) if spec.normalize else 1.0
    if total == 0:
        raise ValueError(f"{spec.name}: the weights sum to 0, and linear divides by their sum")
    terms = [(part.weight / total, tensor.reshape(-1)) for part, tensor in parts]
    if len(terms) == 1 and terms[0][0] == 1:
        return _as_it_is(terms[0][1])

    def piece(start: int, stop: int) -> torch.Tensor:
        result = torch.zeros(stop - start, dtype=torch.float32, device=example.device)
        for coefficient, tensor in terms:
            values = tensor[start:stop].to(torch.float32, copy=True)
            result.add_(values.mul_(_single(coefficient)))
        return result

    return piece


def _as_it_is(tensor: torch.Tensor) -> Piece:
    flat = tensor.reshape(-1)
    return lambda start, stop: flat[start:stop].to(torch.float32)


def _single(value: float) -> float:
    """The number, or infinity where float32 ends: torch refuses to convert such a scalar."""
    return value if abs(value) <= _LARGEST else math.copysign(math.inf, value)
