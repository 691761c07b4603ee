"""SCE: select the elements that vary most, weigh the models by what is left, erase minorities.

From FuseChat (arXiv 2408.07990, section 3.2); special cases are mergekit 0.1.5's. Only the choice
of ``select_topk`` changes between candidates: with all elements selected, and whenever the choice
is the last one again, a candidate is one pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from evomerge.merging.fusion import REMAINDER, Entry, Fusion, Goal
from evomerge.merging.kernels import SUM_BITS
from evomerge.merging.mixtures import Copied, Made, same
from evomerge.merging.parts import flattened, largest, name_of
from evomerge.merging.programs import Programs
from evomerge.merging.selection import Counts, Limit, count, limit
from evomerge.merging.taskvectors import Memory
from evomerge.recipe import TensorMerge

_NO_SUM = 1e-6  # a smaller sum of mean squares weighs all models alike
_FAR = (1 << 31) - 1
_SCALES = -130, 120  # powers of two: from float32's largest differences on, and as it holds them
_PRECISE = 28  # bits of a square, on average, that are summed at least


@dataclass(frozen=True)
class _Chosen:
    """The elements that are merged, and what the models weigh: Σδ² over them."""

    limit: Limit | None
    squares: tuple[float, ...]


def sce(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    memory: Memory,
    programs: Programs,
) -> Made:
    """θ₀ + Σwδ/Σw over the models that agree with the elected sign, at the selected elements.

    Selected are the ⌊select_topk·m⌋ elements whose task vectors vary most between the models, m
    being how many vary at all; of equal ones the first. Elsewhere the base stays. w is a model's
    share of Σδ² over the selected elements (alike where the mean squares sum to less than 1e-6).
    The sign is that of Σδ, + where that is 0. Σw below 1e-6 divides by 1e-6.

    Args:
        spec: ``select_topk`` and the names; the weights play no part.
        base: the base model's tensor.
        tensors: the models', of its shape; none at all gives the base.
        memory: keeps how the variances are spread, Σδ² of each model, and the last selection.
        programs: runs the passes.

    Raises:
        ValueError: there is no base.
    """
    if base is None:
        raise ValueError(f"{spec.name}: sce needs a base model")
    if not tensors or base.numel() == 0 or spec.select_topk <= 0:
        return Copied(base)
    names = tuple((part.model, part.tensor) for part in spec.contributions)
    models = _Models(base, tensors, programs)
    key = ("sce", spec.base, *names)
    if spec.select_topk >= 1 and memory.kept((*key, "equal"), lambda: same(tensors)):
        return Copied(tensors[0])
    sizes = [largest(one, name, memory) for one, name in zip(tensors, names, strict=True)]
    bound = largest(base, spec.base, memory) + max(sizes)
    every = memory.kept((*key, "all"), lambda: models.squares(None, bound))
    if spec.select_topk >= 1:
        return _Merge(models, _Chosen(None, every))
    counts = memory.kept((*key, "variances"), models.counts)
    wanted = int(counts.nonzero * spec.select_topk)
    if wanted == 0:
        return Copied(base)

    def choose() -> _Chosen:
        within = limit(models, counts, wanted, models.numel)
        # Where all of them together are too small to weigh the models, so are some of them.
        small = _are_small(every, models.numel)
        return _Chosen(within, every if small else models.squares(within, bound))

    return _Merge(models, memory.kept((*key, "chosen"), choose, wanted))


class _Models:
    """Several models' tensors beside the base's, all of one shape."""

    def __init__(
        self, base: torch.Tensor, tensors: Sequence[torch.Tensor], programs: Programs
    ) -> None:
        self.inputs = [flattened(tensor) for tensor in (base, *tensors)]
        self.types = name_of(base), tuple(name_of(tensor) for tensor in tensors)
        self.numel, self.device = base.numel(), base.device
        self.programs = programs

    def kernel(self, goal: Goal, within: Limit | None, out: str | None = None) -> Fusion:
        """A pass over them."""
        base, types = self.types
        return Fusion(goal, types, base, out, selects=within is not None)

    def tables(
        self,
        start: int = 0,
        within: Limit | None = None,
        half: int = -1,
        floats: Sequence[float] = (),
    ) -> list[torch.Tensor]:
        """The two small tables of a pass, for a piece from element ``start`` on."""
        numbers = np.zeros(len(self.types[1]) + 2)
        numbers[len(numbers) - len(floats) :] = floats
        ints = np.zeros(len(Entry), dtype=np.int32)
        ints[Entry.HALF] = half
        if within is not None:
            ints[Entry.LEAST] = within.bits
            ints[Entry.LAST] = min(max(within.last - start, -1), _FAR)
        made = torch.from_numpy(numbers).to(torch.float32), torch.from_numpy(ints)
        return [table.to(self.device) for table in made]

    def counts(self) -> Counts:
        """How the variances are spread."""
        return count(self, self.numel, self.device)

    def bits(self, start: int, stop: int) -> torch.Tensor:
        """The variances' bits; int32. In memory that is used again."""
        return self._variances(start, stop, -1)[0]

    def inside(self, start: int, stop: int, half: int) -> torch.Tensor:
        """Those whose upper half is ``half``."""
        bits, there = self._variances(start, stop, half)
        if self.device.type != "cpu":
            return bits[there]
        # numpy finds the few in a fraction of torch's time.
        return bits[torch.from_numpy(np.flatnonzero(there.numpy()))]

    def _variances(self, start: int, stop: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = stop - start
        room = self.programs.scratch(5 * size, torch.uint8)
        bits, there = room[: 4 * size].view(torch.int32), room[4 * size :].view(torch.bool)
        tiles = [tensor[start:stop] for tensor in self.inputs]
        runner = self.programs.of(self.kernel("variances", None))
        runner.run_piece([*tiles, bits, there, *self.tables(half=half)])
        return bits, there

    def squares(self, within: Limit | None, bound: float) -> tuple[float, ...]:
        """Σδ² of each model over the chosen elements, none of which exceeds ``bound``."""
        room = SUM_BITS - self.numel.bit_length()
        scale = _scale(bound)
        while True:
            sums = self._sums(within, [2.0**scale, 2.0**room])
            # The chosen elements may be far smaller than others are.
            # (A sum may be any number where task vectors overflow, as then does the merge.)
            units = max(sum(sums), 0) + self.numel
            most = math.ldexp(float(units), -room - REMAINDER - 2 * scale)
            finer = _scale(math.sqrt(most))
            precise = sum(sums) >= self.numel << _PRECISE
            if precise or finer <= scale or _are_small([most], self.numel):
                break
            scale = finer
        return tuple(math.ldexp(float(one), -room - REMAINDER - 2 * scale) for one in sums)

    def _sums(self, within: Limit | None, floats: Sequence[float]) -> list[int]:
        models = len(self.types[1])
        runner = self.programs.of(self.kernel("squares", within))
        sums = [0] * models
        for start, tiles in runner.pieces(self.inputs, self.numel):
            made = torch.zeros(2 * models, dtype=torch.int64, device=self.device)
            runner.run_piece([*tiles, made, *self.tables(start, within, floats=floats)])
            found = made.tolist()
            parts = zip(found[:models], found[models:], strict=True)
            sums = [
                mine + (whole << REMAINDER) + rest
                for mine, (whole, rest) in zip(sums, parts, strict=True)
            ]
        return sums


@dataclass(frozen=True)
class _Merge:
    """SCE's result, yet to be written.

    Args:
        models: what it is made of.
        chosen: what is selected.
    """

    models: _Models
    chosen: _Chosen
    reach: ClassVar[float] = 3.0  # the base, and a task vector on top of it

    def write(self, out: torch.Tensor, programs: Programs) -> None:
        models, within = self.models, self.chosen.limit
        runner = programs.of(models.kernel("merge", within, name_of(out)))
        floats = [*_weights(self.chosen.squares, models.numel), 0.0, 0.0]
        for start, tiles in runner.pieces([*models.inputs, out], models.numel):
            runner.run_piece([*tiles, *models.tables(start, within, floats=floats)])


def _scale(bound: float) -> int:
    """The power of two that brings numbers of at most ``bound`` below 1."""
    least, most = _SCALES
    return min(max(-math.frexp(bound)[1], least), most)


def _weights(squares: Sequence[float], numel: int) -> list[float]:
    if _are_small(squares, numel):
        return [1 / len(squares)] * len(squares)
    total = math.fsum(squares)
    return [square / total for square in squares]


def _are_small(squares: Sequence[float], numel: int) -> bool:
    return math.fsum(squares) / numel < _NO_SUM
