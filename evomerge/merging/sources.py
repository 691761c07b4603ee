"""Where tensors come from: stored models, kept in memory or read when asked; merged ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from evomerge.checkpoints import Checkpoint, MergedVocabulary
from evomerge.references import ModelReference


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
        """A tensor; not to be written to."""
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


class Stored:
    """A stored model, its tensors checked for NaN and infinity as they are read.

    Args:
        checkpoint: the model.
        device: where its tensors go.
        resident: keep every tensor once read (a search), or read it each time (one merge).
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device | str, *, resident: bool
    ) -> None:
        self.like = checkpoint
        self.layers = None
        self.vocabulary = None
        self._device = device
        self._kept: dict[str, torch.Tensor] | None = None
        if resident:
            self._kept = {name: self._read(name) for name in checkpoint.names}

    @property
    def reference(self) -> ModelReference:
        return self.like.reference

    @property
    def names(self) -> tuple[str, ...]:
        return self.like.names

    @property
    def torch_dtype(self) -> torch.dtype:
        return self.like.torch_dtype

    @property
    def nbytes(self) -> int:
        return self.like.nbytes

    def __contains__(self, name: object) -> bool:
        return name in self.like

    def shape(self, name: str) -> tuple[int, ...]:
        return self.like.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.like.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        if self._kept is None:
            return self._read(name)
        if name not in self._kept:
            # A tied tensor's other name.
            self._kept[name] = self._read(name)
        return self._kept[name]

    def release(self, names: Iterable[str]) -> None:
        """Keep these no longer; each is read again should it be asked for."""
        for name in names:
            if self._kept is not None:
                self._kept.pop(name, None)

    def _read(self, name: str) -> torch.Tensor:
        return self.like.tensor(name, check=True).to(self._device)
