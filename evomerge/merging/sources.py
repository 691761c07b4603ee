"""Where tensors come from: stored models, kept in memory or read when asked; merged ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.references import ModelReference


class Source(Protocol):
    """A model as the engine sees it."""

    @property
    def reference(self) -> ModelReference:
        """How recipes name it."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Its tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor; not to be written to."""
        ...


@dataclass(frozen=True)
class MergedModel:
    """The result of an earlier stage, in memory.

    Args:
        reference: the stage's name.
        like: the stored model that it has shape, configuration and tokenizer of.
        tensors: name → tensor.
    """

    reference: ModelReference
    like: Checkpoint
    tensors: Mapping[str, torch.Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

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
        self.checkpoint = checkpoint
        self._device = device
        self._kept: dict[str, torch.Tensor] | None = None
        if resident:
            self._kept = {name: self._read(name) for name in checkpoint.names}

    @property
    def reference(self) -> ModelReference:
        return self.checkpoint.reference

    @property
    def names(self) -> tuple[str, ...]:
        return self.checkpoint.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        return self._read(name)

    def _read(self, name: str) -> torch.Tensor:
        return self.checkpoint.tensor(name, check=True).to(self._device)
