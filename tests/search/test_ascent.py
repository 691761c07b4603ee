"""The ascent along slopes: how fast, how it ends, what it does without slopes, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from evomerge.search.ascent import ASTRAY, SHORTEST, STEP, Visit, heading
from evomerge.search.budget import Budget
from evomerge.search.floors import Floor
from evomerge.search.loop import SearchLoop
from evomerge.search.pool import Job, LocalPool, Outcome
from evomerge.search.records import TrialRecord
from evomerge.search.sampler import make_sampler
from evomerge.search.storage import StudyStore
from evomerge.space.limits import Limit
from tests.search.conftest import AnalyticEvaluator, AnalyticProblem, failing, make_store
from tests.search.landscapes import Objective, run_generations, sphere

WIDTHS = np.array([1.0, 0.1, 3.0, 0.3])


def ridge(genome: Mapping[str, float]) -> float:
    """Genes of unlike effect; the optimum is at 0.7 in all of them."""
    return 1 - float((WIDTHS * (np.array([genome[n] for n in sorted(genome)]) - 0.7) ** 2).sum())


class Sloping(AnalyticEvaluator):
    """Also gives the slope where it is asked for."""

    def __init__(self, objective: Objective, *, slopes: bool = True) -> None:
        super().__init__(objective)
        self._slopes = slopes

    def run(self, job: Job) -> Outcome:
        outcome = replace(super().run(job), items=1)
        if not (job.slope and self._slopes):
            return outcome
        assert job.genome == yaml.safe_load(job.recipe)
        point = np.array([job.genome[name] for name in sorted(job.genome)])
        slope = dict(zip(sorted(job.genome), (-2 * WIDTHS * (point - 0.7)).tolist(), strict=True))
        return replace(outcome, items=4, slope=slope, smooth=ridge(job.genome))


def searched(
    path: Path, problem: AnalyticProblem, evaluator: AnalyticEvaluator, trials: int
) -> list[TrialRecord]:
    store = make_store(path, problem, "ascent")
    SearchLoop(store, problem, Budget(trials)).run(LocalPool(lambda: evaluator))
    return store.records()


def best(records: list[TrialRecord]) -> float:
    return max(record.fitness for record in records if record.fitness is not None)


def test_it_begins_at_the_best_baseline_and_reaches_the_top(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    records = searched(tmp_path / "a.db", problem, Sloping(ridge), 3 + 15)
    assert records[3].genome == problem.point(0.4), "the best baseline in the genome"
    assert best(records) > 1 - 2e-3
    plain = make_store(tmp_path / "b.db", problem)
    SearchLoop(plain, problem, Budget(3 + 50)).run(LocalPool(lambda: AnalyticEvaluator(ridge)))
    assert best(records) > best(plain.records()), "CMA-ES has three times as many points"


def test_slopes_are_kept_with_their_trials(tmp_path: Path, problem: AnalyticProblem) -> None:
    searched(tmp_path / "a.db", problem, Sloping(ridge), 8)
    records = make_store(tmp_path / "a.db", problem, "ascent").records()
    assert [record.asks_slope for record in records] == [False] * 3 + [True] * 5
    assert [record.items for record in records] == [1] * 3 + [4] * 5
    last = records[-1]
    assert last.slope is not None
    expected = -2 * WIDTHS * (np.array([last.genome[name] for name in sorted(last.genome)]) - 0.7)
    assert [last.slope[name] for name in sorted(last.slope)] == expected.tolist()
    assert last.smooth == ridge(last.genome)


def test_when_scores_no_longer_rise_cma_es_goes_on_nearby(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    records = searched(tmp_path / "a.db", problem, Sloping(ridge), 80)
    asked = [record.number for record in records if record.asks_slope]
    assert asked == list(range(3, 3 + len(asked)))
    assert 8 < len(asked) < 60
    top = np.array(list(max(records, key=lambda one: one.fitness or -9.0).genome.values()))
    for record in records[asked[-1] + 1 :]:
        away = np.array(list(record.genome.values())) - top
        assert float(np.abs(away).max()) < 0.3


def test_a_resumed_study_is_the_uninterrupted_one(tmp_path: Path, problem: AnalyticProblem) -> None:
    """Broken off early, in the ascent, and after it."""
    whole = searched(tmp_path / "whole.db", problem, Sloping(ridge), 45)
    for trials in (2, 9, 43, 45):
        parts = searched(tmp_path / "parts.db", problem, Sloping(ridge), trials)
    assert not whole[-1].asks_slope
    assert [record.genome for record in parts] == [record.genome for record in whole]
    assert [record.slope for record in parts] == [record.slope for record in whole]


def test_without_slopes_it_is_cma_es(tmp_path: Path, problem: AnalyticProblem) -> None:
    """The first trial asks in vain; from then on both samplers draw the same from the study."""
    store = make_store(tmp_path / "a.db", problem, "ascent")
    pool = LocalPool(lambda: Sloping(sphere(), slopes=False))
    SearchLoop(store, problem, Budget(30)).run(pool)
    assert [record.number for record in store.records() if record.asks_slope] == [3]
    drawn = store.ask(problem.distributions).genome
    other = make_store(tmp_path / "a.db", problem)
    assert other.records()[30].genome == drawn
    before = make_store(tmp_path / "b.db", problem, "ascent")
    SearchLoop(before, problem, Budget(30)).run(pool)
    start = problem.point(0.5)
    plain = make_sampler("cmaes", problem.distributions, start, seed=3, sigma=0.15)
    before.use(plain)
    assert before.ask(problem.distributions).genome == drawn


def test_failures_are_passed_by(tmp_path: Path, problem: AnalyticProblem) -> None:
    """A point that failed is not tried again, not even the first."""
    objective = failing(ridge, lambda call: call in (3, 4, 7, 8, 9))
    records = searched(tmp_path / "a.db", problem, Sloping(objective), 30)
    failed = [record.number for record in records if record.state == "failed"]
    assert failed == [3, 4, 7, 8, 9]
    points = {tuple(record.genome.values()) for record in records[3:]}
    assert len(points) == len(records[3:])
    assert best(records) > 1 - 5e-3


def test_workers_try_steps_of_several_lengths(tmp_path: Path, problem: AnalyticProblem) -> None:
    store = make_store(tmp_path / "a.db", problem, "ascent")
    SearchLoop(store, problem, Budget(3)).run(LocalPool(lambda: Sloping(ridge)))
    worker, seen = Sloping(ridge), set()

    def ask() -> tuple[int, Mapping[str, float]]:
        record = store.ask(problem.distributions)
        seen.add(tuple(record.genome.values()))
        assert all(0 <= value <= 1 for value in record.genome.values())
        return record.number, record.genome

    run_generations(ask, _teller(store, problem, worker), ridge, 40, 8, [3, 5, 4, 7, 3, 11])
    assert len(seen) == 40
    assert best(store.records()) > 0.9, "from 0.6; late slopes are of older steps"


def _teller(
    store: StudyStore, problem: AnalyticProblem, worker: Sloping
) -> Callable[[int, float], None]:
    def tell(number: int, value: float) -> None:
        record = store.records()[number]
        recipe, genome = problem.recipe(record.genome), record.genome
        outcome = worker.run(Job(number, recipe, slope=record.asks_slope, genome=genome))
        found = {"slope": outcome.slope, "smooth": outcome.smooth} if outcome.slope else {}
        store.tell(number, value, **found)

    return tell


def test_what_is_barely_gained_is_no_gain() -> None:
    """After a climb of 1, four gains of 0.002 each halve the steps; four of 0.02 do not."""
    slope = np.ones(1)
    for each, step in ((0.02, STEP), (0.002, STEP / 2)):
        climb = [Visit(np.zeros(1), 0.0, slope), Visit(np.ones(1), 1.0, slope)]
        climb += [Visit(np.ones(1), 1.0 + each * n, slope) for n in range(1, 5)]
        assert heading(np.zeros(1), climb).step == step


def test_the_heading_by_hand() -> None:
    """The first step is a whole one against each slope's sign; patience halves the steps."""
    start = np.array([0.5, 0.5, 0.5])
    slope = np.array([4.0, -0.001, 0.0])
    first = heading(start, [Visit(start, 1.0, slope)])
    np.testing.assert_allclose(first.way, [STEP, -STEP, 0.0])
    np.testing.assert_allclose(first.beside(0), [0.5 + STEP, 0.5 - STEP, 0.5])
    np.testing.assert_allclose(first.beside(1), [0.5 + STEP / 2, 0.5 - STEP / 2, 0.5])
    worse = [Visit(np.full(3, 0.1 * n), 0.0, slope) for n in range(12)]
    assert heading(start, [Visit(start, 1.0, slope), *worse[:3]]).step == STEP
    halved = heading(start, [Visit(start, 1.0, slope), *worse[:4]])
    assert halved.step == STEP / 2
    np.testing.assert_array_equal(halved.point, start)
    assert heading(start, [Visit(start, 1.0, slope), *worse]).step < SHORTEST


def test_a_climb_that_only_breaks_floors_is_given_up(tmp_path: Path) -> None:
    """Its slopes lead out of the floor; CMA-ES goes on from the best point that keeps it."""

    class Fenced(AnalyticProblem):
        floors = (Floor(0, "landscape", "acc", Limit(0.6), upper=True),)

    def kept(records: list[TrialRecord]) -> list[bool]:
        return [record.violation == 0 for record in records]

    free = searched(tmp_path / "free.db", AnalyticProblem(), Sloping(ridge), 40)
    fenced = searched(tmp_path / "fenced.db", Fenced(), Sloping(ridge), 40)
    asked = [record.number for record in fenced if record.asks_slope]
    assert len(asked) < sum(record.asks_slope for record in free)
    assert kept(fenced)[asked[-ASTRAY] : asked[-1] + 1] == [False] * ASTRAY
    assert all(record.slope is None for record in fenced[asked[-1] + 1 :])
    assert sum(kept(fenced)[asked[-1] + 1 :]) > 10
    parts = searched(tmp_path / "parts.db", Fenced(), Sloping(ridge), 9)
    parts = searched(tmp_path / "parts.db", Fenced(), Sloping(ridge), 40)
    assert [record.genome for record in parts] == [record.genome for record in fenced]
