"""Which row of which model each row of a merged vocabulary is.

A model has rows of its own for the tokens that it knows. For the others its row is, by mergekit's
rule: the base's, where the base knows the token; else the mean over the models that do (one alone
is its own mean); else zeros. Rows that stand for no token (padding up to a round height) are the
mean of the model's other rows. A task vector of a filled row is then zero where it comes from the
base: the model has no say about a token that it does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from evomerge.references import ModelReference


@dataclass(frozen=True)
class Filled:
    """Rows that the model itself does not have.

    Args:
        places: rows of the merged vocabulary; int64, shape [n].
        givers: models and their rows (int64, shape [n]), over which the mean is taken; none at all
            is zeros.
    """

    places: torch.Tensor
    givers: tuple[tuple[ModelReference, torch.Tensor], ...]


@dataclass(frozen=True)
class Rows:
    """Where a model's rows of a merged vocabulary come from.

    Args:
        height: how many rows there are.
        places: the rows that are its own; int64, shape [n].
        own: the numbers that they have in the model; int64, shape [n].
        filled: the rows that it does not have.
        padded: the rows that stand for no token; int64.
    """

    height: int
    places: torch.Tensor
    own: torch.Tensor
    filled: tuple[Filled, ...]
    padded: torch.Tensor

    @property
    def are_first(self) -> bool:
        """Whether they are the model's first rows as they stand."""
        whole = torch.arange(self.height)
        return torch.equal(self.places, whole) and torch.equal(self.own, whole)

    @property
    def means(self) -> bool:
        """Whether a mean is taken somewhere, which has more digits than what it is taken of."""
        return bool(self.padded.numel()) or any(len(part.givers) > 1 for part in self.filled)

    def digest(self) -> str:
        """Equal for equal rows: 64 hexadecimal digits."""
        parts = [(part.places, [(str(m), rows) for m, rows in part.givers]) for part in self.filled]
        found = hashlib.sha256(repr(self.height).encode())
        for tensor in (self.places, self.own, self.padded):
            found.update(repr(tensor.tolist()).encode())
        for places, givers in parts:
            rows = [(model, numbers.tolist()) for model, numbers in givers]
            found.update(repr((places.tolist(), rows)).encode())
        return found.hexdigest()

    def agrees(self, other: Rows) -> bool:
        """Whether both give the same rows."""
        return (
            self.height == other.height
            and torch.equal(self.places, other.places)
            and torch.equal(self.own, other.own)
            and torch.equal(self.padded, other.padded)
            and [_plain(part) for part in self.filled] == [_plain(part) for part in other.filled]
        )


def by_number(height: int, own_height: int, lead: ModelReference) -> Rows:
    """A row is the model's own of that number; the lead's where the model is not so tall."""
    common = torch.arange(min(height, own_height))
    missing = torch.arange(common.numel(), height)
    filled = (Filled(missing, ((lead, missing),)),) if missing.numel() else ()
    return Rows(height, common, common, filled, torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True)
class Given:
    """A token whose row a recipe names.

    Args:
        giver: the model and its row; None is zeros.
        force: for all models, also those that know the token.
    """

    giver: tuple[ModelReference, int] | None
    force: bool


_Group = tuple[torch.Tensor, tuple[tuple[ModelReference, torch.Tensor], ...]]
"""Tokens (their places in the target), and the models that give their rows."""


