"""Who is the best so far, item by item, and whether the search still gains anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.search.budget import cost
from evomerge.search.records import TrialRecord, in_order

if TYPE_CHECKING:
    from evomerge.evaluation import Scores
    from evomerge.evaluation.incumbent import Incumbent

GAIN_Z = 1.645
"""A new best is a gain when it is ahead of the last gain by so many standard errors."""


class Judged(Protocol):
    """What knows the scores' meaning."""

    @property
    def items(self) -> int:
        """How many items a trial is scored on."""
        ...

    def incumbent(self, trial: int, fitness: float, scores: Scores) -> Incumbent | None:
        """The trial, item by item; None where its fitness is no sum over items."""
        ...


class Standing:
    """The incumbent: the fittest trial so far, of those whose fitness is a sum over items.

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
        self._best = float("-inf")
        self._gain: int | None = None
        self._since = 0
        for record in in_order(records):
            if record.finished:
                self.count(record)

    @property
    def trial(self) -> int | None:
        """The incumbent's number; None while there is none."""
        return next(reversed(self._kept), None)

    @property
    def since(self) -> int:
        """Items that searched trials have scored since the last gain."""
        return self._since

    def of(self, trial: int | None) -> Incumbent | None:
        """A trial that is the incumbent, or was; None for another."""
        kept = None if trial is None else self._kept.get(trial)
        if trial is None or kept is None:
            return None
        if trial not in self._known:
            from evomerge.evaluation.incumbent import Incumbent

            # Jobs are compared with the present one, or just with the one before.
            self._known = {trial: Incumbent.from_json(trial, kept)}
        return self._known[trial]

    def facts(self, trial: int, fitness: float, scores: Scores) -> dict[str, Any]:
        """What is to be kept with a trial that was scored on all items, if it is the best now.

        Returns:
            ``incumbent``, and ``gain`` where it is better than the last gain beyond noise: by more
            than :data:`GAIN_Z` standard errors of their paired difference, or by anything where
            that is not known.
        """
        if not fitness > self._best:
            return {}
        incumbent = self._problem.incumbent(trial, fitness, scores)
        facts: dict[str, Any] = {} if incumbent is None else {"incumbent": incumbent.to_json()}
        last = self.of(self._gain)
        ahead = None if last is None else last.difference(scores)
        if ahead is None or ahead.value > GAIN_Z * ahead.noise:
            facts["gain"] = True
        return facts

    def count(self, record: TrialRecord) -> None:
        """A trial is finished."""
        if record.fitness is not None:
            self._best = max(self._best, record.fitness)
        if record.incumbent is not None:
            self._kept[record.number] = record.incumbent
        if record.kind != "baseline":
            self._since += cost(record, self._problem.items)
        if record.gain:
            self._gain, self._since = record.number, 0
