"""The task-arithmetic family: task vectors → sparsify → rescale → weigh → consensus → λ → base.

The table of methods is ``recipe.METHODS`` (sparsifier × consensus × defaults); here is what its
words mean. Order of operations and special cases are mergekit 0.1.5's; the variants are those of
the papers' own code. The arithmetic is in ``kernels``: here it is decided which of them run, and
with which numbers.

What is exact, beyond rounding:

- No weight but 0, or λ = 0: the base, bit for bit.
- One model whose effective coefficient is 1 (weight 1, or any with ``normalize``), nothing dropped:
  that model, bit for bit. Its θ₀ + (θ − θ₀) in float32 could be off by a rounding of θ₀'s size.
- Density 1 equals no sparsification, epsilon 0 equals DARE: the same operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from evomerge.merging.entries import F, I
from evomerge.merging.kernels import Kernel, kernel_of
from evomerge.merging.parts import Part, Sparsified, flattened, name_of
from evomerge.merging.programs import Programs
from evomerge.merging.sparsifying import foresee, sparsify
from evomerge.merging.tables import Tables
from evomerge.merging.taskvectors import Memory
from evomerge.merging.whole import Whole
from evomerge.recipe import METHODS, TensorMerge

_NO_WEIGHT = 1e-8  # a sum of weights nearer to 0 divides by 1 instead (without election)


@dataclass(frozen=True)
class Work:
    """What merging a tensor needs besides its recipe and its inputs.

    Args:
        memory: of what no candidate changes.
        programs: runs the kernels.
        whole: what holds for all of the models' tensors; for the variants that look at them all.
    """

    memory: Memory
    programs: Programs
    whole: Whole | None = None


def merge_family(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    out: torch.Tensor,
    work: Work,
) -> float:
    """Merge one tensor into ``out``, whose type the result is rounded to, once.

    Args:
        spec: what is to be done; every coefficient is set.
        base: the base model's tensor; None for a method without a base.
        tensors: the contributions' tensors, in their order, of the base's shape.
        out: contiguous, of the base's shape.
        work: see there.

    Returns:
        A magnitude that no element exceeds; infinity where it was not looked for.

    Raises:
        ValueError: ``linear`` is to divide by weights that sum to 0.
    """
    if base is None:
        _blend(spec, tensors, out, work)
        return math.inf
    if METHODS[spec.method].trims_whole(spec.variant) and work.whole is None:
        raise ValueError(f"{spec.name}: {spec.method} ({spec.variant}) looks at whole models")
    parts = _parts(spec, base, tensors)
    if not parts:
        out.copy_(base)
        return math.inf
    consensus = METHODS[spec.method].consensus_of(spec.variant)
    elects = consensus in ("elect", "mean") and len(parts) > 1
    coefficients = [1.0] * len(parts) if elects else _shares(spec, parts, consensus)
    first = parts[0].contribution
    only = len(parts) == 1 and first.density >= 1 and first.trim >= 1
    if only and coefficients[0] == 1:
        flattened(out).copy_(parts[0].tensor)
        return math.inf
    masked = sparsify(spec, parts, work.memory, work.programs, work.whole)
    _combine(spec, parts, masked, coefficients, out, work, elects)
    if masked.unbiased or not (work.memory.remembers or spec.rescale):
        return math.inf  # unbiased: what is divided by may be small
    return _bound(spec, parts, masked.scales, work.memory)


def prepare(
    spec: TensorMerge, base: torch.Tensor | None, tensors: Sequence[torch.Tensor], work: Work
) -> None:
    """Find out into ``work.memory`` what the merge will look up and takes no kernel."""
    parts = [] if base is None else _parts(spec, base, tensors)
    if parts:
        foresee(spec, parts, work.memory, work.programs)


def _parts(spec: TensorMerge, base: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[Part]:
    """The models that have part in the result; none where it is the base."""
    pairs = list(zip(spec.contributions, tensors, strict=True))
    # A weight of 0 adds nothing anywhere: not to the sum, the election or a divisor.
    live = [(part, tensor) for part, tensor in pairs if part.weight != 0]
    if not live or spec.lambda_ == 0:
        return []
    base = flattened(base)  # once for all of them
    return [Part(spec, part, base, tensor) for part, tensor in (live if len(live) == 1 else pairs)]


def _bound(
    spec: TensorMerge, parts: Sequence[Part], scales: Sequence[float], memory: Memory
) -> float:
    """How large an element can become, roughly: the base, and all task vectors on top of it."""
    weights = [part.weight for part in parts]
    if spec.normalize and min(weights) < 0:
        return math.inf  # what is divided by may be small
    key = ("bounds", spec.base, *(part.key for part in parts))
    bounds = memory.kept(key, lambda: [part.bound(memory) for part in parts])
    # float32 may overflow on the way, before λ or a divisor makes the numbers small again.
    on_the_way = sum(
        abs(weight) * max(scale, 1.0) * max(bound, 1.0)
        for weight, scale, bound in zip(weights, scales, bounds, strict=True)
    )
    if not on_the_way * max(abs(spec.lambda_), 1.0) < torch.finfo(torch.float32).max / 2:
        return math.inf
    # Divided by the sum of positive weights, no model counts more than once.
    counts = [1.0 if spec.normalize else abs(weight) for weight in weights]
    found = sum(
        count * scale * bound for count, scale, bound in zip(counts, scales, bounds, strict=True)
    )
    return max(bounds) + abs(spec.lambda_) * found


def _shares(spec: TensorMerge, parts: Sequence[Part], consensus: str) -> list[float]:
    """w·λ, divided by Σw if ``normalize``: all that a sum without election multiplies by."""
    if consensus == "mean":
        return [spec.lambda_] * len(parts)
    total = _total(part.weight for part in parts) if spec.normalize else 1.0
    # A single model agrees with itself, and an election divides by its weight however small.
    if consensus != "elect" and abs(total) < _NO_WEIGHT:
        total = 1.0
    return [part.weight / total * spec.lambda_ for part in parts]


def _combine(
    spec: TensorMerge,
    parts: Sequence[Part],
    masked: Sparsified,
    shares: Sequence[float],
    out: torch.Tensor,
    work: Work,
    elects: bool,
) -> None:
    """One pass: kept elements times their coefficients, elected or not, onto the base."""
    plain = METHODS[spec.method].consensus_of(spec.variant) == "mean"
    kernel = kernel_of(
        goal="merge",
        dtypes=tuple(part.type for part in parts),
        base=name_of(parts[0].base),
        out=name_of(out),
        keep=masked.keep,
        shared=masked.shared,
        elect=(("given" if plain else "plus") if elects else None),
        normalize=elects and (spec.normalize or plain),
        of_weights=masked.of_weights,
        unbiased=masked.unbiased,
        ranks=masked.ranks,
    )
    tables = Tables(len(parts), out.device)
    own = [part.weight for part in parts]
    weights, scales = own if elects and not plain else list(shares), masked.scales
    both = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
    tables.fill(F.COEFFICIENT, weights if masked.of_weights else both)
    tables.fill(F.RESCALE, scales)
    tables.fill(F.WEIGHT, [1.0] * len(parts) if plain else own)
    tables.set(F.SHARED, 0, spec.lambda_)
    tables.set(I.SHARED, 0, 1 if work.whole is None else work.whole.sign)
    masked.fill(tables)
    inputs = [parts[0].base, *(part.tensor for part in parts), *masked.tensors, flattened(out)]
    work.programs.of(kernel).run(inputs, parts[0].numel, tables.at)


def _blend(
    spec: TensorMerge, tensors: Sequence[torch.Tensor], out: torch.Tensor, work: Work
) -> None:
    """Σwθ, divided by Σw if ``normalize`` (model soups, arXiv 2203.05482)."""
    weights = [part.weight for part in spec.contributions]
    total = _total(weights) if spec.normalize else 1.0
    if total == 0:
        raise ValueError(f"{spec.name}: the weights sum to 0, and linear divides by their sum")
    terms = [(w / total, t) for w, t in zip(weights, tensors, strict=True) if w != 0]
    if not terms:
        out.zero_()
        return
    if len(terms) == 1 and terms[0][0] == 1:
        out.copy_(terms[0][1])
        return
    kernel = Kernel("merge", tuple(name_of(t) for _, t in terms), None, name_of(out))
    tables = Tables(len(terms), out.device)
    tables.fill(F.COEFFICIENT, [coefficient for coefficient, _ in terms])
    flat = [flattened(tensor) for tensor in (*(t for _, t in terms), out)]
    work.programs.of(kernel).run(flat, out.numel(), tables.at)


def _total(weights: Iterable[float]) -> float:
    """Their exact sum, rounded once; no number where it is too large for one."""
    found = list(weights)
    try:
        return math.fsum(found)
    except OverflowError:
        return math.nan
