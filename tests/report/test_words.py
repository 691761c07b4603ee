"""The outcome in plain words: a win, a loss, and neither."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evomerge.evaluation import MetricName, Scores, TaskRequest, TaskScore, Value, compare, fitness
from evomerge.report import verdict_words
from evomerge.search.records import TrialRecord
from evomerge.search.verdict import KEPT, LOSS, OPEN, WIN, Verdict, judge

ACC = MetricName("acc", "none")
REQUESTS = (TaskRequest("skill", ACC),)


def scores(right: int, of: int = 400) -> Scores:
    """Right on the first so many items."""
    items = (np.arange(of) < right).astype(float)
    value = Value(float(items.mean()), 0.02)
    return Scores({"skill": TaskScore({ACC: value}, {ACC: items}, tuple(range(of)))})


def verdict(
    winner: int, baseline: int, *others: tuple[TrialRecord, Scores], kept: bool = False
) -> Verdict:
    searched = TrialRecord(17, "search", "complete", fitness=0.9)
    plain = TrialRecord(5, "baseline", "complete", fitness=0.6, label="uniform")
    return judge(
        (searched, scores(winner)),
        [(plain, scores(baseline)), *others],
        lambda a, b, confidence: compare(a, b, REQUESTS, confidence=confidence),
        lambda s: fitness(s, REQUESTS),
        400,
        kept=kept,
    )


def test_a_clear_difference_is_a_win() -> None:
    found = verdict(300, 200)
    assert found.outcome == WIN
    assert found.difference == pytest.approx(0.25)
    words = verdict_words(found)
    assert words.startswith("A win")
    assert "trial 17" in words
    assert "+0.2500 (95 % interval +0.2" in words
    assert "its lead was +0.3000: +0.2500 of that is left; +0.0500 was luck" in words
    assert "McNemar's test p = 1.6e-30" in words


def test_no_more_is_left_of_a_lead_than_there_was() -> None:
    words = verdict_words(verdict(380, 200))
    assert "its lead was +0.3000: all of that is left." in words
    assert "luck" not in words


def test_a_clear_loss_recommends_the_baseline() -> None:
    found = verdict(200, 300)
    assert found.outcome == LOSS
    assert "Use the baseline (uniform, trial 5)" in verdict_words(found)


def test_a_small_difference_is_neither() -> None:
    found = verdict(201, 200)
    assert found.outcome == OPEN
    assert verdict_words(found).startswith("Open: the held-out items do not tell")


def test_no_interval_is_said() -> None:
    found = replace(verdict(300, 200), low=None, high=None, outcome=OPEN)
    words = verdict_words(found)
    assert "allow no interval" in words
    assert "95 %" not in words


def test_verdict_survives_json() -> None:
    found = verdict(300, 200)
    assert Verdict.from_json(found.to_json()) == found
    assert found.to_json()["luck"] == pytest.approx(0.05)
    before = {
        key: value
        for key, value in found.to_json().items()
        if key not in ("others", "p_value", "after", "luck")
    }
    assert Verdict.from_json(before).difference == found.difference, "an earlier version's"


def test_a_win_beats_every_baseline_that_may_be_the_best() -> None:
    rival = TrialRecord(3, "baseline", "complete", fitness=0.59, label="only a")
    beaten = verdict(300, 200, (rival, scores(210)))
    assert beaten.outcome == WIN
    assert "Over other baselines (90 % intervals): only a +0.2250 (+0.1" in verdict_words(beaten)
    open_ = verdict(300, 200, (rival, scores(300)))
    assert open_.outcome == OPEN
    assert "beats the best baseline of the search, but not only a" in verdict_words(open_)
    assert Verdict.from_json(open_.to_json()) == open_


def test_a_baseline_that_came_out_best_is_kept() -> None:
    found = verdict(300, 200, kept=True)
    assert found.outcome == KEPT, "held-out items change no choice"
    assert verdict_words(found).startswith(
        "The search found nothing better than the baseline (uniform, trial 5), which is kept."
    )


def test_a_handful_of_items_is_never_a_win() -> None:
    searched = TrialRecord(17, "search", "complete", fitness=0.9)
    plain = TrialRecord(5, "baseline", "complete", fitness=0.6, label="uniform")
    found = judge(
        (searched, scores(5, of=5)),
        [(plain, scores(0, of=5))],
        lambda a, b, confidence: compare(a, b, REQUESTS, confidence=confidence),
        lambda s: fitness(s, REQUESTS),
        5,
    )
    assert found.low is not None
    assert found.low > 0, "the interval alone would call it a win"
    assert found.outcome == OPEN
    assert "fewer than 20 held-out items prove nothing" in verdict_words(found)
