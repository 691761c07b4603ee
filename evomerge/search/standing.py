"""Who is the best so far, item by item, and whether the search still gains anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.search.budget import cost
from evomerge.search.records import TrialRecord, in_order

if TYPE_CHECKING:
    from evomerge.evaluation import Scores
    from evomerge.evaluation.incumbent import Incumbent
    from evomerge.search.floors import Floor

GAIN_Z = 1.645
"""A new best is a gain when it is ahead of the last gain by so many standard errors."""


class Judged(Protocol):
    """What knows the scores' meaning."""

    @property
    def items(self) -> int:
        """How many items a trial is scored on."""
        ...

    @property
    def floors(self) -> tuple[Floor, ...]:
        """What scores have to keep to."""
        ...

    def incumbent(self, trial: int, fitness: float, scores: Scores) -> Incumbent | None:
        """The trial, item by item; None where its fitness is no sum over items."""
        ...


class Standing:
    """The incumbent: the fittest trial so far, of those whose fitness is a sum over items and that
    surely keep the floors: what is behind one that breaks them may yet win.

    What it knows of a trial is kept with the trial in the study, so that a study that goes on knows
    it too, to the last bit.

    Args:
        problem: makes incumbents.
        records: the trials of earlier runs.
    """

    def __init__(self, problem: Judged, records: Sequence[TrialRecord]) -> None:
        self._problem = problem
        self._kept: dict[int, Mapping[str, Any]] = {}
        self._known: dict[int, Incumbent] = {}
        self._best = self._lead = (-math.inf, -math.inf)
        self._trial: int | None = None
        self._gain: int | None = None
        self._since = 0
        for record in in_order(records):
            if record.finished:
                self.count(record)

    @property
    def trial(self) -> int | None:
        """The incumbent's number; None while there is none."""
        return self._trial

    @property
    def since(self) -> int:
        """Items that searched trials have scored since the last gain."""
        return self._since

    def of(self, trial: int | None, *, lenient: bool = False) -> Incumbent | None:
        """A trial that is the incumbent, or was; None for another.

        Args:
            trial: its number.
            lenient: whether only what is almost certainly behind it is stopped.
        """
        kept = None if trial is None else self._kept.get(trial)
        if trial is None or kept is None:
            return None
        if trial not in self._known:
            from evomerge.evaluation.incumbent import Incumbent

            # Jobs are compared with the present one, or just with the one before.
            self._known = {trial: Incumbent.from_json(trial, kept)}
        known = self._known[trial]
        return known.leniently() if lenient else known

    def facts(self, record: TrialRecord, scores: Scores) -> dict[str, Any]:
        """What is to be kept with a trial that was scored on all items, if it is the best now.

        Args:
            record: the trial, with its fitness, and its constraints where the floors are known.
            scores: on all items.

        Returns:
            ``incumbent``, and ``gain`` where it is better than the last gain beyond noise: by more
            than :data:`GAIN_Z` standard errors of their paired difference, or by anything where
            that is not known. While the floors are not, any may turn out to be the incumbent.
        """
        waiting = self._waits(record)
        if not waiting and not _order(record) > self._best:
            return {}
        keeps = record.violation == 0 and record.fitness is not None
        incumbent = self._incumbent(record, scores) if keeps else None
        facts: dict[str, Any] = {} if incumbent is None else {"incumbent": incumbent.to_json()}
        if waiting:
            return facts
        last = self.of(self._gain)
        ahead = None if last is None else last.difference(scores)
        if ahead is None or ahead.value > GAIN_Z * ahead.noise:
            facts["gain"] = True
        return facts

    def count(self, record: TrialRecord) -> None:
        """A trial is finished."""
        if record.fitness is not None:
            self._best = max(self._best, _order(record))
        if record.incumbent is not None:
            self._kept[record.number] = record.incumbent
            may = record.violation == 0 and not self._waits(record)
            if may and _order(record) > self._lead:
                self._trial, self._lead = record.number, _order(record)
        if record.kind != "baseline":
            self._since += cost(record, self._problem.items)
        if record.gain:
            self._gain, self._since = record.number, 0

    def _waits(self, record: TrialRecord) -> bool:
        """Whether nobody knows yet if it keeps the floors."""
        return bool(self._problem.floors) and not record.constraints

    def _incumbent(self, record: TrialRecord, scores: Scores) -> Incumbent | None:
        assert record.fitness is not None  # for the type checker: it was scored
        return self._problem.incumbent(record.number, record.fitness, scores)


def _order(record: TrialRecord) -> tuple[float, float]:
    """Sorts by what is lacking of the floors, then by fitness; the best is the greatest."""
    return -record.violation, -math.inf if record.fitness is None else record.fitness
