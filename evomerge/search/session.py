"""A whole search: open the study, start the workers, run the loop, judge the winner."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from evomerge.errors import Fault, StudyError
from evomerge.evaluation import Comparison, Scores, compare, fitness
from evomerge.evaluation.incumbent import Incumbent
from evomerge.recipe import read_recipes
from evomerge.references import ModelReference
from evomerge.search.baselines import decode
from evomerge.search.budget import Budget, Observer, Progress
from evomerge.search.loop import Keeper, SearchLoop, nothing_kept
from evomerge.search.ownership import Ownership
from evomerge.search.pool import Pool
from evomerge.search.preparation import Preparation
from evomerge.search.records import TrialRecord
from evomerge.search.sampler import make_sampler
from evomerge.search.storage import StudyStore, distributions
from evomerge.search.verdict import Verdict, finalists, judge, score_held_out
from evomerge.space.searching import sampler_settings

VERDICT = "verdict"


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
    def prunes(self) -> bool:
        return bool(self.preparation.plan.rungs)

    def incumbent(self, trial: int, fitness: float, scores: Scores) -> Incumbent | None:
        prepared = self.preparation
        requests, plain_sum = prepared.search_items.requests, prepared.space.plain_sum
        return Incumbent.of(trial, fitness, scores, requests, plain_sum=plain_sum)

    def fitness(self, scores: Scores) -> float:
        prepared = self.preparation
        return fitness(scores, prepared.search_items.requests, plain_sum=prepared.space.plain_sum)


@dataclass(frozen=True)
class SearchOutcome:
    """How a run of a study ended.

    Args:
        progress: where the study stands.
        stopped: ``budget``; ``patience``: nothing was gained for so long; ``exhausted``: the
            sampler drew only recipes that were scored before; or ``asked`` (Ctrl-C).
        verdict: the held-out comparison; None if there is none, for the reason in ``no_verdict``.
    """

    progress: Progress
    stopped: str
    verdict: Verdict | None = None
    no_verdict: str | None = None


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

        loop = SearchLoop(
            self._store, Problem(self._prepared), self._budget, observe, stop, self._keep
        )
        progress = loop.progress()
        if loop.has_work:
            pool = self.pool()
            with until_interrupted(stop):
                progress = loop.run(pool)
        if stop.is_set():
            return SearchOutcome(progress, "asked")
        verdict, reason = self._judge()
        return SearchOutcome(progress, loop.ended, verdict, reason)

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

    def _judge(self) -> tuple[Verdict | None, str | None]:
        items = self._prepared.holdout_items
        pair = finalists(self._store.records())
        if pair is None:
            return None, "there is no searched trial and no baseline that both succeeded"
        if items is None:
            return None, "there are no held-out items"
        known = self._store.facts.get(VERDICT)
        if known and [known["winner"]["number"], known["baseline"]["number"]] == [
            record.number for record in pair
        ]:
            return Verdict.from_json(known), None
        outcomes = score_held_out(self.pool(), (self._located(pair[0]), self._located(pair[1])))
        winner, baseline = (outcomes[record.number] for record in pair)
        failed = winner.failure or baseline.failure
        if winner.scores is None or baseline.scores is None:
            return None, f"the held-out items could not be scored: {failed}"
        verdict = judge(
            (pair[0], winner.scores),
            (pair[1], baseline.scores),
            self._compare,
            self._held_out_fitness,
            len(items),
        )
        self._store.remember(**{VERDICT: verdict.to_json()})
        return verdict, None

    def _located(self, record: TrialRecord) -> TrialRecord:
        """The trial, its recipe naming the models where they lie now, if they have moved."""
        held = {checkpoint.reference for checkpoint in self._prepared.checkpoints}
        recipes = read_recipes(record.recipe or "")
        made = {ModelReference(str(recipe.name)) for recipe in recipes[:-1]}
        if {model for recipe in recipes for model in recipe.models_named} <= held | made:
            return record
        planned = {baseline.label: baseline.recipe for baseline in self._prepared.baselines}
        recipe = planned.get(record.label or "")
        return replace(record, recipe=recipe or Problem(self._prepared).recipe(record.genome))

    def _compare(self, a: Scores, b: Scores) -> Comparison:
        items = self._prepared.holdout_items
        if items is None:
            raise StudyError([Fault("holdout", "there are no held-out items")])
        return compare(a, b, items.requests, plain_sum=self._prepared.space.plain_sum)

    def _held_out_fitness(self, scores: Scores) -> float:
        items = self._prepared.holdout_items
        if items is None:
            raise StudyError([Fault("holdout", "there are no held-out items")])
        return fitness(scores, items.requests, plain_sum=self._prepared.space.plain_sum)


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
