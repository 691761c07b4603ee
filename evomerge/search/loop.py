"""The ask → dispatch → tell loop.

It knows neither models nor Ray: a :class:`Problem` turns genomes into recipes and scores into
fitness, a pool runs jobs, a store remembers. No worker waits for another: whenever one is free, the
sampler is asked for the next trial with all the results that are in. Where results that are still
to come change nothing, it is asked before, and the trial waits for its worker. Nor does a worker
wait for the storage: its result and the next trial are written together while it is at work again,
and nobody is told of a result before.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.errors import EvomergeError
from evomerge.search.budget import Budget, Observer, Progress, Tally, nobody
from evomerge.search.pool import Job, Outcome, Pool
from evomerge.search.records import TrialRecord
from evomerge.search.storage import StudyStore

if TYPE_CHECKING:
    from evomerge.evaluation import Scores

HOPELESS = 8
"""So many trials from the start, all failed, mean that the set-up is wrong, not the candidates."""

_PATIENCE = 0.5  # seconds between two looks at the clock while workers are busy


class SearchError(EvomergeError):
    """The search cannot go on."""


class Problem(Protocol):
    """What is searched."""

    @property
    def items(self) -> int:
        """How many items a trial is scored on."""
        ...

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


Keeper = Callable[[int, "Scores"], None]
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
        self._observer = observer
        self._stop = stop or threading.Event()
        self._running: dict[int, TrialRecord] = {}
        self._again: deque[TrialRecord] = deque()
        self._tally = Tally(budget, problem.items, store.records())

    @property
    def has_work(self) -> bool:
        """Whether the budget leaves anything to do."""
        return self._tally.left > 0

    def run(self, pool: Pool) -> Progress:
        """Search with these workers until the budget is spent.

        Raises:
            SearchError: the first trials all failed.
            StudyError: the storage cannot be written; what was told before is kept.
        """
        self._tally.begin()
        self._again.extend(self._store.interrupted(self._problem.distributions))
        outcomes: list[Outcome] = []
        while True:
            self._go_on(pool, outcomes)
            if self._stop.is_set() or pool.busy == 0:
                return self.progress()
            outcomes = pool.wait(_PATIENCE)
            if not outcomes:
                self._observer(None, self.progress())

    def progress(self) -> Progress:
        """Where the search stands now."""
        return self._tally.progress()

    def _go_on(self, pool: Pool, outcomes: Sequence[Outcome]) -> None:
        """Take results, give the free workers their next trials, write both, tell."""
        with self._store.batch():
            taken = [self._take(outcome) for outcome in outcomes]
            while not self._stop.is_set() and self._may_start() and self._takes_one(pool):
                pool.submit(self._start())
        for record in taken:
            self._observer(record, self.progress())
        if taken and self._hopeless:
            raise SearchError(
                f"all of the first {self._tally.failed} trials failed, so the search is given up. "
                f"The last reason: {taken[-1].failure}\n{outcomes[-1].detail}".rstrip()
            )

    def _may_start(self) -> bool:
        if self._hopeless:
            return False
        if self._again:
            return True
        running = len(self._running)
        return self._tally.allows(self._tally.finished + running, running)

    def _takes_one(self, pool: Pool) -> bool:
        """Whether a worker is free, or a trial may wait for one without a change to the study."""
        if pool.busy < pool.size:
            return True
        # Near the end it would wait for its worker while others have nothing left to do.
        enough = self._tally.left - len(self._running) >= pool.size
        return pool.queues and enough and (bool(self._again) or self._store.foresees())

    def _start(self) -> Job:
        if self._again:
            record = self._again.popleft()
        else:
            record = self._store.ask(self._problem.distributions)
        recipe = record.recipe or self._problem.recipe(record.genome)
        self._running[record.number] = record
        if record.asks_slope:
            return Job(record.number, recipe, slope=True, genome=record.genome)
        return Job(record.number, recipe)

    def _take(self, outcome: Outcome) -> TrialRecord:
        record = self._running.pop(int(outcome.job.key))
        seconds = {name: round(value, 4) for name, value in outcome.seconds.items()}
        fitness, reason = self._judge(outcome)
        facts: dict[str, Any] = {"recipe": outcome.job.recipe, "seconds": seconds}
        if reason is None:
            assert outcome.scores is not None  # for the type checker: _judge has seen them
            facts |= {"scores": summary(outcome.scores), "items": outcome.items}
            if outcome.slope is not None:
                facts |= {"slope": dict(outcome.slope), "smooth": outcome.smooth}
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
            items=facts.get("items"),
            asks_slope=record.asks_slope,
            slope=facts.get("slope"),
            smooth=facts.get("smooth"),
        )
        self._tally.count(done)
        return done

    def _judge(self, outcome: Outcome) -> tuple[float, str | None]:
        """The fitness, or the reason why there is none."""
        if outcome.scores is None:
            return math.nan, outcome.failure or "failed without a reason"
        fitness = self._problem.fitness(outcome.scores)
        if not math.isfinite(fitness):
            return math.nan, f"the fitness is {fitness}, not a finite number"
        return fitness, None

    @property
    def _hopeless(self) -> bool:
        tally = self._tally
        tried = tally.finished_here > 0  # going on with a study, at least one more is
        return tried and tally.failed >= HOPELESS and tally.failed == tally.finished


def summary(scores: Scores) -> dict[str, dict[str, list[float | None]]]:
    """Task → metric → [value, standard error], as the study keeps it."""
    return {
        task: {str(metric): [value.value, value.stderr] for metric, value in score.metrics.items()}
        for task, score in scores.tasks.items()
    }
