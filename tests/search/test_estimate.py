"""The lower limits are lower limits: each distinct prefix once, whatever repeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import evomerge
from evomerge.api import estimate_search
from evomerge.errors import EvomergeWarning
from evomerge.search.estimate import distinct_prefixes, scored_tokens

SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("sequences", "count"),
    [
        ([], 0),
        ([(1, 2, 3)], 3),
        ([(1, 2, 3), (1, 2, 3)], 3),
        ([(1, 2, 3), (1, 2), (1, 2, 4)], 4),
        ([(1, 2), (2, 1), ()], 4),
        ([(5, 1), (5, 2), (4,), (5,)], 4),
    ],
)
def test_known_counts(sequences: list[tuple[int, ...]], count: int) -> None:
    assert distinct_prefixes(sequences) == count


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=12))
def test_equal_to_the_plain_definition(sequences: list[list[int]]) -> None:
    prefixes = {tuple(s[:end]) for s in sequences for end in range(1, len(s) + 1)}
    assert distinct_prefixes(sequences) == len(prefixes)


def test_choices_that_share_a_question_are_encoded_once() -> None:
    prepared = evomerge.check(SPACE)
    items = prepared.search_items
    everything = sum(len(query.window.tokens) for query in items.queries)
    assert scored_tokens(items) < everything / 3, "four choices of one token each"
    limits, workers = estimate_search(prepared, trials=100, workers=2)
    assert workers == 2
    assert limits.search_seconds == pytest.approx(limits.trial_seconds * 50)
    assert limits.worker_bytes == prepared.worker_bytes > 6 * 10**6


def test_gpus_that_this_machine_lacks_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    prepared = evomerge.check(SPACE)
    resources = prepared.space.resources.model_copy(update={"gpus": 1.0})
    wanting = replace(prepared, space=prepared.space.model_copy(update={"resources": resources}))
    with pytest.warns(EvomergeWarning, match="this machine has no GPU"):
        estimate_search(wanting)
