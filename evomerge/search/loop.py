"""The ask → dispatch → tell loop.

It knows neither models nor Ray: a :class:`Problem` turns genomes into recipes and scores into
fitness, a pool runs jobs, a store remembers. No worker waits for another: whenever one is free, the
sampler is asked for the next trial with all the results that are in.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.errors import EvomergeError
from evomerge.evaluation import Scores
from evomerge.search.pool import Job, Outcome, Pool
from evomerge.search.records import TrialRecord
from evomerge.search.storage import StudyStore

HOPELESS = 8
"""So many trials from the start, all failed, mean that the set-up is wrong, not the candidates."""

_PATIENCE = 0.5  # seconds between two looks at the clock while workers are busy


class SearchError(EvomergeError):
    """The search cannot go on."""


class Problem(Protocol):
    """What is searched."""

    @property
    def distributions(self) -> Mapping[str, Any]:
        """The genes' distributions, by name."""
        ...

    def recipe(self, genome: Mapping[str, float]) -> str:
        """The recipe (YAML) that a genome stands for."""
        ...

    def fitness(self, scores: Scores) -> float:
        """The number to maximise."""
        ...


@dataclass(frozen=True)
class Budget:
    """When to stop.

    Args:
        trials: how many trials the study is to have in all, baselines and failed ones included.
        seconds: no trial is started after so many seconds; None is no limit.
    """

    trials: int
    seconds: float | None = None


@dataclass(frozen=True)
class Progress:
    """Where the search stands.

    Args:
        finished: trials that are finished, of all runs of the study.
        total: trials that are wanted.
        best: the best trial so far; None while none has succeeded.
        best_baseline: the best baseline so far.
        elapsed: seconds since this run began.
        remaining: estimated seconds to go; None while nothing is known.
    """

    finished: int
    total: int
    best: TrialRecord | None
    best_baseline: TrialRecord | None
    elapsed: float
    remaining: float | None


Observer = Callable[[TrialRecord | None, Progress], None]
"""Called with each finished trial, and with None now and then while workers are busy."""


def nobody(_record: TrialRecord | None, _progress: Progress) -> None:
    """The observer who does not look."""


Keeper = Callable[[int, Scores], None]
"""Called with each successful trial's number and scores before the study is told of it."""


def nothing_kept(_trial: int, _scores: Scores) -> None:
    """The keeper who keeps nothing."""


