"""The truth at the end: the winner against the best baseline on items that the search never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evomerge.evaluation import Comparison, Scores
from evomerge.search.budget import best_of
from evomerge.search.loop import summary
from evomerge.search.pool import Job, Outcome, Pool
from evomerge.search.records import TrialRecord

WIN, LOSS, OPEN = "win", "loss", "open"

FEWEST = 20
"""Held-out items below which nothing is called a win or a loss: the bootstrap's interval is too
narrow then (with 5 items and equal models it lies above 0 in one case of twenty, with one in two).
"""


@dataclass(frozen=True)
class Finalist:
    """A trial that was scored on the held-out items.

    Args:
        number, label, kind: the trial's.
        search_fitness: on the search items, where it was chosen: an optimistic number.
        fitness: on the held-out items.
        scores: task → metric → [value, standard error] on the held-out items.
    """

    number: int
    label: str
    kind: str
    search_fitness: float
    fitness: float
    scores: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a search.

    Args:
        outcome: ``win`` (the interval lies above 0), ``loss`` (below 0) or ``open`` (it holds 0, or
            there are fewer than :data:`FEWEST` items).
        winner: the fittest searched trial, on the held-out items.
        baseline: the fittest baseline, on the held-out items.
        difference: winner − baseline, paired item by item, in the fitness's unit.
        low, high: its 95 % interval; None where the metrics allow none.
        items: how many held-out items.
        tasks: the same per task.
    """

    outcome: str
    winner: Finalist
    baseline: Finalist
    difference: float
    low: float | None
    high: float | None
    items: int
    tasks: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of :meth:`to_json`."""
        return cls(
            **{
                **data,
                "winner": Finalist(**data["winner"]),
                "baseline": Finalist(**data["baseline"]),
                "tasks": tuple(data["tasks"]),
            }
        )


def finalists(records: list[TrialRecord]) -> tuple[TrialRecord, TrialRecord] | None:
    """The best searched trial and the best baseline; None unless there is one of each."""
    complete = [record for record in records if record.state == "complete"]
    winner = best_of([record for record in complete if record.kind != "baseline"])
    baseline = best_of([record for record in complete if record.kind == "baseline"])
    return (winner, baseline) if winner and baseline else None


def score_held_out(pool: Pool, trials: tuple[TrialRecord, ...]) -> dict[int, Outcome]:
    """Score trials on the held-out items, as many at once as there are workers."""
    waiting = [Job(trial.number, trial.recipe or "", "holdout") for trial in trials]
    outcomes: dict[int, Outcome] = {}
    while waiting or pool.busy:
        while waiting and pool.busy < pool.size:
            pool.submit(waiting.pop(0))
        for outcome in pool.wait(1.0):
            outcomes[int(outcome.job.key)] = outcome
    return outcomes


def judge(
    winner: tuple[TrialRecord, Scores],
    baseline: tuple[TrialRecord, Scores],
    compare: Callable[[Scores, Scores], Comparison],
    fitness: Callable[[Scores], float],
    items: int,
) -> Verdict:
    """Compare the two on the held-out items.

    Args:
        winner, baseline: each trial and its held-out scores.
        compare: the paired comparison (of the baseline with the winner).
        fitness: of held-out scores.
        items: how many held-out items there are.
    """
    comparison = compare(baseline[1], winner[1])
    return Verdict(
        outcome=_outcome(comparison) if items >= FEWEST else OPEN,
        winner=_finalist(*winner, fitness),
        baseline=_finalist(*baseline, fitness),
        difference=comparison.difference,
        low=comparison.low,
        high=comparison.high,
        items=items,
        tasks=tuple(asdict(task) for task in comparison.tasks),
    )


def _outcome(comparison: Comparison) -> str:
    if comparison.low is not None and comparison.low > 0:
        return WIN
    if comparison.high is not None and comparison.high < 0:
        return LOSS
    return OPEN


def _finalist(record: TrialRecord, scores: Scores, fitness: Callable[[Scores], float]) -> Finalist:
    assert record.fitness is not None  # for the type checker: finalists() takes complete trials
    return Finalist(
        number=record.number,
        label=record.label or f"trial {record.number}",
        kind=record.kind,
        search_fitness=record.fitness,
        fitness=fitness(scores),
        scores=summary(scores),
    )
