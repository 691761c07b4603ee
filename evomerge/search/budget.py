"""When a search stops, what it has cost, and where it stands.

What a trial costs is counted in scored items: that is where the time goes, whatever a trial is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evomerge.search.records import TrialRecord, in_order

EXHAUSTED = 100
"""So many trials, one after the other, that were scored before mean that there are no others."""


@dataclass(frozen=True)
class Budget:
    """When to stop: as soon as one of these is spent.

    Args:
        trials: how many trials the study is to have in all, baselines, pruned and failed ones
            included; None is no limit.
        seconds: no trial is started after so many seconds of this run; None is no limit.
        items: no trial is started unless fewer items than this were scored by all the trials of the
            study, those that are running counted whole; None is no limit. The last one may go
            beyond it by less than the search items: a leg, which scores them several times, is
            not begun where it would go further, but for a study's first.
        patience: no trial is started once the searched ones have scored so many times the search
            items (full-trial equivalents) since the last gain, the last trial that was the best
            beyond noise (``standing.GAIN_Z``); None is no limit, and it is none by itself.

    Raises:
        ValueError: nothing is limited.
    """

    trials: int | None
    seconds: float | None = None
    items: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.trials is None and self.seconds is None and self.items is None:
            raise ValueError("a budget needs an end: trials, seconds or items")


@dataclass(frozen=True)
class Progress:
    """Where the search stands.

    Args:
        finished: trials that are finished, of all runs of the study.
        total: trials that are wanted; None is no limit.
        best: the best trial so far; None while none has succeeded.
        best_baseline: the best baseline so far.
        elapsed: seconds since this run began.
        remaining: estimated seconds to go; None while nothing is known.
        items: items scored by all the trials of the study.
        items_total: how many may be scored; None is no limit.
    """

    finished: int
    total: int | None
    best: TrialRecord | None
    best_baseline: TrialRecord | None
    elapsed: float
    remaining: float | None
    items: int = 0
    items_total: int | None = None


Observer = Callable[[TrialRecord | None, Progress], None]
"""Called with each finished trial, and with None now and then while workers are busy."""


def nobody(_record: TrialRecord | None, _progress: Progress) -> None:
    """The observer who does not look."""


class Tally:
    """What the finished trials of a study come to.

    Args:
        budget: when to stop.
        full: items of a trial that is scored on all of them. So much counts a trial that failed, as
            nobody knows how far it came, and one that was finished before costs were kept.
        records: the trials of earlier runs; those that are not finished are passed over.
    """

    def __init__(self, budget: Budget, full: int, records: Sequence[TrialRecord]) -> None:
        self._budget, self._full = budget, full
        self.finished = self.failed = self.items = self.copied = 0
        self.best: TrialRecord | None = None
        self.best_baseline: TrialRecord | None = None
        for record in in_order(records):
            if record.finished:
                self.count(record)
        self._before = self.finished, self.items
        self.begin()

    def begin(self) -> None:
        """The run begins now."""
        self._began = time.monotonic()

    @property
    def finished_here(self) -> int:
        """Trials that this run has finished."""
        return self.finished - self._before[0]

    def count(self, record: TrialRecord) -> None:
        """A trial is finished."""
        self.finished += 1
        self.items += cost(record, self._full)
        self.copied = 0 if record.twin is None else self.copied + 1
        self.failed += record.state == "failed"
        if record.state == "complete":
            self.best = _fitter(self.best, record)
            if record.kind == "baseline":
                self.best_baseline = _fitter(self.best_baseline, record)

    def review(self, records: Sequence[TrialRecord]) -> None:
        """Find the best again: what is known of the trials has changed."""
        complete = [record for record in records if record.state == "complete"]
        self.best = best_of(complete)
        self.best_baseline = best_of([one for one in complete if one.kind == "baseline"])

    def allows(self, begun: int, running: int, coming: int) -> bool:
        """Whether one more trial may be started.

        Args:
            begun: trials that are finished or running.
            running: items that the running ones will have scored.
            coming: items that it will score.
        """
        trials, seconds, items = self._budget.trials, self._budget.seconds, self._budget.items
        return (
            not self.exhausted
            and (trials is None or begun < trials)
            and (seconds is None or time.monotonic() - self._began < seconds)
            and (items is None or self.items + running + coming < items + self._full)
        )

    @property
    def exhausted(self) -> bool:
        """Whether the sampler draws nothing but recipes that were scored already."""
        return self.copied >= EXHAUSTED

    @property
    def left(self) -> float:
        """How many more trials the budget has for sure; infinite where time alone ends it."""
        trials, items = self._budget.trials, self._budget.items
        by_trials = math.inf if trials is None else trials - self.finished
        by_items = math.inf if items is None else math.ceil((items - self.items) / self._full)
        return max(0.0, min(by_trials, by_items))

    def progress(self) -> Progress:
        """Where the search stands now."""
        return Progress(
            finished=self.finished,
            total=self._budget.trials,
            best=self.best,
            best_baseline=self.best_baseline,
            elapsed=time.monotonic() - self._began,
            remaining=self._remaining(),
            items=self.items,
            items_total=self._budget.items,
        )

    def _remaining(self) -> float | None:
        if not self.finished_here:
            return None
        budget, elapsed = self._budget, time.monotonic() - self._began
        limits = [] if budget.seconds is None else [budget.seconds - elapsed]
        if budget.trials is not None:
            limits.append(elapsed / self.finished_here * (budget.trials - self.finished))
        scored = self.items - self._before[1]
        if budget.items is not None and scored:
            limits.append(elapsed / scored * (budget.items - self.items))
        return max(0.0, min(limits)) if limits else None


def cost(record: TrialRecord, full: int) -> int:
    """Items that a finished trial counts for; see :class:`Tally`."""
    return full if record.items is None or record.state == "failed" else record.items


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The fittest of those that break their floors the least; the first of equals."""
    fit = [record for record in records if record.fitness is not None]
    return max(fit, key=lambda one: (-one.violation, one.fitness, -one.number), default=None)


def _fitter(best: TrialRecord | None, record: TrialRecord) -> TrialRecord | None:
    return best_of([record] if best is None else [best, record])
