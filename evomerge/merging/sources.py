"""Models as an engine sees them: stored ones (``stored``), merged ones, others made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from evomerge.checkpoints import Checkpoint, MergedVocabulary
from evomerge.references import ModelReference

if TYPE_CHECKING:
    from evomerge.merging.stored import Stored


class Source(Protocol):
    """A model as the engine sees it."""

    @property
    def reference(self) -> ModelReference:
        """How recipes name it."""
        ...

    @property
    def like(self) -> Checkpoint:
        """The stored model that it has configuration and tokenizer of."""
        ...

    @property
    def layers(self) -> tuple[int, ...] | None:
        """For each of its layers the one of ``like`` that it is made like; None: the same ones."""
        ...

    @property
    def vocabulary(self) -> MergedVocabulary | None:
        """Its tokens, where they are not those of ``like``."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Its tensors."""
        ...

    @property
    def torch_dtype(self) -> torch.dtype:
        """The floating type of most of its elements."""
        ...

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        ...

    def __contains__(self, name: object) -> bool:
        """Whether it has a tensor; a tied one goes by either of its names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, where it is computed with; not to be written to."""
        ...

    def held(self, name: str) -> torch.Tensor:
        """A tensor, where it is held; not to be written to."""
        ...

    def origin(self, name: str) -> tuple[Stored, str] | None:
        """The stored model and tensor that a tensor's values are the first of; None: it is made."""
        ...


@dataclass(frozen=True)
class MergedModel:
    """The result of an earlier stage, in memory.

    Args:
        reference: the stage's name.
        like: the stored model that it has configuration and tokenizer of.
        tensors: name → tensor.
        layers: for each of its layers the one of ``like`` that it is made like, where layers were
            stacked; None: the same ones.
        vocabulary: its tokens, where they are not those of ``like``.
    """

    reference: ModelReference
    like: Checkpoint
    tensors: Mapping[str, torch.Tensor]
    layers: tuple[int, ...] | None = None
    vocabulary: MergedVocabulary | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @property
    def torch_dtype(self) -> torch.dtype:
        counts: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            if tensor.is_floating_point():
                counts[tensor.dtype] += tensor.numel()
        return counts.most_common(1)[0][0] if counts else torch.float32

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def held(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def origin(self, name: str) -> None:
        return None
