"""Candidates that cannot win, twins, and searches that gain nothing more."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from evomerge.errors import StudyError, TrialError
from evomerge.evaluation import Scores, TaskRequest, TaskScore, Value
from evomerge.evaluation.incumbent import Incumbent
from evomerge.report import StudyReport
from evomerge.search.budget import EXHAUSTED, Budget
from evomerge.search.itemscores import ItemScores, item_log, log_key
from evomerge.search.loop import SearchLoop
from evomerge.search.pool import Job, LocalPool, Outcome
from evomerge.search.records import PlannedBaseline, TrialRecord
from evomerge.search.shares import rung_shares
from evomerge.search.storage import StudyStore
from tests.search.conftest import ACC, AnalyticProblem, make_store

ITEMS = 120
_ORDER = np.random.default_rng(0).permutation(ITEMS)
_ITEM = np.random.default_rng(1).normal(size=(ITEMS, 4))
_HARD = np.random.default_rng(2).normal(size=ITEMS)


class ItemProblem(AnalyticProblem):
    """Its candidates answer items, rightly or wrongly; recipes may lack detail."""

    items = ITEMS
    prunes = True

    def __init__(self, digits: int = 9) -> None:
        super().__init__()
        self._digits = digits

    def recipe(self, genome: Mapping[str, float]) -> str:
        return yaml.safe_dump({name: round(one, self._digits) for name, one in genome.items()})

    def incumbent(self, trial: int, fitness: float, scores: Scores) -> Incumbent | None:
        return Incumbent.of(trial, fitness, scores, [TaskRequest("landscape", ACC)])


class ItemEvaluator:
    """An item is answered rightly where its own hardness and taste allow it; two rungs."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        whole = scores_of(answers(job.recipe))
        for share in (0.25, 0.5):
            seen = np.sort(_ORDER[: int(share * ITEMS)])
            ahead = job.incumbent and job.incumbent.difference(whole, {"landscape": seen})
            if job.incumbent and ahead and job.incumbent.stops(ahead):
                estimate = job.incumbent.fitness + ahead.value
                some = scores_of(answers(job.recipe)[seen], seen)
                return Outcome(job, some, {}, items=len(seen), estimate=estimate)
        return Outcome(job, whole, {}, items=ITEMS)


def answers(recipe: str) -> np.ndarray:
    point = np.array(list(yaml.safe_load(recipe).values())) - 0.7
    return np.asarray(1.0 + _ITEM @ point - 4 * (point @ point) > _HARD, dtype=float)


def scores_of(right: np.ndarray, documents: Sequence[int] = range(ITEMS)) -> Scores:
    value = Value(float(right.mean()), 0.01)
    return Scores({"landscape": TaskScore({ACC: value}, {ACC: right}, tuple(map(int, documents)))})


class QueueingPool(LocalPool):
    """One worker, behind whose job another may wait, as with Ray."""

    @property
    def busy(self) -> int:
        return min(super().busy, 1)

    @property
    def queues(self) -> bool:  # type: ignore[override]
        return super().busy < 2


def run(
    store: StudyStore,
    budget: Budget,
    problem: AnalyticProblem | None = None,
    *,
    pool: type[LocalPool] = LocalPool,
    stop_after: int | None = None,
    **options: Any,
) -> SearchLoop:
    stop, seen = threading.Event(), 0

    def observe(record: TrialRecord | None, _progress: object) -> None:
        nonlocal seen
        seen += record is not None
        if stop_after is not None and seen >= stop_after:
            stop.set()

    loop = SearchLoop(store, problem or ItemProblem(), budget, observe, stop, **options)
    loop.run(pool(ItemEvaluator))
    return loop


def opened(path: Path, sampler: str = "cmaes") -> StudyStore:
    return make_store(path, ItemProblem(), sampler)


