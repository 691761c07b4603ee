"""Several goals: the trials that no other beats in all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.search.records import TrialRecord


def front(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The non-dominated of the complete trials, baselines included, by falling first value.

    A trial dominates another that is better than it in no value, and worse in one. Of trials with
    equal values the earliest stands for all.
    """
    complete = [record for record in records if record.state == "complete"]
    # Sorted so, no trial is dominated by, or stands for, one that comes after it.
    complete.sort(key=lambda record: ([-value for value in record.values], record.number))
    kept: list[TrialRecord] = []
    for record in complete:
        if not any(_covers(other, record) for other in kept):
            kept.append(record)
    return kept


def spread(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """At most ``count`` points of a front, as far apart as can be, in the front's order.

    The fittest is first chosen, then whichever is farthest from all that are (each value as a share
    of its range over the front): the ends come early.
    """
    if len(records) <= count:
        return list(records)
    points = np.array([record.values for record in records])
    points = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-12)
    fitness = [-np.inf if record.fitness is None else record.fitness for record in records]
    chosen = [int(np.argmax(fitness))]
    while len(chosen) < count:
        gaps = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(1)
        chosen.append(int(np.argmax(gaps)))
    return [records[index] for index in sorted(chosen)]


def _covers(one: TrialRecord, other: TrialRecord) -> bool:
    return all(a >= b for a, b in zip(one.values, other.values, strict=True))
