"""Floors: what a candidate's scores have to keep to, as constraints of the search.

A floor's constraint is what the score lacks of its limit, in the metric's unit: 0 or less keeps it.
Of two candidates one that keeps all floors is better than one that does not; of two that do not,
the one that lacks less in sum is; of two that do, the fitter one (Deb 2000, "An efficient
constraint handling method for genetic algorithms", sect. 3). Optuna's samplers are told the
constraints and go by the same rules; CMA-ES, which looks at ranks alone, is told a number that
ranks so.

A limit that is relative to a model is known once that model's baseline is finished, which the
study begins with; till then nothing is known to break it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.errors import SpaceError
from evomerge.search.baselines import BASE, ONLY
from evomerge.search.records import TrialRecord, violation_of
from evomerge.space.limits import BASE_MODEL, Limit

if TYPE_CHECKING:
    from evomerge.evaluation import ItemSet, TaskRequest
    from evomerge.space import SearchSpace

_WORST = 1e300
"""Larger than any fitness's size."""


def ranked_value(value: float, constraints: Mapping[str, float]) -> float:
    """A value to minimise, so that those that break a floor rank last, by how much they do.

    Args:
        value: to be minimised, of a size below 1e300.
        constraints: of the candidate.
    """
    violation = violation_of(constraints)
    return value if violation == 0 else _WORST * (1 + violation / (1 + violation))


