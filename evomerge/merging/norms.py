"""What restores a sparsified task vector's norm, and the sums that it takes.

Sums are of integers (|δ| in units of a power of two), so that they are the same whatever the order
of the terms, the device, or the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from evomerge.merging.entries import F
from evomerge.merging.kernels import BINS, FIRST_BIN, Kernel, bits_type, counted, kernel_of
from evomerge.merging.masks import limit, threshold, uniform_bits
from evomerge.merging.parts import Part, Sparsified, name_of
from evomerge.merging.programs import Programs
from evomerge.merging.tables import Tables
from evomerge.merging.taskvectors import Memory
from evomerge.recipe import TensorMerge

_NEGLIGIBLE = 1e-7  # a smaller Σ|δ| is not rescaled
_TABLE_TILE = 1 << 20  # elements whose densities are binned at a time


class Norms:
    """The norms of one tensor of several models.

    Args:
        spec: of the tensor.
        parts: the models.
        memory: of what no candidate changes.
        programs: runs kernels.
    """

    def __init__(
        self, spec: TensorMerge, parts: Sequence[Part], memory: Memory, programs: Programs
    ) -> None:
        self.spec, self.parts, self.memory, self.programs = spec, parts, memory, programs
        self.numel, self.device = parts[0].numel, parts[0].device

    def of_drawn(self, found: Sparsified) -> Sparsified:
        """What is drawn by one density for each model, with its factors."""
        summed = [self.summed(part) for part in self.parts]
        if all(pair is not None for pair in summed):
            found.scales = [_ratio(*pair) for pair in summed if pair is not None]
            return found
        return self.rescaled(found)

    def rescaled(self, found: Sparsified) -> Sparsified:
        """With Σ|δ| / Σ|kept δ|, which restores the L1 norm; 1 where either sum is below 1e-7.

        The pass that sums also writes which elements are kept; the merge reads that.
        """
        scales = [1.0] * len(self.parts)
        if self.spec.rescale and self.spec.variant == "paper":
            # MergeLM's masks by magnitude: 1/d, whatever is kept.
            found.scales = [1 / part.density for part in self.parts]
            return found
        needed = self.spec.rescale or found.keep == "ranked"
        if not needed:
            return found
        # Once only, both sums come of one pass. Else the norms are found first: they need the bits'
        # memory too.
        totals = self.spec.rescale and not self.memory.remembers
        known: list[float] | None = None
        if self.spec.rescale and not totals:
            key = ("norms", *(part.key for part in self.parts))
            known = self.memory.kept(key, self.norms)
        kernel = self.summing(found, totals=totals)
        bits = self.programs.scratch(self.numel, bits_type(kernel.models))
        kept, summed = self.sums(kernel, found, bits)
        if self.spec.rescale:
            scales = [
                1.0 if part.density >= 1 and found.keep != "band" else _ratio(b, k)
                for part, b, k in zip(self.parts, known or summed, kept, strict=True)
            ]
        return Sparsified("bits", scales, tensors=[bits])

    def summed(self, part: Part) -> tuple[float, float] | None:
        """Σ|δ| and the kept Σ|δ|, looked up; None where that is not worth it.

        The bins of a large tensor are the densities that masks are drawn at, so that the sums are
        exact; a small one's elements are put in the order in which they are kept.
        """
        if part.density >= 1:
            return 1.0, 1.0
        if not self.memory.remembers or not self.memory.has_room(12 * BINS):
            return None
        unit = part.unit(self.memory)
        if self.numel < BINS:
            order = self.memory.large(
                ("order", part.stream, *part.key), partial(self.ordered, part)
            )
            count = int(np.searchsorted(order.drawn, limit(part.density), side="right"))
            return float(order.sums[-1]) / unit, float(order.sums[count]) / unit
        level = threshold(part.density)
        if level < 1 << 12:
            return None
        sums = self.memory.large(("table", part.stream, *part.key), partial(self.binned, part))
        # The bits of a float32 without the 13 lowest: the exponent, and ten of what follows it.
        exponent = level.bit_length() - 1
        place = ((exponent + 126) << 10) + ((level << 10) >> exponent)
        return float(sums[-1]) / unit, float(sums[place - FIRST_BIN]) / unit

    def ordered(self, part: Part) -> _Order:
        """The elements by the numbers drawn for them, and Σ|δ| of the first 0, 1, … of them."""
        drawn = uniform_bits(part.stream, 0, self.numel, self.device)
        size = part.masked.sizes(0, self.numel) * part.unit(self.memory)
        ascending, order = drawn.sort()
        sums = torch.zeros(self.numel + 1, dtype=torch.int64, device=self.device)
        sums[1:] = counted(size)[order].cumsum(0)
        return _Order(ascending.cpu().numpy(), sums.cpu().numpy())

    def binned(self, part: Part) -> np.ndarray:
        """Σ|δ| of the elements up to each bin; int64, shape [BINS]."""
        kernel = Kernel(
            "table",
            (part.type,),
            None if part.of_weights else name_of(part.base),
            None,
            "random",
        )
        tables = Tables(1, self.device)
        tables.draw(0, part.stream)
        tables.set(F.UNIT, 0, part.unit(self.memory))
        inputs = [part.tensor] if part.of_weights else [part.base, part.tensor]
        sums = torch.zeros(BINS, dtype=torch.int64, device=self.device)
        size = min(self.numel, _TABLE_TILE)
        # Taken anew each time, what is kept came to lie between, and left no room for as much.
        places, values = self.programs.scratch(2 * size, torch.int64).split(size)
        runner = self.programs.of(kernel)
        for start in range(0, self.numel, size):
            stop = min(start + size, self.numel)
            mine = [tensor[start:stop] for tensor in inputs]
            outs = [places[: stop - start], values[: stop - start]]
            runner.run_piece([*mine, *outs, *tables.at(start)])
            sums.scatter_add_(0, outs[0], outs[1])
        return sums.cumsum(0).cpu().numpy()

    def units(self) -> list[float]:
        """The unit of each model's sums."""
        return [part.unit(self.memory) for part in self.parts]

    def norms(self) -> list[float]:
        """Σ|δ| of each model."""
        dense = Sparsified("all", [])
        kernel = self.summing(dense)
        bits = self.programs.scratch(self.numel, bits_type(kernel.models))
        return self.sums(kernel, dense, bits)[0]

    def summing(self, found: Sparsified, *, totals: bool = False) -> Kernel:
        return kernel_of(
            goal="sums",
            dtypes=tuple(part.type for part in self.parts),
            base=None if self.parts[0].of_weights else name_of(self.parts[0].base),
            out=None,
            keep=found.keep,
            shared=found.shared,
            ranks=found.ranks,
            totals=totals,
        )

    def sums(
        self, kernel: Kernel, found: Sparsified, bits: torch.Tensor
    ) -> tuple[list[float], list[float]]:
        """The kept Σ|δ| of each model, and Σ|δ| if the kernel sums that too."""
        tables = Tables(len(self.parts), self.device)
        found.fill(tables)
        units = self.memory.kept(("units", *(part.key for part in self.parts)), self.units)
        tables.fill(F.UNIT, units)
        inputs = [self.parts[0].base] if kernel.base else []
        inputs += [*(part.tensor for part in self.parts), *found.tensors, bits]
        models = len(self.parts)
        count = models * 2 if kernel.totals else models
        sums = [0] * count
        runner = self.programs.of(kernel)
        for start, mine in runner.pieces(inputs, self.numel):
            out = torch.empty(count, dtype=torch.int64, device=self.device)
            runner.run_piece([*mine, out, *tables.at(start)])
            sums = [total + one for total, one in zip(sums, out.tolist(), strict=True)]
        kept, all_ = sums[:models], sums[models:] or [0] * models
        return [k / u for k, u in zip(kept, units, strict=True)], [
            a / u for a, u in zip(all_, units, strict=True)
        ]


@dataclass(frozen=True)
class _Order:
    drawn: np.ndarray
    sums: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.drawn.nbytes + self.sums.nbytes


def _ratio(before: float, kept: float) -> float:
    return before / kept if before >= _NEGLIGIBLE and kept >= _NEGLIGIBLE else 1.0
