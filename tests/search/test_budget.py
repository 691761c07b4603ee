"""When a search stops: trials, seconds and scored items, over all the runs of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.search.budget import Budget, Progress
from evomerge.search.loop import SearchLoop
from evomerge.search.pool import Job, LocalPool
from evomerge.search.records import TrialRecord
from evomerge.search.storage import StudyStore
from tests.search.conftest import AnalyticEvaluator, AnalyticProblem, failing, make_store
from tests.search.landscapes import sphere


def searched(store: StudyStore, budget: Budget, when: object = None) -> list[Progress]:
    """Where the search stood after each trial; each scores the problem's 10 items."""
    seen: list[Progress] = []

    def observe(record: TrialRecord | None, progress: Progress) -> None:
        if record is not None:
            seen.append(progress)

    evaluator = AnalyticEvaluator(failing(sphere(), when) if callable(when) else sphere())
    SearchLoop(store, AnalyticProblem(), budget, observe).run(LocalPool(lambda: evaluator))
    return seen


@pytest.mark.parametrize(
    ("items", "trials"), [(1, 1), (10, 1), (11, 2), (95, 10), (100, 10), (101, 11)]
)
def test_no_trial_is_started_once_the_items_are_spent(
    store: StudyStore, items: int, trials: int
) -> None:
    seen = searched(store, Budget(None, items=items))
    assert [progress.items for progress in seen] == [10 * (n + 1) for n in range(trials)]
    assert all(progress.items_total == items and progress.total is None for progress in seen)
    assert [record.items for record in store.records()][:trials] == [10] * trials


def test_items_are_those_of_all_runs(tmp_path: Path, problem: AnalyticProblem) -> None:
    path = tmp_path / "study.db"
    searched(make_store(path, problem), Budget(4))
    assert len(searched(make_store(path, problem), Budget(None, items=70))) == 3
    again = make_store(path, problem)
    assert not SearchLoop(again, problem, Budget(None, items=70)).has_work
    assert SearchLoop(again, problem, Budget(None, items=71)).has_work
    assert not SearchLoop(again, problem, Budget(7, items=71)).has_work, "trials are spent"


def test_the_first_limit_that_is_reached_ends_it(store: StudyStore) -> None:
    assert len(searched(store, Budget(20, items=50))) == 5
    assert len(searched(store, Budget(8, items=1000))) == 3
    assert searched(store, Budget(20, seconds=0.0, items=1000)) == []


def test_failed_trials_are_counted_whole_so_that_failures_end_too(store: StudyStore) -> None:
    seen = searched(store, Budget(None, items=100), lambda call: call >= 4)
    assert len(seen) == 10
    assert seen[-1].items == 100
    assert [record.items for record in store.records()[4:10]] == [None] * 6


def test_trials_of_a_study_without_costs_are_counted_whole(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    store = make_store(tmp_path / "old.db", problem)
    for _ in range(3):
        store.tell(store.ask(problem.distributions).number, 0.5, recipe="", scores={}, seconds={})
    again = make_store(tmp_path / "old.db", problem)
    assert SearchLoop(again, problem, Budget(None, items=50)).progress().items == 30


def test_running_trials_are_counted_as_if_they_were_scored(store: StudyStore) -> None:
    """Ten workers at once must not start ten trials for the last five's items."""

    class Wide(LocalPool):
        size = 10
        most = 0

        def submit(self, job: Job) -> None:
            super().submit(job)
            self.most = max(self.most, self.busy)

    pool = Wide(AnalyticEvaluator)
    progress = SearchLoop(store, AnalyticProblem(), Budget(None, items=50)).run(pool)
    assert (progress.items, progress.finished, pool.most) == (50, 5, 5)


def test_time_to_go_follows_the_items(store: StudyStore) -> None:
    half = searched(store, Budget(None, items=100))[4]
    assert half.remaining == pytest.approx(half.elapsed, rel=0.2)


def test_a_budget_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="trials, seconds or items"):
        Budget(None)
