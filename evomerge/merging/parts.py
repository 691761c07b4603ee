"""One model's tensor beside the base's, and what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch

from evomerge.checkpoints import dtypes
from evomerge.merging.entries import F, I
from evomerge.merging.kernels import SUM_BITS, Keep, Ranks
from evomerge.merging.magnitudes import Largest
from evomerge.merging.masks import Stream, drawn_density
from evomerge.merging.tables import Tables
from evomerge.merging.taskvectors import Memory, TaskVector
from evomerge.recipe import Contribution, TensorMerge


class Part:
    """One model's tensor beside the base's, both flat, and what is asked of it.

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
        self.contribution = contribution
        # Ranks are taken within rows: the last dimension; a vector is one row.
        self.row = tensor.shape[-1] if tensor.dim() else 1
        self.numel, self.device = tensor.numel(), tensor.device
        self.base, self.tensor = flattened(base), flattened(tensor)
        self.type = name_of(tensor)
        self.weight = contribution.weight
        # A model without weight has no part in the result; nothing need be looked up for it.
        self.density = contribution.density if contribution.weight else 1.0
        self.of_weights = spec.mask_of == "weights"
        self.base_key = spec.base
        self.key = (None if self.of_weights else spec.base, contribution.model, contribution.tensor)
        self.mask_seed = spec.mask_seed
        self._bound: float | None = None

    @cached_property
    def masked(self) -> TaskVector:
        """What is masked: the task vector, or the model's own weights."""
        return TaskVector(None if self.of_weights else self.base, self.tensor)

    @cached_property
    def stream(self) -> Stream:
        """Where the numbers of random masks come from."""
        return Stream(self.mask_seed, self.contribution.label, self.contribution.tensor)

    def unit(self, memory: Memory) -> float:
        """The power of two whose inverse is the unit of this tensor's sums."""
        bound = self._model_bound(memory) if self.of_weights else self.bound(memory)
        if bound == 0:
            return 1.0
        bits = math.frexp(bound)[1] + self.numel.bit_length()
        return 2.0 ** min(SUM_BITS - bits, 100)

    def bound(self, memory: Memory) -> float:
        """A magnitude that neither the model, nor the base, nor their difference exceeds."""
        if self._bound is None:
            self._bound = largest(self.base, self.base_key, memory) + self._model_bound(memory)
        return self._bound

    def _model_bound(self, memory: Memory) -> float:
        key = (self.contribution.model, self.contribution.tensor)
        return largest(self.tensor, key, memory)


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
    ranks: Ranks | None = None
    tensors: list[torch.Tensor] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    rows: list[Mapping[I, int]] = field(default_factory=list)
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


def largest(tensor: torch.Tensor, key: Hashable, memory: Memory) -> float:
    """A tensor's largest magnitude, which the memory keeps under a key; of none 0."""
    return memory.kept(("bound", key), partial(_largest, tensor))


def _largest(tensor: torch.Tensor) -> float:
    if tensor.numel() == 0:
        return 0.0
    low, high = torch.aminmax(tensor)
    return max(abs(float(low)), abs(float(high)))


def scale_of(spec: TensorMerge, part: Part) -> float:
    """The paper's: 1/d, at the density that the mask is drawn at; 1 without ``rescale``."""
    return 1 / drawn_density(part.density) if spec.rescale else 1.0


def flattened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as one row; as it is, if it is one: asking torch for it costs a microsecond."""
    return tensor if tensor.dim() == 1 else tensor.reshape(-1)


def name_of(tensor: torch.Tensor) -> str:
    """A type's name, as kernels have it."""
    return dtypes.name_of(tensor.dtype)
