"""The outcome in plain words: a win, a loss, and neither."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evomerge.evaluation import MetricName, Scores, TaskRequest, TaskScore, Value, compare, fitness
from evomerge.report import verdict_words
from evomerge.search.keeping import FloorCheck
from evomerge.search.records import TrialRecord
from evomerge.search.verdict import BROKEN, KEPT, LOSS, OPEN, WIN, Verdict, judge

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


def test_a_win_that_does_not_keep_its_floors_is_none() -> None:
    searched = TrialRecord(17, "search", "complete", fitness=0.9)
    plain = TrialRecord(5, "baseline", "complete", fitness=0.6, label="uniform")
    broken = FloorCheck("skill acc >= 0.8", 0.75, 0.8, -0.05, -0.08, -0.02)
    unsure = FloorCheck("skill acc >= base", 0.75, 0.74, 0.01, -0.02, 0.04)

    def outcome(winner: TrialRecord, baseline: TrialRecord, *floors: FloorCheck) -> Verdict:
        return judge(
            (winner, scores(300)),
            [(baseline, scores(200))],
            lambda a, b, confidence: compare(a, b, REQUESTS, confidence=confidence),
            lambda s: fitness(s, REQUESTS),
            400,
            floors=floors,
        )

    assert outcome(searched, plain, unsure).outcome == WIN
    found = outcome(searched, plain, unsure, broken)
    assert found.outcome == BROKEN
    assert Verdict.from_json(found.to_json()) == found
    words = verdict_words(found)
    assert words.startswith("No win: the searched recipe is better on items that the search never")
    assert "does not keep its floors" in words
    assert (
        "Floors on the held-out items: skill acc >= base: not sure (0.7500 against 0.7400, a margin"
        " of +0.0100, 95 % interval -0.0200 to +0.0400); skill acc >= 0.8: broken"
    ) in words
    lacking = {"skill acc >= base": 0.1}
    assert outcome(replace(searched, constraints=lacking), plain, unsure).outcome == BROKEN
    sure = replace(unsure, low=0.001)
    unbound = outcome(replace(searched, constraints=lacking), plain, sure)
    assert unbound.outcome == WIN, "it broke them by bad luck"
    assert "No baseline keeps" not in verdict_words(unbound)
    loose = outcome(searched, replace(plain, constraints=lacking), sure)
    assert "No baseline keeps all the floors on the search items." in verdict_words(loose)


def test_a_loss_against_a_baseline_that_breaks_the_floors_recommends_nothing() -> None:
    found = replace(verdict(200, 300), unbound=True)
    assert found.outcome == LOSS
    assert "uniform, trial 5), which does not keep the floors." in verdict_words(found)
    assert "Use the baseline" not in verdict_words(found)


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
