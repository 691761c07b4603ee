"""The loop: what is tried, in which order, and what survives failures and restarts."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evomerge.errors import StudyError
from evomerge.search.budget import Budget, Progress
from evomerge.search.loop import HOPELESS, SearchLoop
from evomerge.search.pool import Job, LocalPool
from evomerge.search.problem import SearchError
from evomerge.search.records import PlannedBaseline, TrialRecord
from evomerge.search.storage import StudyStore, create_store
from tests.search.conftest import AnalyticEvaluator, AnalyticProblem, failing, make_store
from tests.search.landscapes import sphere


def run(
    store: StudyStore,
    problem: AnalyticProblem,
    trials: int,
    evaluator: AnalyticEvaluator | None = None,
    stop_after: int | None = None,
) -> Progress:
    """Search with one local worker; ``stop_after`` finished trials, as if by Ctrl-C."""
    stop = threading.Event()
    seen = 0

    def observe(record: TrialRecord | None, _progress: Progress) -> None:
        nonlocal seen
        seen += record is not None
        if stop_after is not None and seen >= stop_after:
            stop.set()

    loop = SearchLoop(store, problem, Budget(trials), observe, stop)
    return loop.run(LocalPool(lambda: evaluator or AnalyticEvaluator()))


def essence(store: StudyStore) -> list[tuple[object, ...]]:
    """What two equal studies have in common: everything but times."""
    return [
        (r.number, r.kind, r.state, r.fitness, dict(r.genome), r.label, r.recipe)
        for r in store.records()
    ]


def test_baselines_come_first_and_keep_their_names(
    store: StudyStore, problem: AnalyticProblem
) -> None:
    run(store, problem, trials=6)
    records = store.records()
    assert [r.label for r in records[:3]] == ["base", "uniform", "outside"]
    assert [r.kind for r in records] == ["baseline"] * 3 + ["search"] * 3
    assert records[2].genome == {}, "a baseline outside the genome has none"
    assert records[1].fitness == pytest.approx(sphere()(problem.point(0.4)))


def test_the_standard_error_is_kept_and_a_twin_has_its_twins(
    store: StudyStore, problem: AnalyticProblem
) -> None:
    store.plan([*problem.baselines(), PlannedBaseline("again", *twin_of(problem, 0.4))])
    run(store, problem, trials=4)
    again = create_store(store.name, store.url).records()
    assert [one.error for one in again] == [0.01] * 4
    assert again[3].twin == 1


def twin_of(problem: AnalyticProblem, value: float) -> tuple[str, dict[str, float]]:
    point = problem.point(value)
    return problem.recipe(point), point


def test_search_improves_on_the_best_baseline(store: StudyStore, problem: AnalyticProblem) -> None:
    progress = run(store, problem, trials=120)
    assert progress.best is not None
    assert progress.best_baseline is not None
    assert progress.best_baseline.label == "uniform"
    assert progress.best.fitness > 0.995
    assert progress.finished == 120


@pytest.mark.parametrize("sampler", ["cmaes", "tpe", "random"])
@pytest.mark.parametrize("cut", [1, 4, 17])
def test_interrupted_study_becomes_the_uninterrupted_one(
    tmp_path: Path, problem: AnalyticProblem, cut: int, sampler: str
) -> None:
    whole = make_store(tmp_path / "whole.db", problem, sampler)
    run(whole, problem, trials=25)
    run(make_store(tmp_path / "cut.db", problem, sampler), problem, trials=25, stop_after=cut)
    again = make_store(tmp_path / "cut.db", problem, sampler)
    assert len([r for r in again.records() if r.finished]) == cut
    run(again, problem, trials=25)
    assert essence(again) == essence(whole)


class QueueingPool(LocalPool):
    """One worker, behind whose job another may wait."""

    def __init__(self) -> None:
        super().__init__(AnalyticEvaluator)
        self.waited = 0

    @property
    def busy(self) -> int:
        return min(super().busy, 1)

    @property
    def queues(self) -> bool:  # type: ignore[override]
        return super().busy < 2

    def submit(self, job: Job) -> None:
        self.waited += self.busy
        super().submit(job)


@pytest.mark.parametrize(("sampler", "waits"), [("cmaes", 28), ("random", 33), ("tpe", 0)])
def test_a_trial_that_waits_for_its_worker_is_the_one_that_it_would_have_been(
    tmp_path: Path, problem: AnalyticProblem, sampler: str, waits: int
) -> None:
    """Of 33 searched ones: with CMA-ES not the first of a generation of 8. Baselines do not."""
    whole = make_store(tmp_path / "whole.db", problem, sampler)
    run(whole, problem, trials=36)
    store, pool = make_store(tmp_path / "ahead.db", problem, sampler), QueueingPool()
    SearchLoop(store, problem, Budget(36)).run(pool)
    assert essence(store) == essence(whole)
    assert pool.waited == waits


def test_trial_that_was_running_when_the_driver_died_is_run_again(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    store = make_store(tmp_path / "study.db", problem)
    run(store, problem, trials=5)
    begun = store.ask(problem.distributions)  # and now the driver is killed
    again = make_store(tmp_path / "study.db", problem)
    run(again, problem, trials=6)
    record = again.records()[begun.number]
    assert record.state == "complete"
    assert record.genome == begun.genome
    assert record.fitness == pytest.approx(sphere()(begun.genome))


def test_finished_study_runs_nothing(store: StudyStore, problem: AnalyticProblem) -> None:
    run(store, problem, trials=5)
    assert not SearchLoop(store, problem, Budget(5)).has_work
    assert SearchLoop(store, problem, Budget(6)).has_work


def test_failed_trial_is_recorded_with_its_reason_and_the_search_goes_on(
    store: StudyStore, problem: AnalyticProblem
) -> None:
    evaluator = AnalyticEvaluator(failing(sphere(), lambda call: call % 3 == 1))
    progress = run(store, problem, trials=30, evaluator=evaluator)
    failed = [r for r in store.records() if r.state == "failed"]
    assert len(failed) == 10
    assert {r.failure for r in failed} == {"tensor model.norm.weight: not finite"}
    assert all(r.recipe for r in failed), "what failed can be looked at"
    assert progress.finished == 30


def test_fitness_that_is_not_a_number_fails_the_trial(
    store: StudyStore, problem: AnalyticProblem
) -> None:
    values = iter([0.5, float("nan"), 0.6, float("inf"), 0.7])
    run(store, problem, trials=5, evaluator=AnalyticEvaluator(lambda _genome: next(values)))
    states = [(r.state, r.failure) for r in store.records()]
    assert states[1] == ("failed", "the fitness is nan, not a finite number")
    assert states[3] == ("failed", "the fitness is inf, not a finite number")
    assert [state for state, _ in states].count("complete") == 3


def test_search_is_given_up_when_nothing_ever_works(
    store: StudyStore, problem: AnalyticProblem
) -> None:
    evaluator = AnalyticEvaluator(failing(sphere(), lambda call: True))
    with pytest.raises(SearchError, match=r"all of the first 8 trials failed.*not finite"):
        run(store, problem, trials=100, evaluator=evaluator)
    assert len(store.records()) == HOPELESS


def test_time_budget_starts_no_further_trial(store: StudyStore, problem: AnalyticProblem) -> None:
    loop = SearchLoop(store, problem, Budget(100, seconds=0.0))
    progress = loop.run(LocalPool(AnalyticEvaluator))
    assert progress.finished == 0


@pytest.fixture
def full_disk() -> Iterator[Callable[[Path], None]]:
    """Lets no file of this process grow beyond a file's present size and four of its pages."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 16384, before[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_stops_the_search_and_loses_no_finished_trial(
    tmp_path: Path, problem: AnalyticProblem, full_disk: Callable[[Path], None]
) -> None:
    path = tmp_path / "study.db"
    whole = make_store(tmp_path / "whole.db", problem)
    run(whole, problem, trials=40)
    store = make_store(path, problem)
    run(store, problem, trials=8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told: list[TrialRecord] = []

    def observe(record: TrialRecord | None, _progress: Progress) -> None:
        if record is not None:
            told.append(record)

    full_disk(path)
    with pytest.raises(StudyError, match=r"study.db: cannot be written .*(full|I/O error)"):
        SearchLoop(store, problem, Budget(40), observe).run(LocalPool(AnalyticEvaluator))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = make_store(path, problem)
    kept = {record.number for record in again.records() if record.finished}
    assert 8 < len(kept) < 40, "the file had room for a few"
    assert kept == set(range(8)) | {record.number for record in told}
    run(again, problem, trials=40)
    assert essence(again) == essence(whole)
