"""What happens to tokens and rows in a merge, in words: said before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.checkpoints import Vocabulary, input_embedding, token_tensors
from evomerge.merging.sources import Source
from evomerge.references import ModelReference

_SHOWN = 5


def numbers_note(
    lead: Source, other: Source, mine: Vocabulary | None, its: Vocabulary | None
) -> str:
    """Two models of different heights whose rows are matched by number."""
    embedding = input_embedding(lead.names) or ""
    height, own = lead.shape(embedding)[0], other.shape(embedding)[0]
    names = " and ".join(name for name in token_tensors(lead.names) if name in other)
    first, last = min(height, own), max(height, own) - 1
    if own > height:
        what = f"has {own} rows in {names}, but {height} in {lead.reference}"
        done, spare = f"rows {first} … {last} are left out", its
    else:
        what = f"has {own} rows in {names}, of {height} in {lead.reference}"
        done, spare = f"rows {first} … {last} are {lead.reference}'s", mine
    if mine is None or its is None:
        blind = other if its is None else lead
        meant = f"rows are matched by number, as {blind.reference} has no readable tokenizer"
    else:
        tokens = [spare.tokens[n] for n in range(first, last + 1) if spare and n in spare.tokens]
        meant = f"they stand for {some(tokens)}" if tokens else "they stand for no token"
    return f"{other.reference}: {what}: {done} ({meant})"


def renamed_note(
    lead: Source, other: Source, mine: Vocabulary, its: Vocabulary, rows: int
) -> list[str]:
    """Added tokens that have one number and two names, rows being matched by number.

    Args:
        lead: the model whose vocabulary the merged one is.
        other: the other model.
        mine, its: their vocabularies.
        rows: how many rows both have.
    """
    pairs = [
        f"{token!r} for {name!r}"
        for number, name in sorted(mine.tokens.items())
        if number < rows and (token := its.tokens.get(number, name)) != name
    ]
    if not pairs:
        return []
    listed = ", ".join(pairs[:_SHOWN]) + (", …" if len(pairs) > _SHOWN else "")
    count = _count(len(pairs), "token", "tokens")
    return [
        f"{other.reference}: renames {count} of {lead.reference} ({listed}): their rows are merged "
        f"by number, under {lead.reference}'s names"
    ]


def token_notes(
    source: str,
    target: Mapping[str, int],
    added: Sequence[str],
    tables: Mapping[ModelReference, Mapping[str, int]],
    heights: Mapping[ModelReference, int],
    base: ModelReference | None,
) -> list[str]:
    """Models whose rows are matched by token.

    Args:
        source: what the recipe says, such as ``tokenizer_source: union``.
        target: token → row of the merged vocabulary.
        added: the tokens that the merged model's tokenizer has in addition to the one it is like.
        tables: for each merged model, token → row.
        heights: how many rows each has.
        base: the base model.
    """
    notes = [f"{source} adds {some(added)}"] if added else []
    for model, table in tables.items():
        parts = [
            _left_out([token for token in table if token not in target]),
            _padding(heights[model] - len(set(table.values()))),
            _lacking([token for token in target if token not in table], base, model),
            _moved(sum(1 for token, row in table.items() if target.get(token, row) != row)),
        ]
        said = [part for part in parts if part]
        notes += [f"{model}: {'; '.join(said)} ({source})"] if said else []
    return notes


def filler_notes(
    source: str, orphans: Sequence[str], padded: torch.Tensor, height: int
) -> list[str]:
    """Rows that no model has."""
    notes = []
    if orphans:
        notes.append(f"no model has a row for {some(orphans)}: zeros ({source})")
    if padded.numel():
        count = _count(padded.numel(), "row stands", "rows stand")
        notes.append(
            f"{count} for no token in the merged vocabulary of {height} rows: the mean of the "
            f"others ({source})"
        )
    return notes


def some(tokens: Iterable[str]) -> str:
    """``3 tokens ('a', 'b', 'c')``"""
    listed = list(tokens)
    shown = ", ".join(repr(token) for token in listed[:_SHOWN])
    more = ", …" if len(listed) > _SHOWN else ""
    return f"{_count(len(listed), 'token', 'tokens')} ({shown}{more})"


def _left_out(tokens: Sequence[str]) -> str:
    return f"{some(tokens)} left out" if tokens else ""


def _padding(count: int) -> str:
    return f"{_count(count, 'row', 'rows')} that stand for no token left out" if count > 0 else ""


def _lacking(tokens: Sequence[str], base: ModelReference | None, model: ModelReference) -> str:
    if not tokens:
        return ""
    one = len(tokens) == 1
    takes, it = ("takes the row", "it") if one else ("take the rows", "them")
    whose = "of the base, or of models" if base not in (None, model) else "of models"
    return f"{some(tokens)} that it lacks {takes} {whose} that have {it}"


def _moved(count: int) -> str:
    return f"{_count(count, 'token stands', 'tokens stand')} in another row" if count else ""


def _count(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
