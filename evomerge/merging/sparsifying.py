"""Which elements of task vectors are kept, and what the kept ones are multiplied by.

``density`` d is the share that is kept, in (0, 1]. The meaning is mergekit 0.1.5's, apart from
equal magnitudes at a threshold: it keeps any of them, we those of smaller index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging import ranks as ranking
from evomerge.merging.entries import F, I
from evomerge.merging.kernels import Keep, bits_type
from evomerge.merging.magnitudes import ALL, NONE, Largest, Magnitudes, select
from evomerge.merging.masks import limit, rank_limits, uniform_bits
from evomerge.merging.norms import Norms
from evomerge.merging.parts import Part, Sparsified, scale_of
from evomerge.merging.programs import Programs
from evomerge.merging.selection import middle
from evomerge.merging.taskvectors import Memory, pieces
from evomerge.merging.whole import Whole
from evomerge.recipe import METHODS, TensorMerge


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
    if whole is None and METHODS[spec.method].sparsifier is None:
        found = Sparsified("all", [1.0] * len(parts))
    else:
        found = _Sparsifier(spec, parts, memory, programs).find(whole)
    found.of_weights = spec.mask_of == "weights"
    return found


def foresee(spec: TensorMerge, parts: Sequence[Part], memory: Memory, programs: Programs) -> None:
    """Find out into ``memory`` what ``sparsify`` will look up and takes no kernel, on this thread.

    Thresholds and ranks; the same arguments and a memory that keeps them.
    """
    if spec.rescale:
        for part in parts:
            part.bound(memory)
    if not METHODS[spec.method].trims_whole(spec.variant):
        _Sparsifier(spec, parts, memory, programs).foresee()


class _Sparsifier:
    def __init__(
        self, spec: TensorMerge, parts: Sequence[Part], memory: Memory, programs: Programs
    ) -> None:
        self.spec, self.parts, self.memory = spec, parts, memory
        self.norms = Norms(spec, parts, memory, programs)
        self.numel, self.row, self.device = parts[0].numel, parts[0].row, parts[0].device
        self.shared = len({part.contribution.tensor for part in parts}) == 1
        self.paper = spec.variant == "paper"

    def find(self, whole: Whole | None) -> Sparsified:
        if whole is not None:
            drawn = METHODS[self.spec.method].sparsifier == "random"
            return self.trimmed(whole, drawn=drawn)
        keep = self.kind()
        if keep == "all":
            return Sparsified("all", [1.0] * len(self.parts))
        if keep in ("largest", "band"):
            found = self.by_magnitude() if keep == "largest" else self.band()
            return self.norms.rescaled(found)
        return self.drawn() if keep == "random" else self.ranked()

    def kind(self) -> Keep:
        """Which elements are kept, where no threshold is over whole models."""
        kind = METHODS[self.spec.method].sparsifier
        dense = all(part.density >= 1 for part in self.parts)
        if kind == "outliers":
            dense = dense and all(part.contribution.gamma == 0 for part in self.parts)
        if kind is None or dense or self.numel == 0:
            return "all"
        if kind == "magnitude" or (kind == "random" and self.spec.mask_by == "magnitude"):
            return "largest"
        if kind == "outliers":
            return "band"
        flat = self.row == 1 or all(p.contribution.epsilon == 0 for p in self.parts)
        return "random" if kind == "random" or flat else "ranked"

    def foresee(self) -> None:
        keep = self.kind()
        if keep == "largest":
            self.by_magnitude()
        elif keep == "band":
            self.band()
        elif keep == "ranked":
            for part in self.parts:
                self.ranks(part)

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
        return self.norms.of_drawn(found)

    def ranked(self) -> Sparsified:
        """Each element with a probability that grows with its rank (DELLA, arXiv 2406.11617).

        Within each row the ascending rank r = 1 … n of |δ| gives q = (d − ε) + 2ε·(r − 1)/(n − 1);
        a row of one element has q = d. Equal magnitudes rank by index.
        """
        found = Sparsified(
            "ranked",
            [1.0] * len(self.parts),
            shared=self.shared,
            unbiased=self.paper and self.spec.rescale,
            ranks=ranking.kind(self.row),
            tensors=[self.ranks(part) for part in self.parts],
            streams=[part.stream for part in self.parts],
            rows=[
                rank_limits(self.row, part.density, part.contribution.epsilon)
                if part.density < 1
                else {I.LIMIT: limit(1.0), I.STEP: 0}
                for part in self.parts
            ],
        )
        return found if self.paper else self.norms.rescaled(found)

    def ranks(self, part: Part) -> torch.Tensor:
        return self.memory.large(
            ("ranks", *part.key),
            lambda: ranking.rank_rows(part.masked.sizes, self.numel, self.row, self.device),
        )

    # by magnitude

    def by_magnitude(self) -> Sparsified:
        """The ⌊d·n⌋ elements of largest magnitude, at least one (TIES, arXiv 2306.01708, trim)."""
        wanted = [
            self.numel if part.density >= 1 else max(1, int(part.density * self.numel))
            for part in self.parts
        ]
        limits = self.largest(wanted)
        return Sparsified("largest", [1.0] * len(self.parts), largest={F.LIMIT: limits})

    def band(self) -> Sparsified:
        """All but the largest and the smallest (Model Breadcrumbs, arXiv 2312.06795, section 3)."""
        places = [
            middle(self.numel, part.density, part.contribution.gamma)
            if part.weight
            else (0, self.numel)
            for part in self.parts
        ]
        limits = self.largest([end for _, end in places])
        rows = {F.LIMIT: limits, F.OUTLIER: self.largest([first for first, _ in places])}
        return Sparsified("band", [1.0] * len(self.parts), largest=rows)

    def largest(self, wanted: Sequence[int]) -> list[Largest]:
        """So many of each model's elements."""
        pairs = zip(self.parts, wanted, strict=True)
        return [self.largest_of(part, count) for part, count in pairs]

    def largest_of(self, part: Part, wanted: int) -> Largest:
        if wanted in (0, self.numel):
            return ALL if wanted else NONE
        sizes = part.masked.sizes
        if self.memory.has_room(self.numel // 4):
            key = ("magnitudes", *part.key)
            made = self.memory.large(key, lambda: Magnitudes(sizes, self.numel))
            return made.largest(wanted, sizes)
        if self.memory.remembers:
            return select(sizes, self.numel, wanted)
        place = ("largest", wanted, *part.key)
        return self.memory.kept(place, lambda: select(sizes, self.numel, wanted))

    def trimmed(self, whole: Whole, *, drawn: bool) -> Sparsified:
        """What reaches a threshold over the whole model, after DARE's mask if there is one."""
        limits = [whole.limits[part.contribution.model] for part in self.parts]
        if not drawn:
            reached = [Largest(limit, 1 << 62) for limit in limits]
            return Sparsified("largest", [1.0] * len(limits), largest={F.LIMIT: reached})
        bits = torch.zeros(self.numel, dtype=bits_type(len(self.parts)), device=self.device)
        for start, stop in pieces(self.numel, self.device):
            for i, (part, least) in enumerate(zip(self.parts, limits, strict=True)):
                mine = uniform_bits(part.stream, start, stop, self.device) <= limit(part.density)
                size = part.masked.sizes(start, stop) * scale_of(self.spec, part)
                bits[start:stop] |= (mine & (size >= least)).to(bits.dtype) << i
        return Sparsified("bits", [scale_of(self.spec, p) for p in self.parts], tensors=[bits])
