"""The truth at the end of a search with several goals: points of the front on held-out items.

A point wins if no baseline is as good as it in every goal: against each of them there is a goal in
which the point is better beyond chance. So it is a trade-off that no model had before the search.
The intervals are Bonferroni's, for all the points and goals together: with k points and g goals at
1 - 0.05 / (k g), so that a front whose points are each covered by a baseline has one that is called
a win in less than one case of twenty. (That a point must pass every baseline needs no correction.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from evomerge.evaluation import Comparison, MetricName, Scores, TaskRequest
from evomerge.search.finalists import finished
from evomerge.search.goals import covers, front, spread
from evomerge.search.keeping import FloorCheck, flipped, raised
from evomerge.search.race import Z
from evomerge.search.records import TrialRecord
from evomerge.search.seeded import BASELINE
from evomerge.search.verdict import FEWEST

FRONT = "front"
"""The study's fact."""

_LEVEL = 0.05

Compare = Callable[[Scores, Scores, Sequence[TaskRequest], float], Comparison]
"""How much better the second is than the first, request by request, at a confidence."""


@dataclass(frozen=True)
class Lead:
    """A point's lead over the baseline that is best in one goal.

    Args:
        goal: its name.
        baseline: the label of the baseline that is best in it on the search items.
        difference: point − baseline, paired item by item, in the goal's unit.
        low, high: its interval; None where the metric allows none.
    """

    goal: str
    baseline: str
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A recipe on the held-out items.

    Args:
        number, label: the trial's.
        search_values, values: goal by goal on the search items, and on the held-out ones.
        fitness: on the held-out items.
        leads: a searched point's, one for each goal.
        open: the baselines over which no lead in any goal is sure.
        beaten_by: those that are on the held-out items nowhere worse and somewhere better.
        floors: how it stands to its floors there.
    """

    number: int
    label: str
    search_values: tuple[float, ...]
    values: tuple[float, ...]
    fitness: float
    leads: tuple[Lead, ...] = ()
    open: tuple[str, ...] = ()
    beaten_by: tuple[str, ...] = ()
    floors: tuple[FloorCheck, ...] = ()


@dataclass(frozen=True)
class FrontVerdict:
    """The outcome of a search with several goals.

    Args:
        goals: their names.
        points: of the front, spread over it; the searched ones, in the front's order.
        baselines: those that have to be passed.
        items: how many held-out items.
        confidence: of each interval.
        after: how many trials were finished then.
    """

    goals: tuple[str, ...]
    points: tuple[Point, ...]
    baselines: tuple[Point, ...]
    items: int
    confidence: float
    after: int

    def wins(self, point: Point) -> bool:
        """Whether the point passes every baseline, and breaks no floor clearly."""
        broken = any(floor.broken for floor in point.floors)
        return self.items >= FEWEST and not point.open and not broken

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        for point, of in zip(self.points, data["points"], strict=True):
            of["wins"] = self.wins(point)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FrontVerdict:
        """The inverse of :meth:`to_json`."""
        return cls(
            goals=tuple(data["goals"]),
            points=tuple(map(_point, data["points"])),
            baselines=tuple(map(_point, data["baselines"])),
            items=data["items"],
            confidence=data["confidence"],
            after=data["after"],
        )


def _point(data: Mapping[str, Any]) -> Point:
    return Point(
        data["number"],
        data["label"],
        tuple(data["search_values"]),
        tuple(data["values"]),
        data["fitness"],
        tuple(Lead(**lead) for lead in data["leads"]),
        tuple(data["open"]),
        tuple(data["beaten_by"]),
        tuple(FloorCheck(**floor) for floor in data["floors"]),
    )


@dataclass(frozen=True)
class Chosen:
    """Who is scored on the held-out items.

    Args:
        points: searched trials of the front.
        baselines: all but those that another one beats beyond noise in every goal; where there are
            floors and one of them keeps them, none that breaks them.
    """

    points: tuple[TrialRecord, ...]
    baselines: tuple[TrialRecord, ...]


def chosen_of(
    records: Sequence[TrialRecord], count: int, requests: Sequence[TaskRequest]
) -> Chosen:
    """The points of a study's front to be judged, at most so many, and their baselines.

    Args:
        records: its trials.
        count: how many points at most.
        requests: what the goals are.
    """
    searched = [record for record in front(records) if record.kind != BASELINE]
    complete = [one for one in records if one.kind == BASELINE and one.state == "complete"]
    kept = [one for one in complete if one.violation == 0]
    # Without a baseline that keeps them, what is searched has to pass them all.
    unbound = [replace(one, constraints={}) for one in kept or complete]
    return Chosen(tuple(spread(searched, count)), tuple(_to_pass(unbound, requests)))


def _to_pass(
    baselines: Sequence[TrialRecord], requests: Sequence[TaskRequest]
) -> list[TrialRecord]:
    """The baselines that may be, in truth, on the front of all of them, by falling first value.

    One that is behind by luck on the search items would not be passed by what passes the others.
    """
    apart = list({one.recipe or str(one.number): one for one in reversed(baselines)}.values())
    kept = [
        one for one in apart if not any(_surely_covers(other, one, requests) for other in apart)
    ]
    return sorted(kept, key=lambda one: ([-value for value in one.values], one.number))


def _surely_covers(one: TrialRecord, other: TrialRecord, requests: Sequence[TaskRequest]) -> bool:
    """Whether one is better in every goal by more than noise: by their standard errors, as if
    unpaired, which is a bound for the paired difference's."""
    goals = [request for request in requests if request.weight]
    return all(
        ahead - behind > Z * math.hypot(_error(one, request), _error(other, request))
        for request, ahead, behind in zip(goals, one.values, other.values, strict=True)
    )


