"""Whether a recipe keeps its floors on items that the search never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from evomerge.evaluation import Scores, TaskComparison, TaskRequest, compare
from evomerge.search.floors import Floor, finished_baselines
from evomerge.search.records import TrialRecord

_Z = 1.96


@dataclass(frozen=True)
class FloorCheck:
    """One floor on the held-out items.

    Args:
        floor: its name.
        value: the recipe's score there.
        limit: what it is to keep to, there: of a relative floor the model's score on the same
            items, and the offset.
        margin: by how much it is kept; below 0 it is broken.
        low, high: the margin's 95 % interval, of a relative floor paired item by item; None where
            the metric has none.
    """

    floor: str
    value: float
    limit: float
    margin: float
    low: float | None
    high: float | None

    @property
    def broken(self) -> bool:
        """Whether it is clearly not kept."""
        return self.margin < 0 if self.high is None else self.high < 0

    @property
    def sure(self) -> bool:
        """Whether it clearly is kept."""
        return self.low is not None and self.low >= 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def models_of(floors: Sequence[Floor], records: Sequence[TrialRecord]) -> dict[str, TrialRecord]:
    """Floor → the baseline that its limit is relative to, as the search items tell; without those
    whose limit is absolute, or not known."""
    done = finished_baselines(records)
    found = {f.name: f.reference(done) for f in floors if f.limit.of and not f.waits(done)}
    return {name: record for name, record in found.items() if record is not None}


def checks(
    floors: Sequence[Floor],
    choice: TrialRecord,
    models: Mapping[str, TrialRecord],
    found: Mapping[Any, Scores],
    requests: Sequence[TaskRequest],
) -> tuple[FloorCheck, ...]:
    """How a recipe stands to its floors; nothing of those whose limit is not known.

    Args:
        floors: of the space.
        choice: the trial whose recipe it is.
        models: as :func:`models_of` finds them.
        found: trial number → scores on the held-out items; the choice and the models among them.
        requests: the held-out item set's own.
    """
    scores = found[choice.number]
    return tuple(
        _check(
            floor,
            scores,
            found[models[floor.name].number] if floor.limit.of else None,
            requests[floor.place],
        )
        for floor in floors
        if floor.limit.of is None or floor.name in models
    )


def raised(
    paired: TaskComparison, scores: Scores, request: TaskRequest
) -> tuple[float, float | None, float | None]:
    """How much higher the second model's metric is, with its interval, whichever way is better."""
    if scores.value(request.task, request.metric).higher_is_better:
        return paired.difference, paired.low, paired.high
    return flipped((paired.difference, paired.low, paired.high))


def flipped(
    difference: tuple[float, float | None, float | None],
) -> tuple[float, float | None, float | None]:
    """The same the other way round."""
    value, low, high = difference
    return -value, None if high is None else -high, None if low is None else -low


def _check(floor: Floor, scores: Scores, model: Scores | None, request: TaskRequest) -> FloorCheck:
    found = scores.value(request.task, request.metric)
    if model is None:
        above, error = found.value - floor.limit.offset, found.stderr
        ends = (None, None) if error is None else (above - _Z * error, above + _Z * error)
        margin = (above, *ends)
    else:
        paired = compare(model, scores, [replace(request, weight=1.0)]).tasks[0]
        above, low, high = raised(paired, scores, request)
        offset = floor.limit.offset
        ends = (None, None) if low is None or high is None else (low - offset, high - offset)
        margin = (above - offset, *ends)
    limit = found.value - margin[0]
    return FloorCheck(floor.name, found.value, limit, *(flipped(margin) if floor.upper else margin))
