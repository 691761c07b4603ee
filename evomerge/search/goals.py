"""Several goals: what they are called, and the trials that no other beats in all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.search.records import TrialRecord

if TYPE_CHECKING:
    from evomerge.space import SearchSpace

ONE_GOAL = ("fitness",)


def goal_names(space: SearchSpace) -> tuple[str, ...]:
    """The names of what a trial is told with: a goal's is its task, and the metric if need be."""
    if not space.several_goals:
        return ONE_GOAL
    tasks = [task for task in space.tasks if task.weight]
    times = Counter(task.task for task in tasks)
    return tuple(t.task if times[t.task] == 1 else f"{t.task} {t.metric}" for t in tasks)


def front(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The non-dominated of the complete trials, baselines included, by falling first value.

    A trial dominates another that is better than it in no value, and worse in one. Of trials with
    equal values the earliest stands for all. Where there are floors, only those that keep them, or
    while none does those that break them the least, are looked at.
    """
    complete = [record for record in records if record.state == "complete"]
    least = min((record.violation for record in complete), default=0.0)
    complete = [record for record in complete if record.violation <= least]
    # Sorted so, no trial is dominated by, or stands for, one that comes after it.
    complete.sort(key=lambda record: ([-value for value in record.values], record.number))
    kept: list[TrialRecord] = []
    for record in complete:
        if not any(covers(other.values, record.values) for other in kept):
            kept.append(record)
    return kept


def spread(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """At most ``count`` points of a front, as far apart as can be, in the front's order.

    The fittest is first chosen, then whichever is farthest from all that are (each value as a share
    of its range over the front): the ends come early.
    """
    if len(records) <= count or not count:
        return list(records[:count])
    points = np.array([record.values for record in records])
    points = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-12)
    fitness = [-np.inf if record.fitness is None else record.fitness for record in records]
    chosen = [int(np.argmax(fitness))]
    while len(chosen) < count:
        gaps = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(1)
        chosen.append(int(np.argmax(gaps)))
    return [records[index] for index in sorted(chosen)]


def covers(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether values are nowhere worse than others."""
    return all(a >= b for a, b in zip(one, other, strict=True))
