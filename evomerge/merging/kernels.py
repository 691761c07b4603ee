"""The fused passes over a tensor's elements: what each one computes, in plain PyTorch.

One definition for every device: run as it is (a small tensor, a machine without a compiler), or
compiled (``programs``) into one loop that reads every input once and writes every output once. The
operations round the same in every lane of a processor and none is fused with another, so that
neither threads, nor the way a tensor is cut, nor the compiler show in a result.

A pass works on flat tensors of one length n, given as one list (``Kernel.order``). The numbers that
change from candidate to candidate come in two small tables, so that no new value compiles anything:
``floats`` (float32) and ``ints`` (int32), a row for each kind, a column for each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch

from evomerge.merging.entries import F, I

GOLDEN = 0x9E3779B1 - (1 << 32)
"""2³²/φ, odd: multiplied by it, neighbouring counters differ in their high bits too."""

# A multiplier of "lowbias32", found by search for the least bias among hashes of this shape
# (C. Wellons, hash-prospector, public domain). The second multiplier is the model's own.
_FIRST = 0x7FEB352D

WHOLE = 1 << 30
"""Elements that a pass has at most: indices are 32-bit integers."""

SUM_BITS = 61
"""Bits that a sum of integers has room for."""

BINS = (12 << 10) + 1
"""Bins of a ``table`` pass: 2¹⁰ for each halving of the density down to 2⁻¹², and one below."""

FIRST_BIN = 139 << 10
"""What a density in units of 2⁻²⁴, as float32 bits without the 13 lowest, is in the bin above 0."""

Keep = Literal["all", "random", "ranked", "largest", "band", "bits"]
Ranks = Literal["uint8", "int16", "int32"]


@dataclass(frozen=True)
class Kernel:
    """One pass. Frozen and made of plain values: it is the key of a compiled program.

    Args:
        goal: ``merge`` writes the merged tensor; ``sums`` writes the kept Σ|v| of each model (with
            ``totals`` the Σ|v| of all elements behind them), and which elements are kept; ``table``
            writes, of one model, each element's bin among densities and its |v| as an integer.
        dtypes: of the fine-tuned models' tensors, one each (as ``bfloat16``).
        base: the type of the base's tensor; None: no base, the tensors themselves are summed.
        out: the type of the merged tensor; None where there is none.
        keep: which elements are kept: all; by drawn integers (``random``: one limit; ``ranked``: a
            limit by rank); by magnitude (``largest``: from LIMIT on; ``band``: below OUTLIER too);
            or as ``bits`` say, which a pass before has written.
        ranks: the type that ranks are stored in, where they are read: ``uint8``, ``int32``, or
            ``int16``, whose 16 bits are a number without a sign.
        shared: the models' masks are drawn for one tensor's name (not where slices move layers).
        elect: only what agrees with the elected sign is summed; where the sum that elects is 0 the
            sign is ``plus``, or a ``given`` one (the TIES paper).
        normalize: divide what was elected by the weights that agree.
        of_weights: the fine-tuned weights are masked, and not the task vectors.
        unbiased: divide each kept element by its own probability (DELLA's paper).
    """

    goal: Literal["merge", "sums", "table"]
    dtypes: tuple[str, ...]
    base: str | None
    out: str | None
    keep: Keep = "all"
    shared: bool = True
    elect: Literal["plus", "given"] | None = None
    normalize: bool = False
    of_weights: bool = False
    unbiased: bool = False
    ranks: Ranks | None = None
    totals: bool = False

    eager: ClassVar[float] = 12e-9
    compares: ClassVar[bool] = False

    @property
    def models(self) -> int:
        """How many fine-tuned models."""
        return len(self.dtypes)

    def order(self) -> tuple[str, ...]:
        """The names of the pass's tensors, in the order of the list that it is given.

        ``base``, ``model`` (one each), ``ranks`` (one each), ``bits``, ``out`` (all of shape [n];
        the latter [models], or with ``totals`` twice as many, for ``sums``), ``values`` ([n]),
        ``floats``, ``ints``.
        """
        names = ["base"] if self.base else []
        names += ["model"] * self.models + ["ranks"] * (self.models if self.ranks else 0)
        names += ["bits"] if self.keep == "bits" or self.goal == "sums" else []
        names += ["out"] + (["values"] if self.goal == "table" else [])
        return (*names, "floats", "ints")

    def run(self, tensors: Sequence[torch.Tensor]) -> None:
        """Do the pass: read the inputs and write the outputs among ``tensors``, in place."""
        _Pass(self, tensors).run()


kernel_of = lru_cache(Kernel)
"""The same as ``Kernel``; asked for alike, equal ones are one object."""


def bits_type(models: int) -> torch.dtype:
    """The type whose bit i says whether model i keeps an element.

    Raises:
        ValueError: there are more than 63 models.
    """
    if models > 63:
        raise ValueError(f"{models} models are too many to restore their norms; at most 63")
    return torch.uint8 if models <= 8 else _word(models)


def _word(models: int) -> torch.dtype:
    """The integers that bits are computed in."""
    return torch.int32 if models <= 31 else torch.int64


def mix(counter: torch.Tensor, ints: torch.Tensor, column: int) -> torch.Tensor:
    """The first half of the hash, that the models share: counters → integers without pattern.

    lowbias32 up to its second multiplication, the second key let in half-way. Two keys, because
    one alone would give every tensor the same numbers, shuffled by an exclusive or.
    """
    x = counter + ints[I.COUNTER, column]
    x = x ^ ((x >> 16) & 0xFFFF)  # torch shifts signed integers arithmetically
    x = (x * _FIRST) ^ ints[I.SECOND, column]
    return x ^ ((x >> 15) & 0x1FFFF)


def draw(mixed: torch.Tensor, ints: torch.Tensor, column: int) -> torch.Tensor:
    """The second half: a model's own key and multiplier. int32, uniform over its whole range.

    Multiplying by a random odd number is a universal hash of its high bits (Dietzfelbinger et al.
    1997), so that the numbers of two models are as good as independent.
    """
    return (mixed ^ ints[I.KEY, column]) * ints[I.MULTIPLIER, column]


def counted(sizes: torch.Tensor) -> torch.Tensor:
    """Magnitudes in units of a sum as the nearest integers, int64."""
    return (sizes + 0.5).to(torch.int64)


class _Pass:
    """The tensors of one pass by their names, and its steps."""

    def __init__(self, kernel: Kernel, tensors: Sequence[torch.Tensor]) -> None:
        self.kernel = kernel
        named: dict[str, list[torch.Tensor]] = {}
        for name, tensor in zip(kernel.order(), tensors, strict=True):
            named.setdefault(name, []).append(tensor)
        self.models = named["model"]
        self.floats, self.ints = named["floats"][0], named["ints"][0]
        self.named = named
        self.base = named["base"][0].to(torch.float32) if kernel.base else None
        drawn = kernel.goal == "table" or kernel.keep in ("random", "ranked")
        first = self.models[0]
        self.index = torch.arange(first.shape[0], dtype=torch.int32, device=first.device)
        self.counter = self.mixed = None
        if drawn:
            self.counter = self.index * GOLDEN
            self.mixed = mix(self.counter, self.ints, 0)

    def run(self) -> None:
        if self.kernel.goal == "merge":
            out = self.named["out"][0]
            out.copy_(self.merged().to(out.dtype))
        elif self.kernel.goal == "sums":
            self.write_sums()
        else:
            self.write_table()

    # what each model gives

    def masked(self, i: int) -> torch.Tensor:
        """The values of model i that the mask goes by and is put on: δ, or θ itself; float32."""
        theta = self.models[i].to(torch.float32)
        return theta if self.base is None or self.kernel.of_weights else theta - self.base

    def kept(self, i: int) -> torch.Tensor:
        """Model i's kept task vector, unweighted."""
        value = self.masked(i)
        keep = self.keeps(i, value)
        if keep is not None:
            value = torch.where(keep, value, 0.0)
        if self.kernel.unbiased:
            value = value / self.probability(i)
        if self.kernel.of_weights and self.base is not None:
            value = value * self.floats[F.RESCALE, i] - self.base
        return value

    def keeps(self, i: int, value: torch.Tensor) -> torch.Tensor | None:
        """Which elements of model i are kept; None: all."""
        kind = self.kernel.keep
        if kind == "all":
            return None
        if kind == "bits":
            return (self.named["bits"][0].to(_word(self.kernel.models)) & (1 << i)) != 0
        if kind in ("random", "ranked"):
            return self.drawn(i) <= self.limit(i)
        size = value.abs()
        keep = self.among(size, i, F.LIMIT, F.LATER, I.LAST)
        if kind == "band":
            keep = keep & ~self.among(size, i, F.OUTLIER, F.OUTLIER_LATER, I.OUTLIER_LAST)
        return keep

    def among(self, size: torch.Tensor, i: int, least: F, later: F, last: I) -> torch.Tensor:
        """Whether magnitudes are among model i's largest; of equal ones the first ones are."""
        late = self.index > self.ints[last, i]
        return size >= torch.where(late, self.floats[later, i], self.floats[least, i])

    def drawn(self, i: int) -> torch.Tensor:
        mixed = self.mixed
        if not self.kernel.shared and i:
            assert self.counter is not None
            mixed = mix(self.counter, self.ints, i)
        assert mixed is not None
        return draw(mixed, self.ints, i)

    def limit(self, i: int) -> torch.Tensor:
        """The largest drawn integer that is kept.

        By rank r it is LIMIT + r·STEP, in integers, which wrap around only on the way: a threshold
        in floating point would leave its last bit to the device.
        """
        first = self.ints[I.LIMIT, i]
        if self.kernel.keep != "ranked":
            return first
        rank = self.named["ranks"][i].to(torch.int32)
        if self.kernel.ranks == "int16":
            rank = rank & 0xFFFF
        return first + rank * self.ints[I.STEP, i]

    def probability(self, i: int) -> torch.Tensor:
        """Of being kept, element by element; above 0, to float32's precision however small."""
        limit = self.limit(i)
        high = ((limit >> 16) + (1 << 15)).to(torch.float32) * 2.0**16  # exact
        return (high + ((limit & 0xFFFF) + 1).to(torch.float32)) * 2.0**-32

    # what becomes of them

    def merged(self) -> torch.Tensor:
        parts = [self.kept(i) for i in range(self.kernel.models)]
        if self.kernel.elect is None:
            change = total([p * self.floats[F.COEFFICIENT, i] for i, p in enumerate(parts)])
        else:
            change = self.elected(parts) * self.floats[F.SHARED, 0]
        return change if self.base is None else self.base + change

    def elected(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Σwδ over the models that agree with the elected sign (arXiv 2306.01708, section 3).

        An element that is 0 agrees with neither sign.
        """
        terms = [p * self.floats[F.COEFFICIENT, i] for i, p in enumerate(parts)]
        summed = total(terms)
        if self.kernel.elect == "plus":
            sign = torch.where(summed >= 0, 1.0, -1.0)
        else:
            undecided = self.ints[I.SHARED, 0].to(torch.float32)
            sign = torch.where(summed == 0, undecided, torch.where(summed > 0, 1.0, -1.0))
        agree = [term * sign > 0 for term in terms]
        change = total([torch.where(a, t, 0.0) for a, t in zip(agree, terms, strict=True)])
        if self.kernel.normalize:
            weights = [torch.where(a, self.floats[F.WEIGHT, i], 0.0) for i, a in enumerate(agree)]
            divisor = total(weights)
            change = change / torch.where(divisor == 0, 1.0, divisor)
        return change

    def write_sums(self) -> None:
        sums, totals, bits = [], [], []
        for i in range(self.kernel.models):
            value = self.masked(i)
            keep = self.keeps(i, value)
            size = value.abs() * self.floats[F.UNIT, i]
            if keep is None:
                keep = torch.ones_like(size, dtype=torch.bool)
            sums.append(counted(torch.where(keep, size, 0.0)).sum())
            if self.kernel.totals:
                totals.append(counted(size).sum())
            bits.append(keep.to(_word(self.kernel.models)) << i)
        union = bits[0]
        for mine in bits[1:]:
            union = union | mine
        self.named["bits"][0].copy_(union.to(bits_type(self.kernel.models)))
        self.named["out"][0].copy_(torch.stack(sums + totals))

    def write_table(self) -> None:
        # The 24 high bits as an exact float32, whose own bits are the logarithmic scale.
        high = ((self.drawn(0) >> 8) + (1 << 23)).to(torch.float32)
        place = (high.view(torch.int32) >> 13) - (FIRST_BIN - 1)
        self.named["out"][0].copy_(place.clamp_min(0).to(torch.int64))
        size = self.masked(0).abs() * self.floats[F.UNIT, 0]
        self.named["values"][0].copy_(counted(size))


def total(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, added in their order."""
    added = terms[0]
    for term in terms[1:]:
        added = added + term
    return added
