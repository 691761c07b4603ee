"""The merge of one tensor, by whatever method: the door to the room's maths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from evomerge.merging.family import Work, merge_family
from evomerge.merging.family import prepare as prepare_family
from evomerge.merging.geometry import model_stock, nuslerp, slerp
from evomerge.merging.parts import largest
from evomerge.merging.programs import Programs
from evomerge.merging.sce import sce
from evomerge.merging.taskvectors import Memory
from evomerge.merging.whole import Whole
from evomerge.recipe import TensorMerge

_BY_ANGLES = {"slerp": slerp, "nuslerp": nuslerp, "model_stock": model_stock}

_OTHERS = (*_BY_ANGLES, "sce")
"""The methods whose coefficients are not the recipe's own."""


def merge(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    memory: Memory | None = None,
    programs: Programs | None = None,
    whole: Whole | None = None,
) -> torch.Tensor:
    """Merge one tensor.

    The arithmetic is float32 whatever the types are.

    Args:
        spec: what is to be done; every coefficient is set.
        base: the base model's tensor, any floating type; None for a method without a base.
        tensors: the contributions' tensors, in their order, of the base's shape.
        dtype: the float32 result is rounded to it, once.
        out: where to write the result: contiguous, of the base's shape, of a type that holds
            ``dtype``'s numbers; a new tensor of ``dtype`` if None.
        memory: of what was found out about these models before; None remembers nothing.
        programs: runs the kernels; None runs them uncompiled.
        whole: what holds for all tensors of the models, in the variants that look at them all.

    Returns:
        ``out``. It may hold NaN or infinity, where the weights lead there.

    Raises:
        ValueError: ``linear`` is to divide by weights that sum to 0, a method cannot merge so many
            models, or ``whole`` is missing.
    """
    merged, _ = merge_bounded(
        spec,
        base,
        tensors,
        dtype=dtype,
        out=out,
        memory=memory,
        programs=programs,
        whole=whole,
    )
    return merged


def prepare(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    memory: Memory,
    programs: Programs,
) -> None:
    """Find out into ``memory`` what a merge of the same arguments will look up.

    All of it on this thread, without kernels, so that several tensors can be prepared at once.
    """
    if spec.method not in _OTHERS:
        with torch.no_grad():
            prepare_family(spec, base, tensors, Work(memory, programs))


def merge_bounded(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    memory: Memory | None = None,
    programs: Programs | None = None,
    whole: Whole | None = None,
) -> tuple[torch.Tensor, bool]:
    """The same, and whether it is certain, by what the inputs are, that all of it is finite."""
    example = tensors[0] if base is None else base
    if out is None:
        out = torch.empty(example.shape, dtype=dtype, device=example.device)
    # A wider place holds the rounded numbers.
    rounded = out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)
    work = Work(memory or Memory(0), programs or Programs(example.device), whole)
    with torch.no_grad():
        if spec.method in _OTHERS:
            bound = _merge_other(spec, base, tensors, rounded, work)
        else:
            bound = merge_family(spec, base, tensors, rounded, work)
        if rounded is not out:
            out.copy_(rounded)
    most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    return out, bound < most / 2


def _merge_other(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    out: torch.Tensor,
    work: Work,
) -> float:
    """As ``merge_family``, by a method of ``_OTHERS``."""
    if spec.method == "sce":
        made = sce(spec, base, tensors, work.memory, work.programs)
    else:
        made = _BY_ANGLES[spec.method](spec, base, tensors, work.memory)
    made.write(out.view(-1), work.programs)
    if not work.memory.remembers or made.reach == math.inf:
        return math.inf
    keys = [(part.model, part.tensor) for part in spec.contributions]
    found = [largest(one, key, work.memory) for one, key in zip(tensors, keys, strict=True)]
    if base is not None:
        found.append(largest(base, spec.base, work.memory))
    return made.reach * max(found)
