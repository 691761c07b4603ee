"""A whole search: open the study, start the workers, run the loop, judge the winner."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from evomerge.evaluation import Scores, fitness, fitness_error, goals
from evomerge.evaluation.incumbent import Incumbent
from evomerge.search.baselines import decode
from evomerge.search.budget import Budget, Observer, Progress
from evomerge.search.finals import Finals
from evomerge.search.floors import Floor
from evomerge.search.loop import SearchLoop
from evomerge.search.ownership import Ownership
from evomerge.search.pool import Pool
from evomerge.search.preparation import Preparation
from evomerge.search.problem import Keeper, nothing_kept
from evomerge.search.records import TrialRecord
from evomerge.search.sampler import make_sampler
from evomerge.search.spending import items_raced, spending
from evomerge.search.storage import StudyStore, distributions
from evomerge.search.verdict import Verdict
from evomerge.space.searching import sampler_settings


@dataclass(frozen=True)
class Problem:
    """A prepared space as the loop sees it."""

    preparation: Preparation

    @property
    def items(self) -> int:
        return len(self.preparation.search_items)

    @property
    def distributions(self) -> Mapping[str, Any]:
        return distributions(self.preparation.genes)

    def recipe(self, genome: Mapping[str, float]) -> str:
        return decode(self.preparation.space, genome, self.preparation.num_layers)

    @property
    def floors(self) -> tuple[Floor, ...]:
        return self.preparation.floors

    def goals(self, scores: Scores) -> tuple[float, ...]:
        prepared = self.preparation
        if not prepared.space.several_goals:
            return ()
        return goals(scores, prepared.search_items.requests, plain_sum=prepared.space.plain_sum)

    @property
    def prunes(self) -> bool:
        return bool(self.preparation.plan.rungs)

    def incumbent(self, trial: int, fitness: float, scores: Scores) -> Incumbent | None:
        prepared = self.preparation
        requests, plain_sum = prepared.search_items.requests, prepared.space.plain_sum
        return Incumbent.of(trial, fitness, scores, requests, plain_sum=plain_sum)

    def fitness(self, scores: Scores) -> float:
        prepared = self.preparation
        return fitness(scores, prepared.search_items.requests, plain_sum=prepared.space.plain_sum)

    def error(self, scores: Scores) -> float | None:
        prepared = self.preparation
        requests, plain_sum = prepared.search_items.requests, prepared.space.plain_sum
        return fitness_error(scores, requests, plain_sum=plain_sum)


@dataclass(frozen=True)
class SearchOutcome:
    """How a run of a study ended.

    Args:
        progress: where the study stands.
        stopped: ``budget``; ``patience``: nothing was gained for so long; ``exhausted``: the
            sampler drew only recipes that were scored before; or ``asked`` (Ctrl-C).
        choice: what is shipped, a searched trial, the end of the search or a baseline; before the
            end, the best so far.
        verdict: the held-out comparison; None if there is none, for the reason in ``no_verdict``.
        notes: what else the user should know of the finals.
    """

    progress: Progress
    stopped: str
    choice: TrialRecord | None = None
    verdict: Verdict | None = None
    no_verdict: str | None = None
    notes: tuple[str, ...] = ()


class Session:
    """One run of a study.

    Args:
        prepared: the space, checked.
        store: its study.
        make_pool: starts the workers; not called when there is nothing left to do.
        budget: when to stop.
        observer: is told of each finished trial.
        keep: keeps each trial's item scores.
    """

    def __init__(
        self,
        prepared: Preparation,
        store: StudyStore,
        make_pool: Callable[[], Pool],
        budget: Budget,
        observer: Observer,
        keep: Keeper = nothing_kept,
    ) -> None:
        self._keep = keep
        self._prepared, self._store = prepared, store
        self._make_pool, self._budget, self._observer = make_pool, budget, observer
        self._pool: Pool | None = None

    def run(self) -> SearchOutcome:
        """Search, then judge. Stops at the first Ctrl-C or SIGTERM with everything told kept.

        Raises:
            SearchError: nothing works.
            StudyError: the storage fails.
            WorkerError: no worker can be had.
        """
        owner = Ownership(self._store)
        try:
            self._store.use(self._sampler())
            self._store.plan(self._prepared.baselines)
            return self._run(owner)
        finally:
            if self._pool is not None:
                self._pool.close()
            owner.release()

    def _run(self, owner: Ownership) -> SearchOutcome:
        stop = threading.Event()

        def observe(record: TrialRecord | None, progress: Progress) -> None:
            owner.beat()
            self._observer(record, progress)

        problem, budget = Problem(self._prepared), self._budget
        plan = spending(self._prepared, budget.items, raced=items_raced(self._store.facts))
        budget = replace(budget, items=plan.search)  # what the race will cost is left for it
        loop = SearchLoop(self._store, problem, budget, observe, stop, self._keep)
        progress = loop.progress()
        if loop.has_work:
            pool = self.pool()
            with until_interrupted(stop):
                progress = loop.run(pool)
        if stop.is_set():
            return SearchOutcome(progress, "asked", progress.best)

        def waiting() -> None:
            observe(None, progress)

        limit = self._budget.items
        left = None if limit is None else limit - progress.items
        end = Finals(self._prepared, problem, self._store, self.pool, waiting, left).run()
        return SearchOutcome(
            progress, loop.ended, end.choice, end.verdict, end.no_verdict, end.notes
        )

    def pool(self) -> Pool:
        """The workers, started when they are first needed."""
        if self._pool is None:
            self._pool = self._make_pool()
        return self._pool

    def _sampler(self) -> Any:
        space, genes = self._prepared.space, self._prepared.genes
        return make_sampler(
            space.search.sampler,
            distributions(genes),
            {g.name: (g.low + g.high) / 2 if g.initial is None else g.initial for g in genes},
            seed=space.search.seed,
            sigma=space.search.sigma,
            population=space.search.population,
            settings=sampler_settings(space.search),
        )


@contextmanager
def until_interrupted(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` at the first Ctrl-C or SIGTERM; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
