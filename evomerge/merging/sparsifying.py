"""Which elements of task vectors are kept, and what the kept ones are multiplied by.

``density`` d is the share that is kept, in (0, 1]. The meaning is mergekit 0.1.5's, apart from
equal magnitudes at a threshold: it keeps any of them, we those of smaller index. The sums that
restore a norm are of integers (|δ| in units of a power of two), so that they are the same whatever
the order of the terms, the device, or the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from evomerge.merging import ranks as ranking
from evomerge.merging.kernels import BINS, FIRST_BIN, F, I, Keep, Kernel
from evomerge.merging.magnitudes import ALL, NONE, Largest, Magnitudes, select
from evomerge.merging.masks import (
    Stream,
    drawn_density,
    limit,
    rank_limits,
    threshold,
    uniform_bits,
)
from evomerge.merging.programs import Programs
from evomerge.merging.selection import middle
from evomerge.merging.tables import Tables
from evomerge.merging.taskvectors import Memory, TaskVector, pieces
from evomerge.merging.whole import Whole
from evomerge.recipe import METHODS, Contribution, TensorMerge

_NEGLIGIBLE = 1e-7  # a smaller Σ|δ| is not rescaled
_TABLE_TILE = 1 << 20  # elements whose densities are binned at a time
_ROOM = 61  # bits of a sum of integers


class Part:
    """One model's tensor beside the base's, and what is asked of it.

    Args:
        spec: of the tensor.
        contribution: of the model.
        base: the base's tensor.
        tensor: the model's.
    """

    def __init__(
        self,
        spec: TensorMerge,
        contribution: Contribution,
        base: torch.Tensor,
        tensor: torch.Tensor,
    ) -> None:
        self.contribution, self.base, self.tensor = contribution, base, tensor
        self.weight = contribution.weight
        # A model without weight has no part in the result; nothing need be looked up for it.
        self.density = contribution.density if contribution.weight else 1.0
        self.of_weights = spec.mask_of == "weights"
        self.masked = TaskVector(None if self.of_weights else base, tensor)
        self.key = (None if self.of_weights else spec.base, contribution.model, contribution.tensor)
        self.stream = Stream(spec.mask_seed, contribution.label, contribution.tensor)

    def unit(self, memory: Memory) -> float:
        """The power of two whose inverse is the unit of this tensor's sums."""
        bound = self.bound(memory)
        if bound == 0:
            return 1.0
        bits = math.frexp(bound)[1] + self.masked.numel.bit_length()
        return 2.0 ** min(_ROOM - bits, 100)

    def bound(self, memory: Memory) -> float:
        """A magnitude that neither the model, nor the base, nor their difference exceeds."""
        return memory.kept((*self.key, "bound"), self._bound)

    def _bound(self) -> float:
        found = 0.0
        for tensor in (self.tensor, self.base):
            if tensor.numel() == 0:
                continue
            low, high = torch.aminmax(tensor)
            found += max(abs(float(low)), abs(float(high)))
        return found


@dataclass
class Sparsified:
    """What a merge's kernel needs to know of what is kept.

    Args:
        keep, shared, unbiased, ranks: see :class:`Kernel`.
        of_weights: see :class:`Kernel`.
        scales: by which the kept elements of each model are multiplied.
        tensors: what the kernel reads besides: ranks, bits.
        streams: of each model, where numbers are drawn.
        rows: of the models' integers.
        largest: for each row of magnitudes, of each model.
    """

    keep: Keep
    scales: list[float]
    shared: bool = True
    of_weights: bool = False
    unbiased: bool = False
    ranks: Literal["uint8", "split", "int32"] | None = None
    tensors: list[torch.Tensor] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    rows: list[dict[I, int]] = field(default_factory=list)
    largest: dict[F, list[Largest]] = field(default_factory=dict)

    def fill(self, tables: Tables) -> None:
        """Enter what says which elements are kept."""
        for column, stream in enumerate(self.streams):
            tables.draw(column, stream)
        for column, row in enumerate(self.rows):
            for integer, value in row.items():
                tables.set(integer, column, value)
        for name, models in self.largest.items():
            for column, found in enumerate(models):
                tables.select(name, column, found)

    @staticmethod
    def run(
        programs: Programs, kernel: Kernel, tensors: Sequence[torch.Tensor], tables: Tables
    ) -> None:
        """Run a kernel over all the elements of flat tensors."""
        for start, stop in tables.segments(tensors[0].numel()):
            pieces = [tensor[start:stop] for tensor in tensors]
            programs.run(kernel, pieces, stop - start, partial(_from, tables, start))


