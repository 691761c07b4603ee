"""The finals of a search with several goals: points of its front are scored on held-out items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from evomerge.evaluation import Comparison, Scores, TaskRequest, compare, fitness, goals
from evomerge.search.finalists import finished
from evomerge.search.keeping import checks, models_of
from evomerge.search.pool import Outcome
from evomerge.search.preparation import Preparation
from evomerge.search.records import TrialRecord
from evomerge.search.storage import StudyStore
from evomerge.search.tradeoffs import FRONT, HeldOut, chosen_of, judge_front, known_front

Score = Callable[[Iterable[TrialRecord]], dict[int, Outcome]]
"""Scores trials on the held-out items."""


def judge_goals(
    prepared: Preparation, store: StudyStore, records: Sequence[TrialRecord], score: Score
) -> str | None:
    """Judge the front of a study, and keep the verdict in it; one that it holds is kept.

    Args:
        prepared: the space.
        store: its study.
        records: its trials, all finished.
        score: not called when there is nothing to do.

    Returns:
        why there is no verdict; None if there is one.
    """
    requests = prepared.search_items.requests
    chosen = chosen_of(records, prepared.space.finals.candidates, requests)
    if known_front(store.facts, records) is not None:
        return None
    if not prepared.space.finals.candidates:
        return "no point of the front was to be judged (finals.candidates: 0)"
    if not chosen.points or not chosen.baselines:
        return "no searched trial is on the front, or no baseline succeeded"
    items = prepared.holdout_items
    if items is None:
        return "there are no held-out items"
    models = models_of(prepared.floors, records)
    asked = {one.number: one for one in (*chosen.points, *chosen.baselines, *models.values())}
    outcomes = score(asked.values())
    found = {number: one.scores for number, one in outcomes.items() if one.scores is not None}
    if len(found) < len(outcomes):
        failed = next(outcome.failure for outcome in outcomes.values() if outcome.failure)
        return f"the held-out items could not be scored: {failed}"
    kept = {
        one.number: checks(prepared.floors, one, models, found, items.requests)
        for one in chosen.points
    }
    verdict = judge_front(chosen, found, _held_out(prepared), kept, finished(records))
    store.remember(**{FRONT: verdict.to_json()})
    return None


def _held_out(prepared: Preparation) -> HeldOut:
    items, plain_sum = prepared.holdout_items, prepared.space.plain_sum
    requests = items.requests if items is not None else ()
    return HeldOut(
        requests=tuple(request for request in requests if request.weight),
        names=prepared.goals,
        items=0 if items is None else len(items),
        plain_sum=plain_sum,
        compare=_compare,
        fitness=partial(fitness, requests=requests, plain_sum=plain_sum),
        values=partial(goals, requests=requests, plain_sum=plain_sum),
    )


def _compare(
    a: Scores, b: Scores, requests: Sequence[TaskRequest], confidence: float
) -> Comparison:
    return compare(a, b, requests, confidence=confidence)
