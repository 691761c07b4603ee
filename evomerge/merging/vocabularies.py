"""The vocabulary of a merged model, and every model's rows in its order.

The engine and its kernels see models whose embeddings and output heads are equally tall and whose
rows of the same number stand for the same token: :class:`Revocabulated` presents them so. Hence an
element's index, which keys its mask (with the seed, the model's label and the tensor's name), is
its index in the merged vocabulary.

Two ways to match rows:

- by number, where a recipe says nothing about the tokenizer: the first model's vocabulary is the
  merged one (that of the base, where there is one). Models whose token numbers contradict it are
  refused. Rows beyond it are left out; rows that a model lacks are the first model's.
- by token, where it says ``tokenizer_source`` or ``tokenizer``: see ``rows``. What mergekit 0.1.5
  does otherwise: it gives zeros to tokens of a tokenizer whose model is not merged (we take that
  model's rows), numbers the tokens that a union adds in the order of a hash table (we go by the
  models' order and the tokens' numbers), counts only the models of the slice that a tensor belongs
  to, and fails on tokens without a row and on numbers that are not contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from evomerge.checkpoints import (
    Checkpoint,
    MergedTokenizer,
    MergedVocabulary,
    input_embedding,
    is_head,
    token_tensors,
)
from evomerge.merging.rows import Rows
from evomerge.merging.sources import Source, Stored
from evomerge.references import ModelReference


def tokenizer_of(source: Source) -> MergedTokenizer:
    """The tokenizer of a model, also of an earlier stage's result."""
    vocabulary = source.vocabulary
    return vocabulary.tokenizer if vocabulary is not None else MergedTokenizer(source.like)


def with_heads(
    sources: Mapping[ModelReference, Source], merged: Iterable[ModelReference]
) -> tuple[dict[ModelReference, Source], list[str]]:
    """The models, the first one with an output head of its own if one of the others has one.

    Args:
        sources: the models; the first gives the merged one its tensors.
        merged: those that are merged.

    Returns:
        The models, and in words what is done.
    """
    lead, first = next(iter(sources.items()))
    heads = {
        name: model
        for model in merged
        for name in sources[model].names
        # An earlier stage's result is asked through the model that it is like.
        if is_head(name) and name not in first.names and (name in first or name in first.like)
    }
    if not heads:
        return dict(sources), []
    notes = [
        f"{model} has a {name} of its own, while {lead}'s is its embeddings: so that they can be "
        "merged, the merged model has one of its own"
        for name, model in heads.items()
    ]
    return {**sources, lead: WithHead(first, heads)}, notes


def height_of(source: Source) -> int:
    """How many rows a model's input embeddings have; 0 where its names do not tell them."""
    embedding = input_embedding(source.names)
    return source.shape(embedding)[0] if embedding else 0


@dataclass(frozen=True)
class Target:
    """The vocabulary of the models that are merged from a recipe.

    Args:
        vocabulary: its tokenizer and its height.
        rows: for each model whose rows do not stand so already, how they are presented.
        notes: what is left out, added or remapped, in words.
    """

    vocabulary: MergedVocabulary
    rows: Mapping[ModelReference, Rows]
    notes: tuple[str, ...] = ()

    def agrees(self, other: Target, models: Iterable[ModelReference]) -> bool:
        """Whether the models are presented in the same way for both."""
        if self.vocabulary.height != other.vocabulary.height:
            return False
        pairs = [(self.rows.get(model), other.rows.get(model)) for model in models]
        return all(a is b or (a is not None and b is not None and a.agrees(b)) for a, b in pairs)

    def present(
        self, sources: Mapping[ModelReference, Source], *, resident: bool
    ) -> dict[ModelReference, Source]:
        """The models, each with its rows in this vocabulary's order.

        Args:
            sources: the models as they are.
            resident: keep the rows that were put in order, instead of the ones they came from.
        """
        made = {
            model: Revocabulated(sources[model], rows, sources, keep=resident)
            for model, rows in self.rows.items()
        }
        if resident:
            for one in made.values():
                one.fill()
            for one in made.values():
                one.let_go()
        return {model: made.get(model, source) for model, source in sources.items()}


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
        if self._kept is None:
            return self._in_order(name)
        if name not in self._kept:
            self._kept[name] = self._in_order(name)
        return self._kept[name]

    def fill(self) -> None:
        """Put everything in order now."""
        for name in self._ordered():
            self.tensor(name)

    def let_go(self) -> None:
        """Keep the rows as they came no longer, unless what is kept lies in their memory."""
        if not self._are_first:
            self.release(self._ordered())

    def _ordered(self) -> list[str]:
        return [name for name in self._source.names if self._is_ordered(name)]

    def _is_ordered(self, name: str) -> bool:
        # One of another height than the embeddings stays as it is, to be refused with its shape.
        return bool(token_tensors([name])) and self._source.shape(name)[0] == self._own_height

    def _in_order(self, name: str) -> torch.Tensor:
        own, rows = self._source.tensor(name), self._rows
        if self._are_first:
            return own[: rows.height]
        kind = self.dtype(name)
        made = torch.zeros((rows.height, *own.shape[1:]), dtype=kind, device=own.device)
        made[rows.places] = own[rows.own].to(kind)
        for part in rows.filled:
            for model, numbers in part.givers:
                given = self._givers[model].tensor(name)[numbers].to(own.device, kind)
                made[part.places] += given / len(part.givers) if len(part.givers) > 1 else given
        if rows.padded.numel():
            tokens = torch.ones(rows.height, dtype=torch.bool)
            tokens[rows.padded] = False
            made[rows.padded] = made[tokens.to(own.device)].mean(dim=0)
        return made