class SearchLoop:
    """One run of a study, up to its budget.

    Args:
        store: the study; what an earlier run had begun comes first, then its queued baselines.
        problem: what is searched.
        budget: when to stop.
        observer: is told of each finished trial.
        stop: once set, nothing is started or waited for; running trials stay as they are in the
            study, and the next run does them again.
        keep: keeps each trial's item scores.
    """

    def __init__(
        self,
        store: StudyStore,
        problem: Problem,
        budget: Budget,
        observer: Observer = nobody,
        stop: threading.Event | None = None,
        keep: Keeper = nothing_kept,
    ) -> None:
        self._store, self._problem, self._keep = store, problem, keep
        self._budget, self._observer = budget, observer
        self._stop = stop or threading.Event()
        self._running: dict[int, TrialRecord] = {}
        self._records = {record.number: record for record in store.records() if record.finished}
        self._began = time.monotonic()
        self._finished_here = 0

    @property
    def has_work(self) -> bool:
        """Whether the budget leaves anything to do."""
        return len(self._records) < self._budget.trials

    def run(self, pool: Pool) -> Progress:
        """Search with these workers until the budget is spent.

        Raises:
            SearchError: the first trials all failed.
            StudyError: the storage cannot be written; what was told before is kept.
        """
        self._began = time.monotonic()
        again = deque(self._store.interrupted(self._problem.distributions))
        while not self._stop.is_set():
            while pool.busy < pool.size and (again or self._may_start()):
                pool.submit(self._start(again.popleft() if again else None))
            if pool.busy == 0:
                break
            outcomes = pool.wait(_PATIENCE)
            for outcome in outcomes:
                self._finish(outcome)
            if not outcomes:
                self._observer(None, self.progress())
        return self.progress()

    def progress(self) -> Progress:
        """Where the search stands now."""
        complete = [r for r in self._records.values() if r.state == "complete"]
        elapsed = time.monotonic() - self._began
        return Progress(
            finished=len(self._records),
            total=self._budget.trials,
            best=best_of(complete),
            best_baseline=best_of([r for r in complete if r.kind == "baseline"]),
            elapsed=elapsed,
            remaining=self._remaining(elapsed),
        )

    def _may_start(self) -> bool:
        if len(self._records) + len(self._running) >= self._budget.trials:
            return False
        seconds = self._budget.seconds
        return seconds is None or time.monotonic() - self._began < seconds

    def _start(self, record: TrialRecord | None) -> Job:
        record = record or self._store.ask(self._problem.distributions)
        recipe = record.recipe or self._problem.recipe(record.genome)
        self._running[record.number] = record
        return Job(record.number, recipe)

    def _finish(self, outcome: Outcome) -> None:
        record = self._running.pop(int(outcome.job.key))
        seconds = {name: round(value, 4) for name, value in outcome.seconds.items()}
        facts: dict[str, Any] = {"recipe": outcome.job.recipe, "seconds": seconds}
        fitness, reason = self._judge(outcome)
        if reason is None:
            assert outcome.scores is not None  # for the type checker: _judge has seen them
            facts["scores"] = summary(outcome.scores)
            self._keep(record.number, outcome.scores)
            self._store.tell(record.number, fitness, **facts)
        else:
            self._store.fail(record.number, reason, **facts)
        done = TrialRecord(
            number=record.number,
            kind=record.kind,
            state="complete" if reason is None else "failed",
            fitness=fitness if reason is None else None,
            genome=record.genome,
            label=record.label,
            recipe=outcome.job.recipe,
            scores=facts.get("scores", {}),
            seconds=seconds,
            failure=reason,
        )
        self._records[done.number] = done
        self._finished_here += 1
        self._observer(done, self.progress())
        self._check_hope(outcome)

    def _judge(self, outcome: Outcome) -> tuple[float, str | None]:
        """The fitness, or the reason why there is none."""
        if outcome.scores is None:
            return math.nan, outcome.failure or "failed without a reason"
        fitness = self._problem.fitness(outcome.scores)
        if not math.isfinite(fitness):
            return math.nan, f"the fitness is {fitness}, not a finite number"
        return fitness, None

    def _check_hope(self, outcome: Outcome) -> None:
        failed = [record for record in self._records.values() if record.state == "failed"]
        if len(failed) < HOPELESS or len(failed) < len(self._records):
            return
        raise SearchError(
            f"all of the first {len(failed)} trials failed, so the search is given up. "
            f"The last reason: {outcome.failure or failed[-1].failure}\n{outcome.detail}".rstrip()
        )

    def _remaining(self, elapsed: float) -> float | None:
        if not self._finished_here:
            return None
        left = self._budget.trials - len(self._records)
        by_trials = elapsed / self._finished_here * max(left, 0)
        if self._budget.seconds is None:
            return by_trials
        return min(by_trials, max(self._budget.seconds - elapsed, 0.0))


def best_of(records: list[TrialRecord]) -> TrialRecord | None:
    """The fittest; the earlier one of two that are equally fit."""
    fit = [record for record in records if record.fitness is not None]
    return max(fit, key=lambda record: (record.fitness, -record.number), default=None)


def summary(scores: Scores) -> dict[str, dict[str, list[float | None]]]:
    """Task → metric → [value, standard error], as the study keeps it."""
    return {
        task: {str(metric): [value.value, value.stderr] for metric, value in score.metrics.items()}
        for task, score in scores.tasks.items()
    }
