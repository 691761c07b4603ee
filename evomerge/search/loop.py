"""The ask → dispatch → tell loop.

It knows neither models nor Ray: a :class:`Problem` turns genomes into recipes and scores into
fitness, a pool runs jobs, a store remembers. No worker waits for another: whenever one is free, the
sampler is asked for the next trial with all the results that are in. Where results that are still
to come do not change what is drawn, it is asked before, and the trial waits for its worker. Nor
does a worker wait for the storage: its result and the next trial are written together while it is
at work again, and nobody is told of a result before.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.search.budget import Budget, Observer, Progress, Tally, nobody
from evomerge.search.climbing import SLOPE_COST
from evomerge.search.floors import Constraints
from evomerge.search.pool import Job, Outcome, Pool
from evomerge.search.problem import Keeper, Problem, SearchError, nothing_kept, summary
from evomerge.search.records import TrialRecord
from evomerge.search.seeded import BASELINE
from evomerge.search.standing import Standing
from evomerge.search.storage import StudyStore
from evomerge.search.twins import Twins

HOPELESS = 8
"""So many trials from the start, all failed, mean that the set-up is wrong, not the candidates."""

_PATIENCE = 0.5  # seconds between two looks at the clock while workers are busy


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
        records = store.records()
        self._interrupted = any(record.state == "running" for record in records)
        self._searched = any(record.finished and _is_candidate(record) for record in records)
        self._tally, self._budget = Tally(budget, problem.items, records), budget
        self._standing, self._twins = Standing(problem, records), Twins(records)
        self._constraints = Constraints(problem.floors, records)

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
        return self._tally.left > 0 and (self._interrupted or self._may_start())

    @property
    def ended(self) -> str:
        """Why nothing more is begun: ``asked``, ``exhausted``, ``patience`` or ``budget``."""
        if self._stop.is_set():
            return "asked"
        if self._tally.exhausted:
            return "exhausted"
        return "patience" if self._tired and self._tally.left > 0 else "budget"

    def run(self, pool: Pool) -> Progress:
        """Search with these workers until the budget is spent.

        Raises:
            SearchError: the first trials all failed.
            StudyError: the storage cannot be written; what was told before is kept.
        """
        self._tally.begin()
        self._check_floors()
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
            taken = [record for outcome in outcomes for record in self._take(outcome)]
            while not self._stop.is_set() and self._may_start() and self._takes_one(pool):
                taken += self._start(pool)
        for record in taken:
            self._observer(record, self.progress())
        self._check_floors()
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
        if self._tired:
            return False
        running = sum(self._cost(one.leg is not None) for one in self._running.values())
        begun = self._tally.finished + len(self._running)
        # What comes is looked for only where it matters.
        if not self._tally.allows(begun, running, self._cost(leg=False)):
            return False
        first = not self._searched and not any(map(_is_candidate, self._running.values()))
        fits = first or self._tally.allows(begun, running, self._cost(leg=True))
        return fits or not self._store.climbs()

    def _cost(self, leg: bool) -> int:
        """Items that a trial will score, a leg's slopes included."""
        return self._problem.items * (1 + SLOPE_COST * leg)

    def _takes_one(self, pool: Pool) -> bool:
        """Whether a worker is free, or a trial may wait for one without a change to the study."""
        if self._twins.waiting or pool.busy < pool.size:
            return pool.busy + self._twins.waiting < pool.size
        # Near the end it would wait for its worker while others have nothing left to do.
        enough = self._tally.left - len(self._running) >= pool.size
        return pool.queues and enough and (bool(self._again) or self._store.foresees())

    def _start(self, pool: Pool) -> list[TrialRecord]:
        """Begin the next trial; what is finished by it: one that needs no worker is at once."""
        asked = not self._again
        record = self._store.ask(self._problem.distributions) if asked else self._again.popleft()
        recipe = record.recipe or self._problem.recipe(record.genome)
        self._running[record.number] = record
        twin = self._twins.scored(recipe)
        if twin is not None and _serves(twin, record):
            return [self._copy(record, twin)]
        if not self._twins.waits(recipe, record):
            if asked and self._may_be_stopped(record):
                record = self._running[record.number] = replace(record, rival=self._standing.trial)
                self._store.note(record.number, rival=record.rival)
            # There are few baselines, and each may be the best start, or what has to be beaten.
            incumbent = self._standing.of(record.rival, lenient=record.kind == BASELINE)
            pool.submit(Job(record.number, recipe, leg=record.leg, incumbent=incumbent))
        return []

    def _may_be_stopped(self, record: TrialRecord) -> bool:
        """Where a leg of the climb begins never is, nor a baseline where floors may hang on it."""
        kept = record.kind == BASELINE and bool(self._problem.floors)
        return self._problem.prunes and record.leg is None and not kept

    def _take(self, outcome: Outcome) -> list[TrialRecord]:
        """Tell the study of a result; what is finished by it: the trial, and its twins."""
        record = self._running[int(outcome.job.key)]
        seconds = {name: round(value, 4) for name, value in outcome.seconds.items()}
        facts: dict[str, Any] = {"recipe": outcome.job.recipe, "seconds": seconds}
        fitness, reason = self._judge(outcome)
        if reason is not None:
            facts["failure"] = reason
        else:
            assert outcome.scores is not None  # for the type checker: _judge has seen them
            facts |= {"scores": summary(outcome.scores), "items": outcome.items}
            facts |= self._constrained(facts["scores"])
            if goals := self._problem.goals(outcome.scores):
                facts["values"] = goals
            if outcome.walk is not None:
                facts["walk"] = dict(outcome.walk)
            if outcome.no_slope is not None:
                facts["no_slope"] = outcome.no_slope
            self._keep(record.number, outcome.scores)
            if outcome.estimate is not None:
                facts["estimate"] = fitness
            else:
                error = self._problem.error(outcome.scores)
                facts |= {"error": error} if error is not None else {}
                judged = replace(record, fitness=fitness, constraints=facts.get("constraints", {}))
                facts |= self._standing.facts(judged, outcome.scores)
        done = self._tell(record, fitness, facts)
        twins = self._twins.finished(done)
        self._again.extend(
            self._running.pop(twin.number) for twin in twins if not _serves(done, twin)
        )
        return [done, *(self._copy(twin, done) for twin in twins if _serves(done, twin))]

    def _copy(self, record: TrialRecord, twin: TrialRecord) -> TrialRecord:
        """A trial with the recipe of one that was scored has its result."""
        facts: dict[str, Any] = {"recipe": twin.recipe, "scores": twin.scores, "items": 0}
        facts |= {"twin": twin.number, **self._constrained(twin.scores)}
        if twin.values:
            facts["values"] = twin.values
        if twin.error is not None:
            facts["error"] = twin.error
        if twin.estimate is not None:
            facts |= {"estimate": twin.estimate, "rival": twin.rival}
        fitness = twin.fitness if twin.estimate is None else twin.estimate
        return self._tell(record, math.nan if fitness is None else fitness, facts)

    def _tell(self, record: TrialRecord, fitness: float, facts: dict[str, Any]) -> TrialRecord:
        """The trial as it is finished, told to the study."""
        if "failure" in facts:
            self._store.fail(record.number, facts["failure"], **facts)
            state = "failed"
        else:
            self._store.tell(record.number, fitness, **facts)
            state = "pruned" if "estimate" in facts else "complete"
        reached = fitness if state == "complete" else None
        done = replace(record, state=state, fitness=reached, **facts)
        del self._running[record.number]
        self._searched |= _is_candidate(done)
        self._tally.count(done)
        self._standing.count(done)
        if self._constraints.count(done):
            self._constrain()
        return done

    def _constrained(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial's scores lack of the floors, as a fact; none while they are unknown."""
        constraints = self._constraints.of(scores)
        return {"constraints": constraints} if constraints else {}

    def _constrain(self) -> None:
        """The floors' limits are known: so is what the trials before lack of them."""
        before = [one for one in self._store.records() if one.scores and one.finished]
        self._store.constrain({one.number: self._constraints.of(one.scores) for one in before})
        records = self._store.records()
        self._tally.review(records)
        self._standing = Standing(self._problem, records)

    def _judge(self, outcome: Outcome) -> tuple[float, str | None]:
        """The fitness, or the reason why there is none."""
        if outcome.scores is None:
            return math.nan, outcome.failure or "failed without a reason"
        fitness = outcome.estimate
        if fitness is None:
            fitness = self._problem.fitness(outcome.scores)
        if not math.isfinite(fitness):
            return math.nan, f"the fitness is {fitness}, not a finite number"
        return fitness, self._constraints.unfit(summary(outcome.scores))

    def _check_floors(self) -> None:
        reason = self._constraints.hopeless
        if reason is not None:
            raise SearchError(f"{reason}; mend it and begin anew (--fresh), or write a number")

    @property
    def _tired(self) -> bool:
        """Whether the searched trials have gained nothing for as long as the budget bears it."""
        patience = self._budget.patience
        return patience is not None and self._standing.since >= patience * self._problem.items

    @property
    def _hopeless(self) -> bool:
        tally = self._tally
        tried = tally.finished_here > 0  # going on with a study, at least one more is
        return tried and tally.failed >= HOPELESS and tally.failed == tally.finished


def _is_candidate(record: TrialRecord) -> bool:
    """Whether it is a searched trial that has not failed: a study is to have one."""
    return record.kind != BASELINE and record.state != "failed"


def _serves(result: TrialRecord, trial: TrialRecord) -> bool:
    """Whether a trial may have the result of another with the same recipe.

    What failed may have failed for want of memory; a leg of the climb is its own. (Baselines begin
    before all others, so that none has what a searched trial was stopped with.)
    """
    return trial.leg is None and result.state in ("complete", "pruned")