def _error(record: TrialRecord, request: TaskRequest) -> float:
    """The standard error of a goal; infinite where none is known."""
    found = [
        error
        for name, (_, error) in record.scores.get(request.task, {}).items()
        if MetricName.parse(name).name == request.metric.name
    ]
    return max((math.inf if one is None else one for one in found), default=math.inf)


def known_front(facts: Mapping[str, Any], records: Sequence[TrialRecord]) -> FrontVerdict | None:
    """The verdict that a study holds, if it is of all its trials."""
    known = facts.get(FRONT)
    if not known or known["after"] != finished(records):
        return None
    return FrontVerdict.from_json(known)


@dataclass(frozen=True)
class HeldOut:
    """What the held-out items are, and how they are judged.

    Args:
        requests: the goals' own, of the held-out item set, in their order.
        names: the goals'.
        items: how many there are.
        plain_sum: as for :func:`~evomerge.evaluation.fitness`.
        compare: the paired comparison.
        fitness, values: of held-out scores.
    """

    requests: tuple[TaskRequest, ...]
    names: tuple[str, ...]
    items: int
    plain_sum: bool
    compare: Compare
    fitness: Callable[[Scores], float]
    values: Callable[[Scores], tuple[float, ...]]


def judge_front(
    chosen: Chosen,
    scores: Mapping[int, Scores],
    held_out: HeldOut,
    floors: Mapping[int, tuple[FloorCheck, ...]],
    after: int,
) -> FrontVerdict:
    """Compare points of the front with the baselines, goal by goal.

    Args:
        chosen: who is judged.
        scores: trial number → scores on the held-out items.
        held_out: these items.
        floors: trial number → how it stands to its floors there.
        after: how many trials are finished.
    """
    baselines = tuple(_held_out(one, scores[one.number], held_out) for one in chosen.baselines)
    points = [_held_out(one, scores[one.number], held_out) for one in chosen.points]
    confidence = 1 - _LEVEL / max(len(points) * len(held_out.names), 1)
    best = [
        max(baselines, key=lambda one: one.search_values[place], default=None)
        for place in range(len(held_out.names))
    ]
    judged = []
    for point in points:
        leads = {
            one.number: _leads(scores[one.number], scores[point.number], held_out, confidence)
            for one in baselines
        }
        judged.append(
            replace(
                point,
                leads=tuple(
                    Lead(name, one.label, *leads[one.number][place])
                    for place, (name, one) in enumerate(zip(held_out.names, best, strict=True))
                    if one is not None
                ),
                open=tuple(one.label for one in baselines if not _sure(leads[one.number])),
                beaten_by=tuple(
                    one.label
                    for one in baselines
                    if covers(one.values, point.values) and one.values != point.values
                ),
                floors=floors.get(point.number, ()),
            )
        )
    names = held_out.names
    return FrontVerdict(names, tuple(judged), baselines, held_out.items, confidence, after)


def _held_out(record: TrialRecord, scores: Scores, held_out: HeldOut) -> Point:
    label = record.label or f"trial {record.number}"
    values = held_out.values(scores)
    return Point(record.number, label, record.values, values, held_out.fitness(scores))


Difference = tuple[float, float | None, float | None]


def _leads(
    baseline: Scores, point: Scores, held_out: HeldOut, confidence: float
) -> list[Difference]:
    """The point's lead over a baseline in each goal, with its interval."""
    compared = held_out.compare(baseline, point, held_out.requests, confidence)
    leads = []
    for request, paired in zip(held_out.requests, compared.tasks, strict=True):
        higher = raised(paired, point, request)
        better = point.value(request.task, request.metric).higher_is_better
        up = (request.weight > 0) == (held_out.plain_sum or better)
        leads.append(higher if up else flipped(higher))
    return leads


def _sure(leads: Sequence[Difference]) -> bool:
    return any(low is not None and low > 0 for _, low, _ in leads)
