"""Whether both programs made the same model of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from evomerge.checkpoints import Checkpoint
from evomerge.merging import layout_of
from evomerge.recipe import METHODS, Recipe, TensorMerge, resolve
from tests.benchmarks.models import Family

ELEMENTWISE = ("linear", "task_arithmetic", "ties", "slerp", "nuslerp", "model_stock")
"""Methods whose results are compared number by number; of the others, what the merge changed in
all, because they draw random numbers or may keep any of many equal magnitudes."""

FEW = 1e-5
"""The share of numbers that may differ: where weighted task vectors cancel but for a rounding, the
elected sign is that rounding's."""

CLOSE = 0.01
"""How far apart both programs' changes of the base may be, as a share."""


@dataclass(frozen=True)
class Agreement:
    """How far two merged models agree.

    Args:
        compared: the share of numbers that was compared one by one; 0 if only sums were.
        different: the share of those that differ by more than the rounding to bfloat16.
        change: Σ|merged − base| of ours over mergekit's; NaN where the method has no base.
    """

    compared: float
    different: float
    change: float

    @property
    def same_numbers(self) -> bool:
        """Whether next to no number that was compared differs."""
        return self.different <= FEW

    @property
    def same_change(self) -> bool:
        """Whether both changed the base as much."""
        return math.isnan(self.change) or abs(self.change - 1) <= CLOSE

    @property
    def holds(self) -> bool:
        """Whether that is agreement."""
        return self.same_numbers and self.same_change


def compare(
    family: Family,
    text: str,
    ours: Mapping[str, torch.Tensor],
    theirs: Iterable[tuple[str, torch.Tensor]],
) -> Agreement:
    """Compare the tensors of a recipe, as they come.

    Raises:
        ValueError: a tensor is missing, or of another shape or type.
    """
    recipe = Recipe.from_yaml(text)
    specs = {
        spec.name: spec for spec in resolve(recipe, layout_of(Checkpoint.open(str(family.base))))
    }
    by_element = recipe.merge_method in ELEMENTWISE
    seen, total, compared, different, changes = set(), 0, 0, 0, [0.0, 0.0]
    for name, theirs_one in theirs:
        ours_one, other = ours[name].cpu(), theirs_one.cpu()
        if (ours_one.shape, ours_one.dtype) != (other.shape, other.dtype):
            problem = (
                f"{list(ours_one.shape)} {ours_one.dtype} and {list(other.shape)} {other.dtype}"
            )
            raise ValueError(f"{name}: {problem}")
        seen.add(name)
        total += other.numel()
        if by_element:
            fair = ~_tied(specs[name])
            compared += int(fair.sum())
            different += int((_differ(ours_one, other) & fair).sum())
        if (stored := specs[name].base) is not None:
            base = _stored(Path(stored[0].path), stored[1])
            for side, tensor in enumerate((ours_one, other)):
                changes[side] += float((tensor.float() - base).abs().sum(dtype=torch.float64))
    if seen != set(specs):
        raise ValueError(f"only one program has: {', '.join(sorted(seen ^ set(specs)))}")
    change = changes[0] / changes[1] if changes[1] else math.nan
    return Agreement(compared / total, different / compared if compared else 0.0, change)


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where numbers differ by more than a unit in the last place of their type.

    A sum that nearly cancels is as exact as its terms, which are as large as the tensor's numbers.
    """
    one_, other_ = one.float(), other.float()
    larger = torch.maximum(one_.abs(), other_.abs())
    rounding = 8 * torch.finfo(torch.float32).eps * float(larger.max())
    return (one_ - other_).abs() > torch.finfo(one.dtype).eps * larger + rounding


def _tied(spec: TensorMerge) -> torch.Tensor:
    """Elements as large as the smallest kept one of several, of which mergekit keeps any."""
    first = spec.contributions[0]
    if METHODS[spec.method].sparsifier != "magnitude" or spec.base is None:
        shape = _stored(Path(first.model.path), first.tensor).shape
        return torch.zeros(shape, dtype=torch.bool)
    base = _stored(Path(spec.base[0].path), spec.base[1])
    tied = torch.zeros(base.shape, dtype=torch.bool)
    for part in spec.contributions:
        if part.density >= 1:
            continue
        size = (_stored(Path(part.model.path), part.tensor) - base).abs()
        place = size.numel() - max(1, int(part.density * size.numel()))
        limit = float(np.partition(size.view(-1).numpy(), place)[place])
        if int((size == limit).sum()) > 1:
            tied |= size == limit
    return tied


def _stored(folder: Path, name: str) -> torch.Tensor:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            if name in set(opened.keys()):
                return opened.get_tensor(name).float()
    raise ValueError(f"{folder} has no tensor {name}")