def test_pruned_trials_are_kept_as_such_and_the_sampler_is_told_their_estimates(
    tmp_path: Path,
) -> None:
    store = opened(tmp_path / "study.db")
    loop = run(store, Budget(40))
    records = opened(tmp_path / "study.db").records()
    pruned = [record for record in records if record.state == "pruned"]
    assert 5 < len(pruned) < 37
    for record in pruned:
        rival = records[record.rival or 0]
        assert record.fitness is None, "an estimate is no score"
        assert record.estimate is not None
        assert rival.fitness is not None
        assert record.estimate < rival.fitness
        assert record.items in (ITEMS // 4, ITEMS // 2)
        # The incumbent when it began: the best of what was finished before it.
        best = max(r.fitness or 0.0 for r in records[: record.number])
        assert rival.fitness == best
        seen = np.sort(_ORDER[: record.items])
        paired = answers(record.recipe or "")[seen] - answers(rival.recipe or "")[seen]
        assert record.estimate == pytest.approx(rival.fitness + paired.mean(), abs=1e-6)
    assert loop.progress().items == sum(record.items or 0 for record in records) < 40 * ITEMS
    best = max(records, key=lambda r: (r.fitness or 0.0, -r.number))
    assert loop.progress().best == replace(best, told=None)
    kept = optuna.load_study(study_name="test", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [t.state.name for t in kept] == [r.state.upper() for r in records], "as the dashboard"
    assert all(kept[r.number].value is None for r in pruned)


def test_a_baseline_is_stopped_only_where_it_is_almost_certainly_behind(tmp_path: Path) -> None:
    """Each may be the best start, and what has to be beaten."""
    problem = ItemProblem()
    points = {"best": 0.7, **{f"at {n}": 0.7 - n / 40 for n in range(1, 24)}}
    planned = [
        PlannedBaseline(label, problem.recipe(problem.point(at)), problem.point(at))
        for label, at in points.items()
    ]
    store = opened(tmp_path / "study.db")
    store.plan(planned)
    run(store, Budget(len(planned)))
    records = store.records()
    stopped = [one for one in records if one.state == "pruned"]
    assert 3 < len(stopped) < len(records) - 6, "neither the near nor the far ones are missing"
    for one in stopped:
        seen = np.sort(_ORDER[: one.items])
        rival = records[one.rival or 0]
        gains = answers(one.recipe or "")[seen] - answers(rival.recipe or "")[seen]
        error = gains.std() * math.sqrt((1 - len(seen) / ITEMS) / len(seen))
        assert gains.mean() < -2.9 * error, "by three standard errors"
        assert one.estimate is not None


def test_a_baseline_has_the_guess_of_another_with_its_recipe(tmp_path: Path) -> None:
    store, far = opened(tmp_path / "study.db"), ItemProblem().point(0.05)
    recipe = ItemProblem().recipe(far)
    store.plan(PlannedBaseline(label, recipe, far) for label in ("far", "as far"))
    run(store, Budget(5))
    other, twin = opened(tmp_path / "study.db").records()[3:]
    assert (other.state, twin.state, twin.twin) == ("pruned", "pruned", other.number)
    assert (twin.items, twin.estimate, twin.rival) == (0, other.estimate, other.rival)
    with pytest.raises(StudyError, match=f"scored on {other.items} items only"):
        StudyReport(store).compare(twin.number, 0)


@pytest.mark.parametrize("sampler", ["cmaes", "random"])
def test_each_baseline_is_compared_with_the_best_till_then(tmp_path: Path, sampler: str) -> None:
    """Also where draws hang on nothing, so that trials could wait for their worker."""
    found = []
    for name, parts in (("whole", [12]), ("parts", [3, 12])):
        for budget in parts:
            store = opened(tmp_path / f"{name}.db", sampler)
            store.plan(
                PlannedBaseline(f"at {n}", ItemProblem().recipe(point), point)
                for n in range(6)
                for point in [ItemProblem().point(0.05 + n / 10)]
            )
            run(store, Budget(budget), pool=QueueingPool)
        found.append(essence(store))
    assert found[0] == found[1]
    assert found[0][0]["rival"] is None
    assert None not in [one["rival"] for one in found[0][1:]]


class Spy(optuna.samplers.RandomSampler):
    """Looks at what a sampler may see."""

    def sample_relative(self, study: Any, trial: Any, space: Any) -> dict[str, Any]:
        self.seen = study.get_trials(deepcopy=False)
        return super().sample_relative(study, trial, space)


def test_any_sampler_sees_the_estimate_as_the_value(tmp_path: Path) -> None:
    run(opened(tmp_path / "study.db"), Budget(20))
    store, spy = opened(tmp_path / "study.db"), Spy(seed=0)
    store.use(spy)
    run(store, Budget(25))
    pruned = [record for record in store.records()[:24] if record.state == "pruned"]
    assert {record.number < 20 for record in pruned} == {True, False}, "of both runs"
    for record in pruned:
        assert spy.seen[record.number].state.name == "COMPLETE"
        assert spy.seen[record.number].value == record.estimate


def essence(store: StudyStore) -> list[dict[str, Any]]:
    """Everything that is remembered of the trials, but where the time went."""
    return [{**vars(record), "seconds": None} for record in store.records()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[type[LocalPool], list[dict[str, Any]]]:
    """Searches that were never interrupted."""
    found = {}
    for pool in (LocalPool, QueueingPool):
        store = opened(tmp_path_factory.mktemp("whole") / "study.db")
        run(store, Budget(22), pool=pool)
        assert any(record.state == "pruned" for record in store.records())
        found[pool] = essence(store)
    return found


@pytest.mark.parametrize(
    ("pool", "cut"),
    [(LocalPool, 2), (LocalPool, 9), (LocalPool, 16), (QueueingPool, 4), (QueueingPool, 13)],
)
def test_an_interrupted_search_with_rungs_becomes_the_uninterrupted_one(
    tmp_path: Path, whole: dict[type[LocalPool], Any], cut: int, pool: type[LocalPool]
) -> None:
    run(opened(tmp_path / "cut.db"), Budget(22), pool=pool, stop_after=cut)
    again = opened(tmp_path / "cut.db")
    assert sum(record.finished for record in again.records()) == cut
    run(again, Budget(22), pool=pool)
    assert essence(again) == whole[pool]


def test_a_driver_that_is_killed_between_two_trials_goes_on_alike(
    tmp_path: Path, whole: dict[type[LocalPool], Any]
) -> None:
    """What was begun keeps the incumbent that it was begun against."""

    class Killed(Exception):
        pass

    class Dying(QueueingPool):
        left = 11

        def wait(self, timeout: float) -> list[Outcome]:
            Dying.left -= 1
            if Dying.left == 0:
                raise Killed
            return super().wait(timeout)

    with pytest.raises(Killed):
        run(opened(tmp_path / "cut.db"), Budget(22), pool=Dying)
    again = opened(tmp_path / "cut.db")
    assert any(record.state == "running" for record in again.records())
    run(again, Budget(22), pool=QueueingPool)
    assert essence(again) == whole[QueueingPool]


def test_pruned_trials_keep_the_item_scores_that_there_are(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    log = item_log(tmp_path / "items.scores", store)
    run(store, Budget(25), keep=log.append)
    log.close()
    kept = ItemScores(tmp_path / "items.scores", log_key(store) or "")
    records = store.records()
    assert {r.state for r in records} == {"complete", "pruned"}
    for record in records:
        task = kept[record.number].task("landscape")
        assert len(task.doc_ids) == record.items
        right = answers(record.recipe or "")[list(task.doc_ids)]
        np.testing.assert_array_equal(task.items[ACC], right)
    report = StudyReport(store)
    table = report.table().set_index("trial")
    for record in records:
        row = table.loc[record.number]
        assert row["state"] == record.state
        assert row["items"] == record.items
        assert (row["fitness"] == record.fitness) == (record.state == "complete")
        assert (row["estimate"] == record.estimate) == (record.state == "pruned")
    assert report.items == sum(record.items or 0 for record in records)
    one = next(record for record in records if record.state == "pruned")
    told = f"trial {one.number} was pruned: it was scored on {one.items} items"
    with pytest.raises(StudyError, match=told):
        report.compare(one.number, 0)


def test_a_recipe_is_scored_once(tmp_path: Path) -> None:
    """Genes that are 0 or 1: there are sixteen recipes."""
    store, evaluator = make_store(tmp_path / "study.db", ItemProblem(0)), ItemEvaluator()
    loop = SearchLoop(store, ItemProblem(0), Budget(40))
    loop.run(LocalPool(lambda: evaluator))
    records = store.records()
    twins = [record for record in records if record.twin is not None]
    assert len(twins) > 20
    assert len(evaluator.jobs) == len(records) - len(twins)
    assert len({job.recipe for job in evaluator.jobs}) == len(evaluator.jobs)
    for record in twins:
        first = records[record.twin or 0]
        assert first.twin is None
        assert (record.recipe, record.state, record.items) == (first.recipe, first.state, 0)
        assert (record.fitness, record.estimate) == (first.fitness, first.estimate)
        assert record.scores == first.scores
    assert loop.progress().items == sum(record.items or 0 for record in records)
    again = make_store(tmp_path / "study.db", ItemProblem(0))
    SearchLoop(again, ItemProblem(0), Budget(50)).run(LocalPool(lambda: evaluator))
    assert len({job.recipe for job in evaluator.jobs}) == len(evaluator.jobs), "nor by a later run"


class Wide(LocalPool):
    """Four workers; the last one that was given a job is done first."""

    size = 4

    def __init__(self, evaluator: Any) -> None:
        super().__init__(lambda: evaluator)

    def wait(self, timeout: float) -> list[Outcome]:
        self._waiting.reverse()
        outcomes = super().wait(timeout)
        self._waiting.reverse()
        return outcomes


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_waits_for_its_running_twin(tmp_path: Path, fails: bool) -> None:
    """All searched candidates are the same; where the first fails, the next is tried."""

    class Same(ItemProblem):
        def recipe(self, genome: Mapping[str, float]) -> str:
            known = len(set(genome.values())) == 1
            return super().recipe(genome if known else self.point(0.6))

    class Failing(ItemEvaluator):
        def run(self, job: Job) -> Outcome:
            outcome = super().run(job)
            if fails and "0.6" in job.recipe and sum("0.6" in j.recipe for j in self.jobs) == 1:
                raise TrialError("out of memory")
            return outcome

    evaluator, problem = Failing(), Same()
    store = make_store(tmp_path / "study.db", problem)
    SearchLoop(store, problem, Budget(12)).run(Wide(evaluator))
    searched = store.records()[3:]
    assert [record.state for record in searched].count("failed") == fails
    assert sum("0.6" in job.recipe for job in evaluator.jobs) == 1 + fails
    assert sum(record.twin is not None for record in searched) == 9 - 1 - fails
    assert len({record.fitness for record in searched if record.fitness is not None}) == 1


def test_a_search_ends_once_only_known_recipes_are_drawn(tmp_path: Path) -> None:
    class Single(ItemProblem):
        def recipe(self, genome: Mapping[str, float]) -> str:
            return super().recipe(self.point(0.6))

    store = make_store(tmp_path / "study.db", Single())
    loop = run(store, Budget(None, items=10**9), Single())
    assert loop.ended == "exhausted"
    assert sum(record.twin is not None for record in store.records()) == EXHAUSTED
    assert not SearchLoop(store, Single(), Budget(None, items=10**9)).has_work


def test_patience_ends_a_search_that_gains_nothing_and_more_of_it_goes_on(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    loop = run(store, Budget(400, patience=4))
    records = store.records()
    assert loop.ended == "patience"
    last = max((r for r in records if r.gain), key=lambda r: r.told or 0)
    since = [r for r in records if (r.told or 0) > (last.told or 0) and r.kind == "search"]
    spent = sum(record.items or 0 for record in since)
    assert 4 * ITEMS <= spent < 5 * ITEMS
    again = opened(tmp_path / "study.db")
    assert not SearchLoop(again, ItemProblem(), Budget(400, patience=4)).has_work
    run(again, Budget(400, patience=5))
    more = opened(tmp_path / "more.db")
    run(more, Budget(400, patience=5))
    assert len(again.records()) > len(records)
    assert essence(again) == essence(more)
    assert run(opened(tmp_path / "short.db"), Budget(8, patience=4)).ended == "budget"


def test_a_gain_is_beyond_the_noise_of_its_items(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    run(store, Budget(60))
    gains = [record for record in store.records() if record.gain]
    assert gains[0].number == 0, "the first that succeeds is one"
    assert len(gains) > 2
    for before, after in pairwise(gains):
        paired = answers(after.recipe or "") - answers(before.recipe or "")
        assert paired.mean() > 1.6 * paired.std() / np.sqrt(ITEMS)


class Sized:
    """As many items as there are said to be, of means alone."""

    requests: tuple[Any, ...] = ()
    tasks: tuple[Any, ...] = ()
    groups: tuple[Any, ...] = ()

    def __init__(self, items: int) -> None:
        self._items = items

    def __len__(self) -> int:
        return self._items


@pytest.mark.parametrize(
    ("wanted", "items", "shares"),
    [
        ("auto", 800, (0.125, 0.25, 0.5)),
        ("auto", 160, (0.125, 0.25, 0.5)),
        ("auto", 100, (0.25, 0.5)),
        ("auto", 40, (0.5,)),
        ("auto", 39, ()),
        ("none", 800, ()),
        ((0.1, 0.3), 30, (0.1, 0.3)),
    ],
)
def test_shares_follow_the_number_of_items(
    wanted: str | tuple[float, ...], items: int, shares: tuple[float, ...]
) -> None:
    assert rung_shares(wanted, Sized(items)) == (shares, "")  # type: ignore[arg-type]
