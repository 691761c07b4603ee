"""The truth at the end: what is shipped against the best baselines on held-out items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evomerge.evaluation import Comparison, Scores
from evomerge.evaluation.paired import mcnemar
from evomerge.search.finalists import MEAN, Decision, finished
from evomerge.search.keeping import FloorCheck
from evomerge.search.problem import summary
from evomerge.search.records import TrialRecord
from evomerge.search.seeded import BASELINE

VERDICT = "verdict"
"""The study's fact."""

WIN, LOSS, OPEN, KEPT, BROKEN = "win", "loss", "open", "kept", "broken"

FEWEST = 20
"""Held-out items below which nothing is called a win or a loss: the bootstrap's interval is too
narrow then (with 5 items and equal models it lies above 0 in one case of twenty, with one in two).
"""

Compare = Callable[[Scores, Scores, float], Comparison]
"""How much better the second is than the first, with the interval of that confidence."""

Scored = tuple[TrialRecord, Scores]


@dataclass(frozen=True)
class Finalist:
    """A recipe that was scored on the held-out items.

    Args:
        number, label, kind: the trial's; −1 and ``mean`` for the end of the search.
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
class Rival:
    """Another baseline that may be the truly best, and what the winner's lead over it is.

    Args:
        baseline: on the held-out items.
        difference: winner − this baseline.
        low, high: its 90 % interval, so that with one chance in twenty it lies above 0 by luck.
    """

    baseline: Finalist
    difference: float
    low: float | None
    high: float | None

    @property
    def beaten(self) -> bool:
        """Whether the winner is better than it."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Verdict:
    """The outcome of a search.

    Args:
        outcome: ``win`` (the intervals against all these baselines lie above 0), ``loss`` (the one
            against the best baseline lies below 0), ``open`` (neither, or there are fewer than
            :data:`FEWEST` items), ``kept`` (a baseline came out best, and is what is shipped) or
            ``broken`` (it would be a win, but the winner clearly breaks a floor on these items, or
            broke one on the search items and does not clearly keep all on these).
        winner: the best searched candidate, on the held-out items; what is shipped unless a
            baseline is.
        baseline: the best baseline by the items before, on the held-out items.
        difference: winner − baseline, paired item by item, in the fitness's unit.
        low, high: its 95 % interval; None where the metrics allow none.
        items: how many held-out items.
        tasks: the same per task, with McNemar's p-value where items are right or wrong.
        others: further baselines that might be the best one.
        p_value: of McNemar's test over all items; None unless all are right or wrong.
        after: how many trials were finished then; None where an earlier version judged.
        floors: how what is shipped stands to its floors on the held-out items.
        unbound: whether the best baseline breaks a floor on the search items, as all of them do.
    """

    outcome: str
    winner: Finalist
    baseline: Finalist
    difference: float
    low: float | None
    high: float | None
    items: int
    tasks: tuple[Mapping[str, Any], ...]
    others: tuple[Rival, ...] = ()
    p_value: float | None = None
    after: int | None = None
    floors: tuple[FloorCheck, ...] = ()
    unbound: bool = False

    @property
    def luck(self) -> float:
        """How much of the winner's lead on the search items is not there on these."""
        return self.winner.search_fitness - self.baseline.search_fitness - self.difference

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "luck": self.luck}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of :meth:`to_json`."""
        others = [
            Rival(**{**other, "baseline": Finalist(**other["baseline"])})
            for other in data.get("others", ())
        ]
        fields = {key: value for key, value in data.items() if key != "luck"}
        return cls(
            **{
                **fields,
                "winner": Finalist(**data["winner"]),
                "baseline": Finalist(**data["baseline"]),
                "tasks": tuple(data["tasks"]),
                "others": tuple(others),
                "floors": tuple(FloorCheck(**one) for one in data.get("floors", ())),
            }
        )


def known_verdict(
    facts: Mapping[str, Any], decision: Decision | None, records: Sequence[TrialRecord]
) -> Verdict | None:
    """The verdict that a study holds, if it is of what the search comes to now."""
    known = facts.get(VERDICT)
    if not known or decision is None or decision.winner is None or not decision.baselines:
        return None
    verdict = Verdict.from_json(known)
    winner, (baseline, *others) = decision.winner, judged_baselines(decision)
    if (verdict.winner.number, verdict.baseline.number) != (winner.number, baseline.number):
        return None
    if verdict.after is None:
        return verdict
    rivals = [other.baseline.number for other in verdict.others]
    kept = (verdict.outcome == KEPT) == (decision.choice.kind == BASELINE)
    same = winner.kind != MEAN or verdict.after == finished(records)  # each race has its own mean
    return verdict if kept and same and rivals == [one.number for one in others] else None


def judged_baselines(decision: Decision) -> tuple[TrialRecord, ...]:
    """Those that are scored on the held-out items: all, or the one that is shipped."""
    shipped = decision.choice.kind == BASELINE
    return (decision.choice,) if shipped else decision.baselines


def judge(
    winner: Scored,
    baselines: Sequence[Scored],
    compare: Compare,
    fitness: Callable[[Scores], float],
    items: int,
    *,
    kept: bool = False,
    after: int | None = None,
    floors: tuple[FloorCheck, ...] = (),
) -> Verdict:
    """Compare the winner with the baselines on the held-out items.

    A win needs the 95 % interval against the first above 0, and the 90 % interval against each of
    the others: whichever of them is truly the best, a winner that is no better is called one in at
    most one case of twenty.

    Args:
        winner, baselines: each trial and its held-out scores; the best baseline first.
        compare: the paired comparison (of a baseline with the winner).
        fitness: of held-out scores.
        items: how many held-out items there are.
        kept: the first baseline is what is shipped.
        after: how many trials are finished.
        floors: how what is shipped stands to them there.
    """
    first, *rest = baselines
    comparison = compare(first[1], winner[1], 0.95)
    others = []
    for record, scores in rest:
        against = compare(scores, winner[1], 0.9)
        rival = _finalist(record, scores, fitness)
        others.append(Rival(rival, against.difference, against.low, against.high))
    outcome = OPEN if items < FEWEST else _outcome(comparison, others)
    sure = all(floor.sure for floor in floors)
    if outcome == WIN and (any(f.broken for f in floors) or (winner[0].violation > 0 and not sure)):
        outcome = BROKEN
    binary = all(task.p_value is not None for task in comparison.tasks)
    return Verdict(
        outcome=KEPT if kept else outcome,
        winner=_finalist(*winner, fitness),
        baseline=_finalist(*first, fitness),
        difference=comparison.difference,
        low=comparison.low,
        high=comparison.high,
        items=items,
        tasks=tuple(asdict(task) for task in comparison.tasks),
        others=tuple(others),
        p_value=mcnemar(comparison.wins, comparison.losses) if binary else None,
        after=after,
        floors=floors,
        unbound=first[0].violation > 0,
    )


def _outcome(comparison: Comparison, others: Sequence[Rival]) -> str:
    if comparison.high is not None and comparison.high < 0:
        return LOSS
    ahead = comparison.low is not None and comparison.low > 0
    return WIN if ahead and all(one.beaten for one in others) else OPEN


def _finalist(record: TrialRecord, scores: Scores, fitness: Callable[[Scores], float]) -> Finalist:
    assert record.fitness is not None  # for the type checker: finalists are complete
    return Finalist(
        number=record.number,
        label=record.label or f"trial {record.number}",
        kind=record.kind,
        search_fitness=record.fitness,
        fitness=fitness(scores),
        scores=summary(scores),
    )