@dataclass(frozen=True)
class Floor:
    """A limit that a task's metric has to keep to.

    Args:
        place: of the task among the space's tasks.
        task, metric: what is looked at; the metric with its filter where it names one.
        limit: absolute, or relative to a model.
        upper: whether the metric must not exceed the limit, instead of reach it.
        references: the labels of the baselines that the limit hangs on; empty if it is absolute.
    """

    place: int
    task: str
    metric: str
    limit: Limit
    upper: bool
    references: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the constraint is called: ``arc_easy acc >= base - 0.02``."""
        return f"{self.task} {self.metric} {'<=' if self.upper else '>='} {self.limit}"

    def value(self, scores: Mapping[str, Any]) -> float:
        """The score that is looked at.

        Args:
            scores: as a study keeps them, the task's among them.
        """
        wanted, _, filter_name = self.metric.partition(",")
        for metric, (value, _error) in scores[self.task].items():
            name, _, its_filter = metric.partition(",")
            if name == wanted and filter_name in ("", its_filter):
                return float(value)
        raise KeyError(f"{self.task}: {self.metric}")

    def waits(self, baselines: Mapping[str, TrialRecord]) -> bool:
        """Whether the limit is not known yet.

        Args:
            baselines: those that are finished, by label.
        """
        return any(label not in baselines for label in self.references)

    def reference(self, baselines: Mapping[str, TrialRecord]) -> TrialRecord | None:
        """The baseline that the limit is relative to: the best of several, the first of equals.

        None where the limit is absolute, or where none of them succeeded.
        """
        whole = [
            baselines[label]
            for label in self.references
            if label in baselines and baselines[label].state == "complete"
        ]
        sign = -1.0 if self.upper else 1.0
        return max(whole, key=lambda one: sign * self.value(one.scores), default=None)

    def failed(self, baselines: Mapping[str, TrialRecord]) -> list[str]:
        """The references that have no scores, so that the limit hangs on the others alone."""
        there = [baselines[label] for label in self.references if label in baselines]
        return [str(one.label) for one in there if one.state == "failed"]

    def bound(self, baselines: Mapping[str, TrialRecord]) -> float | None:
        """The limit as a number; None while it is not known."""
        if self.limit.of is None:
            return self.limit.offset
        known = None if self.waits(baselines) else self.reference(baselines)
        return None if known is None else self.value(known.scores) + self.limit.offset

    def lacks(self, value: float, bound: float) -> float:
        """What a score lacks of the limit: 0 or less keeps the floor."""
        # Rounded: 0.86 - 0.2 is 0.6599999999999999, which must not break a floor, nor keep one.
        return round(value - bound if self.upper else bound - value, 12)


def floors_of(space: SearchSpace, labels: Iterable[str]) -> tuple[Floor, ...]:
    """The floors of a space.

    Args:
        space: the space.
        labels: of its baselines.
    """
    found, known = [], list(labels)
    for place, task in enumerate(space.tasks):
        limit = task.max_ if task.min_ is None else task.min_
        if limit is None:
            continue
        references: tuple[str, ...] = ()
        if limit.of == BASE_MODEL:
            references = (BASE,)
        elif limit.of is not None:
            references = tuple(label for label in known if label.startswith(ONLY))
        upper = task.max_ is not None
        found.append(Floor(place, task.task, task.metric, limit, upper, references))
    return tuple(found)


def check_floors(space: SearchSpace, items: ItemSet, labels: Sequence[str]) -> None:
    """Refuse floors without a limit, on the wrong side of their metric, or beyond its range.

    Args:
        space: the space.
        items: what is searched on.
        labels: of the baselines.

    Raises:
        SpaceError: all of them, each with its line.
    """
    faults = []
    for floor, request in (
        (floor, items.requests[floor.place]) for floor in floors_of(space, labels)
    ):
        key, other = ("max", "min") if floor.upper else ("min", "max")
        place = ("tasks", floor.place, key)
        if _wants_high(request, items, space) == floor.upper:
            way = "low" if key == "min" else "high"
            problem = f"{floor.limit} is refused: {request.metric} of {request.task} is to be {way}"
            faults.append(space.fault(place, f"{problem}; write {other}: {floor.limit}"))
        if items.is_share(request):
            faults += [space.fault(place, beyond) for beyond in _beyond(floor.limit, request)]
        missing = [label for label in floor.references if label not in labels]
        if floor.limit.of is not None and (missing or not floor.references):
            what = "base model" if floor.limit.of == BASE_MODEL else "fine-tuned model"
            problem = f"{floor.limit} is refused: no {what} is among the baselines of this space"
            faults.append(space.fault(place, f"{problem}; write a number"))
    if faults:
        raise SpaceError(faults)


def _beyond(limit: Limit, request: TaskRequest) -> list[str]:
    """What is wrong with a limit that a metric in [0, 1] cannot come near: most often percent."""
    if _near(limit):
        return []
    told = f"{request.metric} of {request.task} lies between 0 and 1"
    percent = Limit(float(f"{limit.offset / 100:.12g}"), limit.of)
    meant = f", such as {percent}" if _near(percent) else ""
    return [f"{limit} is refused: {told}; write a share{meant}"]


def _near(limit: Limit) -> bool:
    """Whether a share may be on either side of it, or just reach it."""
    return 0 <= limit.offset <= 1 if limit.of is None else abs(limit.offset) < 1


def _wants_high(request: TaskRequest, items: ItemSet, space: SearchSpace) -> bool:
    """Whether the search raises the metric; without a weight, whether higher is better."""
    better = items.higher_is_better(request)
    if request.weight == 0:
        return better
    return (request.weight > 0) == (space.plain_sum or better)


class Constraints:
    """The constraints of a study's trials, once the limits are known.

    Args:
        floors: of the problem.
        records: the trials of earlier runs.
    """

    def __init__(self, floors: Sequence[Floor], records: Iterable[TrialRecord] = ()) -> None:
        self._floors = tuple(floors)
        self._labels = {label for floor in floors for label in floor.references}
        self._baselines: dict[str, TrialRecord] = {}
        self._bounds: dict[str, float] | None = None
        for record in records:
            if record.finished:
                self.count(record)
        self._look()

    @property
    def known(self) -> bool:
        """Whether every limit is a number."""
        return self._bounds is not None

    @property
    def hopeless(self) -> str | None:
        """Why a limit will never be known; None where one may be."""
        for floor in self._floors:
            if floor.waits(self._baselines) or floor.limit.of is None:
                continue
            if floor.reference(self._baselines) is None:
                named = " and ".join(floor.references)
                return f"{floor.name}: its limit cannot be known, as {named} failed"
        return None

    def count(self, record: TrialRecord) -> bool:
        """A trial is finished. Whether the limits have become known by it."""
        if self.known or record.label not in self._labels:
            return False
        self._baselines[str(record.label)] = record
        self._look()
        return self.known

    def of(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """The constraints of a trial with these scores; none while the limits are not known."""
        bounds = self._bounds or {}
        return {
            floor.name: floor.lacks(floor.value(scores), bounds[floor.name])
            for floor in self._floors
            if floor.name in bounds
        }

    def unfit(self, scores: Mapping[str, Any]) -> str | None:
        """The score that is no finite number, so that no floor can be told of it; None if none."""
        for floor in self._floors:
            value = floor.value(scores)
            if not math.isfinite(value):
                return f"{floor.task} {floor.metric} is {value}, not a finite number"
        return None

    def _look(self) -> None:
        bounds = {floor.name: floor.bound(self._baselines) for floor in self._floors}
        known = {name: bound for name, bound in bounds.items() if bound is not None}
        self._bounds = known if len(known) == len(bounds) else None


def finished_baselines(records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
    """A study's finished baselines, by label: what a floor's limit is looked up in."""
    return {str(one.label): one for one in records if one.label and one.finished}
