"""Models presented otherwise than they are stored: with a head of their own, with other rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from evomerge.checkpoints import (
    CAN_SHARE,
    Checkpoint,
    MergedVocabulary,
    Shared,
    input_embedding,
    token_tensors,
)
from evomerge.merging.residency import Residency
from evomerge.merging.rows import Rows
from evomerge.merging.sources import Source
from evomerge.merging.stored import Stored
from evomerge.references import ModelReference


def height_of(source: Source) -> int:
    """How many rows a model's input embeddings have; 0 where its names do not tell them."""
    embedding = input_embedding(source.names)
    return source.shape(embedding)[0] if embedding else 0


class Presented:
    """A model as it is; what presents it otherwise says in what.

    Args:
        source: the model.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def reference(self) -> ModelReference:
        return self._source.reference

    @property
    def like(self) -> Checkpoint:
        return self._source.like

    @property
    def layers(self) -> tuple[int, ...] | None:
        return self._source.layers

    @property
    def vocabulary(self) -> MergedVocabulary | None:
        return self._source.vocabulary

    @property
    def names(self) -> tuple[str, ...]:
        return self._source.names

    @property
    def torch_dtype(self) -> torch.dtype:
        return self._source.torch_dtype

    @property
    def nbytes(self) -> int:
        return self._source.nbytes

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        return self._source.tensor(name)

    def held(self, name: str) -> torch.Tensor:
        return self._source.held(name)

    def origin(self, name: str) -> tuple[Stored, str] | None:
        return self._source.origin(name)

    def release(self, names: Iterable[str]) -> None:
        """Keep these no longer, where the model can read them again."""
        if isinstance(self._source, Stored | Presented):
            self._source.release(names)


class WithHead(Presented):
    """A model whose output head shares its embeddings, as one that has a head of its own.

    Args:
        source: the model.
        heads: the head's tensors.
    """

    def __init__(self, source: Source, heads: Iterable[str]) -> None:
        super().__init__(source)
        self._embedding = input_embedding(source.names) or ""
        self._heads = tuple(heads)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._source.names, *self._heads)

    def __contains__(self, name: object) -> bool:
        return name in self._heads or name in self._source

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._stored(name))

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(self._stored(name))

    def tensor(self, name: str) -> torch.Tensor:
        return self._source.tensor(self._stored(name))

    def held(self, name: str) -> torch.Tensor:
        return self._source.held(self._stored(name))

    def origin(self, name: str) -> tuple[Stored, str] | None:
        return self._source.origin(self._stored(name))

    def _stored(self, name: str) -> str:
        return self._embedding if name in self._heads else name


class Revocabulated(Presented):
    """A model whose rows for tokens are presented in another vocabulary's order.

    Args:
        source: the model as it is.
        rows: where the rows come from.
        givers: the models that fill in rows, as they are.
        keep: hold what was put in order, or do it each time.
    """

    def __init__(
        self, source: Source, rows: Rows, givers: Mapping[ModelReference, Source], *, keep: bool
    ) -> None:
        super().__init__(source)
        self._rows, self._givers = rows, givers
        self._own_height, self._are_first = height_of(source), rows.are_first
        self._kept: dict[str, torch.Tensor] | None = {} if keep else None
        self._shared: list[Shared] = []

    @property
    def nbytes(self) -> int:
        total = self._source.nbytes
        for name in self._ordered():
            width = math.prod(self._source.shape(name)[1:])
            total += self._rows.height * width * self.dtype(name).itemsize
            total -= self._own_height * width * self._source.dtype(name).itemsize
        return total

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._source.shape(name)
        return (self._rows.height, *shape[1:]) if self._is_ordered(name) else shape

    def dtype(self, name: str) -> torch.dtype:
        """The type that holds all the rows; at least float32 where means are among them."""
        kind = self._source.dtype(name)
        if not self._is_ordered(name) or self._are_first:
            return kind
        for part in self._rows.filled:
            for model, _ in part.givers:
                kind = torch.promote_types(kind, self._givers[model].dtype(name))
        return torch.promote_types(kind, torch.float32) if self._rows.means else kind

    def tensor(self, name: str) -> torch.Tensor:
        if not self._is_ordered(name):
            return self._source.tensor(name)
        if self._are_first:
            return self._source.tensor(name)[: self._rows.height]
        return self._brought(self.held(name), name)

    def held(self, name: str) -> torch.Tensor:
        if not self._is_ordered(name):
            return self._source.held(name)
        if self._are_first:
            return self._source.held(name)[: self._rows.height]
        if self._kept is None:
            return self._in_order(name)
        if name not in self._kept:
            self._kept[name] = self._keep(name)
        return self._kept[name]

    def origin(self, name: str) -> tuple[Stored, str] | None:
        made = self._is_ordered(name) and not self._are_first
        return None if made else self._source.origin(name)

    def fill(self) -> None:
        """Put everything in order now.

        Raises:
            CheckpointError: there is no room for what all workers of a machine share.
        """
        for name in self._ordered() if not self._are_first else ():
            self.held(name)

    def let_go(self) -> None:
        """Keep the rows as they came no longer, unless they are in order."""
        if not self._are_first:
            self.release(self._ordered())

    def _keep(self, name: str) -> torch.Tensor:
        """A tensor in order, held as the model is."""
        residency = self._residency(name)
        if residency == "host" and CAN_SHARE:
            files = [path for one in self._involved() for path in one.like.weight_files]
            # One for each tensor: a tied one's other name is asked for only by some recipes.
            self._shared.append(Shared(files, [name], self._in_order, self._rows.digest()))
            return self._shared[-1].view(name)
        made = self._in_order(name)
        return self._brought(made, name) if residency == "device" else made

    def _residency(self, name: str) -> Residency | None:
        origin = self._source.origin(name)
        return None if origin is None else origin[0].residency

    def _involved(self) -> list[Source]:
        """The models whose rows are among this one's."""
        givers = {model for part in self._rows.filled for model, _ in part.givers}
        return [self._source, *(one for model, one in self._givers.items() if model in givers)]

    def _brought(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        origin = self._source.origin(name)
        return tensor if origin is None else origin[0].bring(tensor, origin[1])

    def _ordered(self) -> list[str]:
        return [name for name in self._source.names if self._is_ordered(name)]

    def _is_ordered(self, name: str) -> bool:
        # One of another height than the embeddings stays as it is, to be refused with its shape.
        return bool(token_tensors([name])) and self._source.shape(name)[0] == self._own_height

    def _in_order(self, name: str) -> torch.Tensor:
        own, rows = self._source.held(name), self._rows
        if self._source.origin(name) is not None:
            # A stored model's rows get the same digits wherever it is held.
            own = own.cpu()
        kind = self.dtype(name)
        made = torch.zeros((rows.height, *own.shape[1:]), dtype=kind, device=own.device)
        made[rows.places] = own[rows.own].to(kind)
        for part in rows.filled:
            for model, numbers in part.givers:
                given = self._givers[model].held(name)[numbers].to(own.device, kind)
                made[part.places] += given / len(part.givers) if len(part.givers) > 1 else given
        if rows.padded.numel():
            tokens = torch.ones(rows.height, dtype=torch.bool)
            tokens[rows.padded] = False
            made[rows.padded] = made[tokens.to(own.device)].mean(dim=0)
        return made
