"""Rows by token: the planner against the rule, written as plainly as it reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.rows import Given, Rows, TokenRows
from evomerge.references import ModelReference

MODELS = tuple(ModelReference(name) for name in ("base", "one", "two"))
SPARE = ModelReference("spare")
TOKENS = tuple("abcdefgh")

tables = st.permutations(TOKENS).flatmap(
    lambda order: st.integers(1, len(order)).map(
        lambda count: {token: row for row, token in enumerate(order[:count])}
    )
)


def plain(
    token: str,
    model: ModelReference,
    known: Mapping[ModelReference, Mapping[str, int]],
    base: ModelReference | None,
    spare: Mapping[str, int],
    said: Mapping[str, Given],
) -> float:
    """What a row is, where row r of model m holds the number 100 m + r."""

    def value(one: ModelReference, row: int) -> float:
        return 100.0 * [*MODELS, SPARE].index(one) + row + 1

    own = known[model].get(token)
    if own is not None and not (token in said and said[token].force):
        return value(model, own)
    if token in said:
        giver = said[token].giver
        return value(*giver) if giver else 0.0
    if base is not None and token in known[base]:
        return value(base, known[base][token])
    having = [value(one, table[token]) for one, table in known.items() if token in table]
    if having:
        return sum(having) / len(having)
    return value(SPARE, spare[token]) if token in spare else 0.0


def filled(rows: Rows, model: ModelReference) -> torch.Tensor:
    """The rows' numbers, in the coding of ``plain``."""

    def numbers(one: ModelReference, which: torch.Tensor) -> torch.Tensor:
        return 100.0 * [*MODELS, SPARE].index(one) + which.double() + 1

    made = torch.zeros(rows.height, dtype=torch.float64)
    made[rows.places] = numbers(model, rows.own)
    for part in rows.filled:
        for giver, which in part.givers:
            made[part.places] += numbers(giver, which) / len(part.givers)
    return made


@settings(max_examples=150, deadline=None)
@given(
    target=tables,
    known=st.tuples(tables, tables, tables),
    spare=tables,
    has_base=st.booleans(),
    said=st.dictionaries(
        st.sampled_from(TOKENS),
        st.builds(
            Given,
            st.none() | st.tuples(st.sampled_from(MODELS), st.integers(0, 7)),
            st.booleans(),
        ),
        max_size=2,
    ),
    more=st.integers(0, 3),
)
def test_every_row_is_what_the_rule_says(
    target: dict[str, int],
    known: tuple[dict[str, int], ...],
    spare: dict[str, int],
    has_base: bool,
    said: dict[str, Given],
    more: int,
) -> None:
    by_model = dict(zip(MODELS, known, strict=True))
    base = MODELS[0] if has_base else None
    height = len(target) + more
    rows = TokenRows(target, height, by_model, base, {SPARE: spare}, said)
    assert rows.padded.tolist() == list(range(len(target), height))
    for model in MODELS:
        own = rows.of(model)
        made = filled(own, model)
        expected = [plain(token, model, by_model, base, spare, said) for token in target]
        assert torch.allclose(made[list(target.values())], torch.tensor(expected).double())
        assert own.agrees(rows.of(model))
        whole = all(by_model[model].get(token) == row for token, row in target.items())
        forced = any(token in target and one.force for token, one in said.items())
        assert own.are_first == (whole and not forced and not more)
    orphans = [
        index
        for index, token in enumerate(target)
        if token not in said and not any(token in table for table in (*known, spare))
    ]
    assert rows.orphans() == orphans