class TokenRows:
    """Rows by token.

    Args:
        target: token → row of the merged vocabulary.
        height: its rows; at least the highest row + 1.
        tables: for each merged model, token → row, of the tokens that it has a row for.
        base: the base model, if there is one.
        spare: further models that give rows for tokens which no merged model knows, the first that
            knows one winning; token → row.
        given: token → what the recipe says of it.

    Attributes:
        padded: the rows that stand for no token; int64.
    """

    def __init__(
        self,
        target: Mapping[str, int],
        height: int,
        tables: Mapping[ModelReference, Mapping[str, int]],
        base: ModelReference | None,
        spare: Mapping[ModelReference, Mapping[str, int]],
        given: Mapping[str, Given],
    ) -> None:
        self._height, self._base = height, base
        tokens, self._places = list(target), torch.tensor(list(target.values()))
        self._own = {model: _numbers(tokens, table) for model, table in tables.items()}
        self._spare = {model: _numbers(tokens, table) for model, table in spare.items()}
        self._given = {i: given[token] for i, token in enumerate(tokens) if token in given}
        taken = torch.zeros(height, dtype=torch.bool)
        taken[self._places] = True
        self.padded = (~taken).nonzero().view(-1)

    @property
    def known(self) -> Mapping[ModelReference, torch.Tensor]:
        """For each merged model and token of the target its row there; -1 where it has none."""
        return self._own

    def of(self, model: ModelReference) -> Rows:
        """One merged model's rows."""
        lacking = self._own[model] < 0
        for index, given in self._given.items():
            lacking[index] |= given.force
        kept, places = ~lacking, self._places
        filled = tuple(
            Filled(places[where], tuple((one, rows[where]) for one, rows in givers))
            for where, givers in self._groups(lacking)
        )
        order = places[kept].argsort()
        own = self._own[model][kept][order]
        return Rows(self._height, places[kept][order], own, filled, self.padded)

    def orphans(self) -> list[int]:
        """The tokens (their places in ``target``) that nobody has a row for."""
        nobody = torch.ones(self._places.numel(), dtype=torch.bool)
        for rows in (*self._own.values(), *self._spare.values()):
            nobody &= rows < 0
        return [index for index in nobody.nonzero().view(-1).tolist() if index not in self._given]

    def _groups(self, lacking: torch.Tensor) -> list[_Group]:
        """The tokens that a model lacks, by who gives their rows."""
        groups: list[_Group] = []
        rest = lacking.clone()
        for index, given in self._given.items():
            if lacking[index]:
                one = torch.tensor([index])
                giver = [] if given.giver is None else [self._single(index, given.giver)]
                groups.append((one, tuple(giver)))
                rest[index] = False
        for model, rows in self._first_choices():
            where = (rest & (rows >= 0)).nonzero().view(-1)
            if where.numel():
                groups.append((where, ((model, rows),)))
                rest[where] = False
        have = torch.stack([rows >= 0 for rows in self._own.values()])
        for pattern in torch.unique(have[:, rest], dim=1).T:
            where = (rest & (have == pattern[:, None]).all(0)).nonzero().view(-1)
            models = [m for m, there in zip(self._own, pattern.tolist(), strict=True) if there]
            if models:
                groups.append((where, tuple((model, self._own[model]) for model in models)))
                rest[where] = False
        for model, rows in self._spare.items():
            where = (rest & (rows >= 0)).nonzero().view(-1)
            if where.numel():
                groups.append((where, ((model, rows),)))
                rest[where] = False
        where = rest.nonzero().view(-1)
        return [*groups, *([(where, ())] if where.numel() else [])]

    def _first_choices(self) -> Sequence[tuple[ModelReference, torch.Tensor]]:
        if self._base is None or self._base not in self._own:
            return []
        return [(self._base, self._own[self._base])]

    def _single(
        self, index: int, giver: tuple[ModelReference, int]
    ) -> tuple[ModelReference, torch.Tensor]:
        rows = torch.full_like(self._places, -1)
        rows[index] = giver[1]
        return giver[0], rows


def _numbers(tokens: Sequence[str], table: Mapping[str, int]) -> torch.Tensor:
    return torch.tensor([table.get(token, -1) for token in tokens], dtype=torch.int64)


def _plain(part: Filled) -> tuple[object, ...]:
    givers = tuple((model, tuple(rows.tolist())) for model, rows in part.givers)
    return (tuple(part.places.tolist()), givers)