def sparsify(
    spec: TensorMerge,
    parts: Sequence[Part],
    memory: Memory,
    programs: Programs,
    whole: Whole | None = None,
) -> Sparsified:
    """Find out what is kept of each model's tensor.

    Args:
        spec: of the tensor.
        parts: the models.
        memory: of what no candidate changes.
        programs: runs kernels.
        whole: thresholds over all of the models' tensors, where the variant has them.
    """
    found = _Sparsifier(spec, parts, memory, programs).find(whole)
    found.of_weights = spec.mask_of == "weights"
    return found


class _Sparsifier:
    def __init__(
        self, spec: TensorMerge, parts: Sequence[Part], memory: Memory, programs: Programs
    ) -> None:
        self.spec, self.parts, self.memory, self.programs = spec, parts, memory, programs
        self.numel, self.row = parts[0].masked.numel, parts[0].masked.row
        self.device = parts[0].tensor.device
        self.shared = len({part.contribution.tensor for part in parts}) == 1
        self.paper = spec.variant == "paper"

    def find(self, whole: Whole | None) -> Sparsified:
        kind = METHODS[self.spec.method].sparsifier
        dense = all(part.density >= 1 for part in self.parts)
        if kind == "outliers":
            dense = dense and all(part.contribution.gamma == 0 for part in self.parts)
        if whole is not None:
            return self.trimmed(whole, drawn=kind == "random")
        if kind is None or dense or self.numel == 0:
            return Sparsified("all", [1.0] * len(self.parts))
        if kind == "magnitude" or (kind == "random" and self.spec.mask_by == "magnitude"):
            return self.rescaled(self.by_magnitude())
        if kind == "outliers":
            return self.rescaled(self.band())
        flat = self.row == 1 or all(p.contribution.epsilon == 0 for p in self.parts)
        return self.drawn() if kind == "random" or flat else self.ranked()

    # by chance

    def drawn(self) -> Sparsified:
        """Each element with probability d (DARE, arXiv 2311.03099, equation 2 with p = 1 − d)."""
        found = Sparsified(
            "random",
            [1.0] * len(self.parts),
            shared=self.shared,
            streams=[part.stream for part in self.parts],
            rows=[{I.LIMIT: limit(part.density)} for part in self.parts],
        )
        if not self.spec.rescale:
            return found
        if self.paper:
            found.scales = [scale_of(self.spec, part) for part in self.parts]
            return found
        summed = [self.summed(part) for part in self.parts]
        if all(pair is not None for pair in summed):
            found.scales = [_ratio(*pair) for pair in summed if pair is not None]
            return found
        return self.rescaled(found)

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
            count = int(torch.searchsorted(order.drawn, limit(part.density), right=True))
            return float(order.sums[-1]) / unit, float(order.sums[count]) / unit
        if threshold(part.density) < 1 << 12:
            return None
        sums = self.memory.large(("table", part.stream, *part.key), partial(self.binned, part))
        place = int(torch.tensor(float(threshold(part.density))).view(torch.int32)) >> 13
        return float(sums[-1]) / unit, float(sums[place - FIRST_BIN]) / unit

    def ordered(self, part: Part) -> _Order:
        """The elements by the numbers drawn for them, and Σ|δ| of the first 0, 1, … of them."""
        drawn = uniform_bits(part.stream, 0, self.numel, self.device)
        size = part.masked.sizes(0, self.numel) * part.unit(self.memory)
        ascending, order = drawn.sort()
        sums = torch.zeros(self.numel + 1, dtype=torch.int64, device=self.device)
        sums[1:] = size.to(torch.int64)[order].cumsum(0)
        return _Order(ascending, sums)

    def binned(self, part: Part) -> torch.Tensor:
        """Σ|δ| of the elements up to each bin; int64, shape [BINS]."""
        kernel = Kernel(
            "table",
            (_type(part.tensor),),
            None if part.of_weights else _type(part.base),
            None,
            "random",
        )
        tables = Tables(1, self.device)
        tables.draw(0, part.stream)
        tables.set(F.UNIT, 0, part.unit(self.memory))
        inputs = [part.tensor.reshape(-1)]
        if not part.of_weights:
            inputs.insert(0, part.base.reshape(-1))
        sums = torch.zeros(BINS, dtype=torch.int64, device=self.device)
        size = min(self.numel, _TABLE_TILE)
        places, values = (
            torch.empty(size, dtype=torch.int64, device=self.device) for _ in range(2)
        )
        for start in range(0, self.numel, size):
            stop = min(start + size, self.numel)
            mine = [tensor[start:stop] for tensor in inputs]
            outs = [places[: stop - start], values[: stop - start]]
            self.programs.run_piece(kernel, [*mine, *outs, *tables.at(start)])
            sums.scatter_add_(0, outs[0], outs[1])
        return sums.cumsum(0)

    def ranked(self) -> Sparsified:
        """Each element with a probability that grows with its rank (DELLA, arXiv 2406.11617).

        Within each row the ascending rank r = 1 … n of |δ| gives q = (d − ε) + 2ε·(r − 1)/(n − 1);
        a row of one element has q = d. Equal magnitudes rank by index.
        """
        how = ranking.kind(self.row)
        planes = [self.ranks(part) for part in self.parts]
        found = Sparsified(
            "ranked",
            [1.0] * len(self.parts),
            shared=self.shared,
            unbiased=self.paper and self.spec.rescale,
            ranks=how,
            tensors=[plane for model in zip(*planes, strict=True) for plane in model],
            streams=[part.stream for part in self.parts],
            rows=[
                rank_limits(self.row, part.density, part.contribution.epsilon)
                if part.density < 1
                else {I.LIMIT: limit(1.0), I.STEP: 0}
                for part in self.parts
            ],
        )
        return found if self.paper else self.rescaled(found)

    def ranks(self, part: Part) -> list[torch.Tensor]:
        size = ranking.nbytes(self.numel, self.row)

        def make() -> _Planes:
            sizes = part.masked.sizes
            return _Planes(ranking.rank_rows(sizes, self.numel, self.row, self.device), size)

        return self.memory.large(("ranks", *part.key), make).planes

    # by magnitude

    def by_magnitude(self) -> Sparsified:
        """The ⌊d·n⌋ elements of largest magnitude, at least one (TIES, arXiv 2306.01708, trim)."""
        found = [
            ALL if part.density >= 1 else self.largest(part, max(1, int(part.density * self.numel)))
            for part in self.parts
        ]
        return Sparsified("largest", [1.0] * len(self.parts), largest={F.LIMIT: found})

    def band(self) -> Sparsified:
        """All but the largest and the smallest (Model Breadcrumbs, arXiv 2312.06795, section 3)."""
        limits, outliers = [], []
        for part in self.parts:
            first, end = middle(self.numel, part.density, part.contribution.gamma)
            if not part.weight:
                first, end = 0, self.numel
            limits.append(ALL if end == self.numel else self.largest(part, end))
            outliers.append(self.largest(part, first))
        rows = {F.LIMIT: limits, F.OUTLIER: outliers}
        return Sparsified("band", [1.0] * len(self.parts), largest=rows)

    def largest(self, part: Part, wanted: int) -> Largest:
        if wanted == 0:
            return NONE
        sizes = part.masked.sizes
        if self.memory.has_room(self.numel // 4):
            key = ("magnitudes", *part.key)
            made = self.memory.large(key, lambda: Magnitudes(sizes, self.numel))
            return made.largest(wanted, sizes)
        return select(sizes, self.numel, wanted)

    def trimmed(self, whole: Whole, *, drawn: bool) -> Sparsified:
        """What reaches a threshold over the whole model, after DARE's mask if there is one."""
        limits = [whole.limits[part.contribution.model] for part in self.parts]
        if not drawn:
            reached = [Largest(limit, 1 << 62) for limit in limits]
            return Sparsified("largest", [1.0] * len(limits), largest={F.LIMIT: reached})
        kernel = self.summing(Sparsified("all", []))
        bits = torch.zeros(self.numel, dtype=kernel.bits_type, device=self.device)
        for start, stop in pieces(self.numel, self.device):
            for i, (part, least) in enumerate(zip(self.parts, limits, strict=True)):
                mine = uniform_bits(part.stream, start, stop, self.device) <= limit(part.density)
                size = part.masked.sizes(start, stop) * scale_of(self.spec, part)
                bits[start:stop] |= (mine & (size >= least)).to(bits.dtype) << i
        return Sparsified("bits", [scale_of(self.spec, p) for p in self.parts], tensors=[bits])

    # the norm

    def rescaled(self, found: Sparsified) -> Sparsified:
        """With Σ|δ| / Σ|kept δ|, which restores the L1 norm; 1 where either sum is below 1e-7.

        The pass that sums also writes which elements are kept; the merge reads that.
        """
        scales = [1.0] * len(self.parts)
        if self.spec.rescale and self.paper:
            # MergeLM's masks by magnitude: 1/d, whatever is kept.
            found.scales = [1 / part.density for part in self.parts]
            return found
        needed = self.spec.rescale or found.keep == "ranked"
        if not needed:
            return found
        kernel = self.summing(found)
        bits = torch.empty(self.numel, dtype=kernel.bits_type, device=self.device)
        kept = self.sums(kernel, found, bits)
        if self.spec.rescale:
            before = self.memory.kept(("norms", *(part.key for part in self.parts)), self.norms)
            scales = [
                1.0 if part.density >= 1 and found.keep != "band" else _ratio(b, k)
                for part, b, k in zip(self.parts, before, kept, strict=True)
            ]
        return Sparsified("bits", scales, tensors=[bits])

    def norms(self) -> list[float]:
        """Σ|δ| of each model."""
        dense = Sparsified("all", [])
        kernel = self.summing(dense)
        bits = torch.empty(self.numel, dtype=kernel.bits_type, device=self.device)
        return self.sums(kernel, dense, bits)

    def summing(self, found: Sparsified) -> Kernel:
        base = None if self.parts[0].of_weights else _type(self.parts[0].base)
        types = tuple(_type(part.tensor) for part in self.parts)
        return Kernel("sums", types, base, None, found.keep, found.shared, ranks=found.ranks)

    def sums(self, kernel: Kernel, found: Sparsified, bits: torch.Tensor) -> list[float]:
        tables = Tables(len(self.parts), self.device)
        found.fill(tables)
        units = [part.unit(self.memory) for part in self.parts]
        for i, unit in enumerate(units):
            tables.set(F.UNIT, i, unit)
        inputs = [self.parts[0].base] if kernel.base else []
        inputs += [*(part.tensor for part in self.parts), *found.tensors]
        flat = [tensor.reshape(-1) for tensor in inputs] + [bits]
        totals = torch.zeros(len(self.parts), dtype=torch.int64, device=self.device)
        for first, last in tables.segments(self.numel):
            for begin, end in self.programs.pieces(kernel, last - first):
                start, stop = first + begin, first + end
                out = torch.zeros_like(totals)
                pieces = [tensor[start:stop] for tensor in flat]
                self.programs.run_piece(kernel, [*pieces, out, *tables.at(start)])
                totals += out
        return [total / unit for total, unit in zip(totals.tolist(), units, strict=True)]


def _from(tables: Tables, start: int, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tables.at(start + at)


@dataclass(frozen=True)
class _Order:
    drawn: torch.Tensor
    sums: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.drawn.nbytes + self.sums.nbytes


@dataclass(frozen=True)
class _Planes:
    planes: list[torch.Tensor]
    nbytes: int


def scale_of(spec: TensorMerge, part: Part) -> float:
    """The paper's: 1/d, at the density that the mask is drawn at; 1 without ``rescale``."""
    return 1 / drawn_density(part.density) if spec.rescale else 1.0


def _ratio(before: float, kept: float) -> float:
    return before / kept if before >= _NEGLIGIBLE and kept >= _NEGLIGIBLE else 1.0


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
