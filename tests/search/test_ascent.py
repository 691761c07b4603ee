"""The ascent along slopes: how fast, how it ends, what it does without slopes, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from evomerge.errors import EvomergeError, TrialError
from evomerge.search.ascent import APART, CLIMBS
from evomerge.search.budget import Budget
from evomerge.search.climbing import HALVED, STEP, Place, Walk, steps_of_leg, walk
from evomerge.search.finalists import best_climbed
from evomerge.search.floors import Floor
from evomerge.search.legs import ASTRAY, CLIMB, DEPTH, LAST, LEGS, SCOUT, Climb
from evomerge.search.loop import SearchLoop
from evomerge.search.pool import Job, LocalPool, Outcome
from evomerge.search.records import PlannedBaseline, TrialRecord
from evomerge.search.sampler import make_sampler
from evomerge.search.seeded import LEG, TOLD, WALK
from evomerge.search.storage import StudyStore, create_store
from evomerge.space.limits import Limit
from tests.search.conftest import AnalyticEvaluator, AnalyticProblem, failing, make_store
from tests.search.landscapes import Objective, run_generations, sphere

WIDTHS = np.array([1.0, 0.1, 3.0, 0.3])
STEPS_OF_LEG = 4


def ridge(genome: Mapping[str, float]) -> float:
    """Genes of unlike effect; the optimum is at 0.7 in all of them."""
    return 1 - float((WIDTHS * (np.array([genome[n] for n in sorted(genome)]) - 0.7) ** 2).sum())


@dataclass
class Slope:
    value: float
    genes: Mapping[str, float]


class Hill:
    """The ridge as something to climb; each block's top lies elsewhere, on average at 0.7."""

    def __init__(self, noise: float = 0.0, blocks: int = 8) -> None:
        self.blocks = blocks
        self.ranges = {f"weight/{i}": (0.0, 1.0) for i in range(4)}
        self._tops = 0.7 + noise * np.random.default_rng(0).standard_normal((blocks, 4))
        self._tops += 0.7 - self._tops.mean(0)
        self.seen: list[int] = []

    def at(self, genome: Mapping[str, float], block: int) -> Slope:
        self.seen.append(block)
        away = np.array([genome[name] for name in sorted(genome)]) - self._tops[block]
        slopes = dict(zip(sorted(genome), (-2 * WIDTHS * away).tolist(), strict=True))
        return Slope(1 - float((WIDTHS * away**2).sum()), slopes)


class Climbing(AnalyticEvaluator):
    """Also takes a leg where it is asked for."""

    def __init__(self, objective: Objective, *, slopes: bool = True) -> None:
        super().__init__(objective)
        self._slopes = slopes

    def run(self, job: Job) -> Outcome:
        outcome = replace(super().run(job), items=1)
        if job.leg is None or not self._slopes:
            return outcome
        place = Place.from_json(job.leg)
        walked = walk(Hill(), place, STEPS_OF_LEG, (0, int(job.key)))
        return replace(outcome, items=4, walk=walked.to_json())


class Waiting:
    """Eight workers that never come to an end."""

    size, queues = 8, False

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    @property
    def busy(self) -> int:
        return len(self.jobs)

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        raise EvomergeError("enough")

    def close(self) -> None:
        pass


def searched(
    path: Path, problem: AnalyticProblem, evaluator: AnalyticEvaluator, trials: int
) -> list[TrialRecord]:
    store = make_store(path, problem, "ascent")
    SearchLoop(store, problem, Budget(trials)).run(LocalPool(lambda: evaluator))
    return store.records()


def best(records: list[TrialRecord]) -> float:
    return max(record.fitness for record in records if record.fitness is not None)


def point_of(record: TrialRecord) -> np.ndarray:
    return np.array([record.genome[name] for name in sorted(record.genome)])


def test_it_begins_at_the_baselines_and_reaches_the_top(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    records = searched(tmp_path / "a.db", problem, Climbing(ridge), 3 + 14)
    assert records[3].genome == problem.point(0.2), "between the best two in the genome"
    assert best(records) > 1 - 2e-3
    plain = make_store(tmp_path / "b.db", problem)
    SearchLoop(plain, problem, Budget(3 + 53)).run(LocalPool(lambda: AnalyticEvaluator(ridge)))
    assert best(records) > best(plain.records()), "CMA-ES has as many scored items"


def test_each_leg_begins_where_the_last_one_ended(tmp_path: Path, problem: AnalyticProblem) -> None:
    searched(tmp_path / "a.db", problem, Climbing(ridge), 3 + SCOUT)
    records = make_store(tmp_path / "a.db", problem, "ascent").records()
    assert [record.leg is not None for record in records] == [False] * 3 + [True] * SCOUT
    assert [record.items for record in records] == [1] * 3 + [4] * SCOUT
    for before, after in pairwise(records[3:]):
        assert before.walk is not None
        assert after.leg == {"climb": 0, **before.walk["end"]}
        assert point_of(after).tolist() == before.walk["end"]["point"]
    assert [record.leg["steps"] for record in records if record.leg] == [0, 4, 8]


def mean_of(legs: list[TrialRecord]) -> np.ndarray:
    """Of their last steps."""
    walks = [leg.walk for leg in legs[-LAST // STEPS_OF_LEG :]]
    return np.mean([walk["mean"] for walk in walks if walk is not None], axis=0)


def climbs_of(records: list[TrialRecord]) -> list[int]:
    """Which climb each leg belongs to."""
    return [int(record.leg["climb"]) for record in records if record.leg is not None]


def test_a_climb_that_is_surely_ahead_goes_on_alone(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    """A second one comes after it: it may find more."""
    records = searched(tmp_path / "a.db", problem, Climbing(ridge), 3 + 2 * DEPTH + 2)
    assert climbs_of(records) == [0] * DEPTH + [1] * DEPTH
    assert records[3 + DEPTH].climbed == 0
    assert records[-1].climbed == 1


def test_where_no_error_is_known_no_climb_is_surely_ahead(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    class Unknown(Climbing):
        def run(self, job: Job) -> Outcome:
            outcome = super().run(job)
            assert outcome.scores is not None
            tasks = {
                name: replace(
                    task,
                    metrics={n: replace(one, stderr=None) for n, one in task.metrics.items()},
                )
                for name, task in outcome.scores.tasks.items()
            }
            return replace(outcome, scores=replace(outcome.scores, tasks=tasks))

    records = searched(tmp_path / "a.db", problem, Unknown(ridge), 3 + 2 * SCOUT)
    assert climbs_of(records) == [0] * SCOUT + [1] * SCOUT


@pytest.mark.parametrize("fitter", [0, 1])
def test_the_fitter_of_two_climbs_goes_on_first(
    tmp_path: Path, problem: AnalyticProblem, fitter: int
) -> None:
    """The first begins between the two best baselines, the second at the best. Here neither is
    ahead of it by then, which has 0.604."""
    calls = count()
    known = {3 + SCOUT - 1: 0.6, 3 + 2 * SCOUT - 1: 0.59 + 0.02 * fitter}

    def favoured(genome: Mapping[str, float]) -> float:
        return known.get(next(calls), ridge(genome))

    records = searched(tmp_path / "a.db", problem, Climbing(favoured), 60)
    legs = [record for record in records if record.leg is not None]
    walked = [[one for one in legs if one.leg and one.leg["climb"] == n] for n in range(2)]
    assert [point_of(climb[0]).tolist() for climb in walked] == [[0.2] * 4, [0.4] * 4]
    assert [len(climb) for climb in walked] == [DEPTH, DEPTH]
    scouts = [climb[SCOUT - 1] for climb in walked]
    assert scouts[fitter].fitness > scouts[1 - fitter].fitness
    more = DEPTH - SCOUT
    order = [0] * SCOUT + [1] * SCOUT + [fitter] * more + [1 - fitter] * more
    assert climbs_of(records) == order
    tops = [record for record in records if record.climbed is not None]
    assert [top.climbed for top in tops] == [fitter, 1 - fitter]
    for top in tops:
        climb = walked[top.climbed]
        assert top.number == climb[-1].number + 1
        assert point_of(top) == pytest.approx(mean_of(climb))


def test_after_two_climbs_cma_es_goes_on_near_the_fitter_mean(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    records = searched(tmp_path / "a.db", problem, Climbing(ridge), 60)
    tops = [record for record in records if record.climbed is not None]
    fitter = max(tops, key=lambda one: one.fitness or 0.0)
    after = records[tops[-1].number + 1 :]
    assert len(after) > 20
    for record in after:
        assert float(np.abs(point_of(record) - point_of(fitter)).max()) < 0.3
    legs = [record for record in records if record.leg is not None]
    fittest = max(legs, key=lambda one: (one.fitness or 0.0, -one.number))
    raced = {record.number for record in best_climbed(records)}
    assert raced == {*(top.number for top in tops), legs[-1].number, fittest.number}


def test_there_is_one_climb_where_no_baseline_lies_apart(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    near = [0.4, 0.4 + 0.9 * APART]
    planned = [
        PlannedBaseline(f"{v}", problem.recipe(problem.point(v)), problem.point(v)) for v in near
    ]
    store = create_store("test", f"sqlite:///{tmp_path}/a.db")
    store.use(make_sampler("ascent", problem.distributions, problem.point(0.5), seed=3))
    store.plan(planned)
    SearchLoop(store, problem, Budget(30)).run(LocalPool(lambda: Climbing(ridge)))
    legs = [record.number for record in store.records() if record.leg is not None]
    assert legs == list(range(2, 2 + DEPTH))
    assert store.records()[2].genome == planned[1].genome


@pytest.mark.parametrize(
    ("whole", "error", "half_way_to"),
    [(0.57, 0.02, 0.2), (0.55, 0.02, 0.2), (0.53, 0.02, 0.1), (0.53, 0.03, 0.2), (0.1, None, 0.2)],
)
def test_a_guess_comes_before_what_was_scored_whole_only_where_it_is_surely_ahead(
    tmp_path: Path,
    problem: AnalyticProblem,
    whole: float,
    error: float | None,
    half_way_to: float,
) -> None:
    """The climb begins half way between the best baseline and another; the guess is .58."""
    store = create_store("test", f"sqlite:///{tmp_path}/a.db")
    store.use(make_sampler("ascent", problem.distributions, problem.point(0.5), seed=3))
    known: dict[str, float] = {} if error is None else {"error": error}
    told = {0.8: {"error": 0.02}, 0.2: known, 0.1: {"estimate": 0.58, "rival": 0}}
    store.plan(
        PlannedBaseline(f"{at}", problem.recipe(problem.point(at)), problem.point(at))
        for at in told
    )
    for fitness, facts in zip((0.7, whole, 0.58), told.values(), strict=True):
        store.tell(store.ask(problem.distributions).number, fitness, **facts)
    drawn = store.ask(problem.distributions)
    assert drawn.leg is not None
    assert drawn.genome == pytest.approx(problem.point((0.8 + half_way_to) / 2))


def test_where_a_climb_stands_is_raced_before_it_is_over(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    """However early the budget is spent. Of the climb that is furthest."""
    store = make_store(tmp_path / "a.db", problem, "ascent")
    pool = LocalPool(lambda: Climbing(lambda _genome: 0.5))
    SearchLoop(store, problem, Budget(3)).run(pool)
    assert store.mean() is None
    SearchLoop(store, problem, Budget(7)).run(pool)
    legs = store.records()[3:]
    assert climbs_of(legs) == [0] * SCOUT + [1]
    mean, walked = store.mean(), legs[SCOUT - 1].walk
    assert mean is not None
    assert walked is not None
    assert [mean[name] for name in sorted(mean)] == walked["end"]["point"]


def test_a_resumed_study_is_the_uninterrupted_one(tmp_path: Path, problem: AnalyticProblem) -> None:
    """Broken off early, in the ascent, and after it."""
    whole = searched(tmp_path / "whole.db", problem, Climbing(ridge), 45)
    for trials in (2, 9, 13, 14, 15, 24, 25, 26, 43, 45):
        parts = searched(tmp_path / "parts.db", problem, Climbing(ridge), trials)
    assert whole[-1].leg is None
    assert [record.genome for record in parts] == [record.genome for record in whole]
    assert [record.walk for record in parts] == [record.walk for record in whole]


def test_without_slopes_it_is_cma_es(tmp_path: Path, problem: AnalyticProblem) -> None:
    """Two trials ask in vain; from then on both samplers draw the same from the study."""
    store = make_store(tmp_path / "a.db", problem, "ascent")
    pool = LocalPool(lambda: Climbing(sphere(), slopes=False))
    SearchLoop(store, problem, Budget(30)).run(pool)
    assert [record.number for record in store.records() if record.leg is not None] == [3, 4]
    drawn = store.ask(problem.distributions).genome
    other = make_store(tmp_path / "a.db", problem)
    assert other.records()[30].genome == drawn
    before = make_store(tmp_path / "b.db", problem, "ascent")
    SearchLoop(before, problem, Budget(30)).run(pool)
    start = problem.point(0.5)
    plain = make_sampler("cmaes", problem.distributions, start, seed=3, sigma=0.15)
    before.use(plain)
    assert before.ask(problem.distributions).genome == drawn


def test_a_climb_keeps_the_best_baselines_method(tmp_path: Path, problem: AnalyticProblem) -> None:
    """Half way between two methods there is a third one, or none."""
    problem.distributions["merge_method"] = FloatDistribution(0.0, 1.0)
    store = create_store("test", f"sqlite:///{tmp_path / 'a.db'}")
    start = problem.point(0.5)
    store.use(make_sampler("ascent", problem.distributions, start, seed=3, sigma=0.15))
    points = [
        {**problem.point(0.1), "merge_method": 0.1},
        {**problem.point(0.4), "merge_method": 0.9},
    ]
    store.plan([PlannedBaseline(str(n), problem.recipe(one), one) for n, one in enumerate(points)])
    worker = AnalyticEvaluator(lambda genome: genome["weight/0"])
    SearchLoop(store, problem, Budget(3)).run(LocalPool(lambda: worker))
    leg = store.records()[2]
    assert leg.leg is not None
    assert leg.genome["merge_method"] == 0.9
    assert leg.genome["weight/0"] == pytest.approx(0.25)


@pytest.mark.parametrize(("left", "begun"), [(30, 0), (31, 1), (70, 1), (71, 2)])
def test_a_leg_is_begun_where_its_slopes_fit_in(
    tmp_path: Path, problem: AnalyticProblem, left: int, begun: int
) -> None:
    """It may go beyond the limit by less than a trial's 10 items; running ones count whole: 40."""
    store = make_store(tmp_path / "a.db", problem, "ascent")
    SearchLoop(store, problem, Budget(4)).run(LocalPool(lambda: Climbing(ridge)))
    pool = Waiting()
    loop = SearchLoop(store, problem, Budget(None, items=3 + 4 + left))
    assert loop.has_work == (begun > 0)
    with suppress(EvomergeError):  # they never come to an end
        loop.run(pool)
    assert len(store.records()) == 3 + 1 + begun


def test_failures_are_passed_by(tmp_path: Path, problem: AnalyticProblem) -> None:
    """A leg that failed is tried again from where it began, with other items; not without end."""
    objective = failing(ridge, lambda call: call in (5, 6, 9))
    records = searched(tmp_path / "a.db", problem, Climbing(objective), 30)
    assert [record.number for record in records if record.state == "failed"] == [5, 6, 9]
    assert best(records) > 1 - 2e-3
    first = searched(tmp_path / "b.db", problem, Climbing(failing(ridge, lambda n: n == 3)), 30)
    assert first[3].state == "failed"
    assert sum(record.walk is not None for record in first) > DEPTH
    later = searched(tmp_path / "c.db", problem, Climbing(failing(ridge, lambda n: n > 4)), 20)
    assert [record.number for record in later if record.walk is not None] == [3, 4]
    legs = [record.number for record in later if record.leg is not None]
    assert legs == [3, 4, 5, 6, 7, 8], "two in vain end a climb"
    assert later[9].climbed == 0, "its mean is scored"


def test_workers_climb_side_by_side(tmp_path: Path, problem: AnalyticProblem) -> None:
    store = make_store(tmp_path / "a.db", problem, "ascent")
    SearchLoop(store, problem, Budget(3)).run(LocalPool(lambda: Climbing(ridge)))
    worker, seen = Climbing(ridge), set()

    def ask() -> tuple[int, Mapping[str, float]]:
        record = store.ask(problem.distributions)
        seen.add(tuple(record.genome.values()))
        assert all(0 <= value <= 1 for value in record.genome.values())
        return record.number, record.genome

    tell = _teller(store, problem, worker)
    run_generations(ask, tell, ridge, 24, 8, [3, 5, 4, 7, 3, 11])
    assert len(seen) == 24
    assert all(record.leg is not None for record in store.records()[3:])
    assert best(store.records()) > 0.99, "from 0.6"


def _teller(
    store: StudyStore, problem: AnalyticProblem, worker: Climbing
) -> Callable[[int, float], None]:
    def tell(number: int, value: float) -> None:
        record = store.records()[number]
        outcome = worker.run(Job(number, problem.recipe(record.genome), leg=record.leg))
        store.tell(number, value, **({"walk": outcome.walk} if outcome.walk else {}))

    return tell


def test_steps_by_hand() -> None:
    """The first is a whole one along each slope's sign; a gene without an effect stays."""
    place = Place.start(np.array([0.5, 0.5, 0.95, 0.5]))
    once = place.stepped(np.array([4.0, -0.001, 2.0, 0.0]))
    np.testing.assert_allclose(once.point, [0.5 + STEP, 0.5 - STEP, 1.0, 0.5])
    # m = .2·4·(.8 + 1)/(1 − .64) is 4 again, and so is √v: steps of a constant slope only shrink.
    twice = once.stepped(np.array([4.0, 0.001, 2.0, 0.0]))
    assert twice.point[0] - once.point[0] == pytest.approx(STEP / (1 + 1 / HALVED))
    # m = (.2·.001 − .8·.2·.001)/.36 and √v = .001: a slope that turned is trusted less.
    change = twice.point[1] - once.point[1]
    assert change == pytest.approx(STEP / (1 + 1 / HALVED) * 0.04 / 0.36)
    assert twice.steps == 2
    assert Place.from_json(twice.to_json()).to_json() == twice.to_json()


def test_the_mean_of_noisy_steps_is_nearer_than_their_end() -> None:
    """Every block pulls elsewhere; all of them together pull to 0.7."""
    place, walks = Place.start(np.full(4, 0.3)), []
    for leg in range(30):
        hill = Hill(noise=0.2, blocks=64)
        walks.append(walk(hill, place, 8, (1, leg)))
        assert len(set(hill.seen)) == 8, "another block each"
        place = walks[-1].end
    off = [float(np.abs(one.end.point - 0.7).mean()) for one in walks[5:]]
    mean = [float(np.abs(one.mean - 0.7).mean()) for one in walks[5:]]
    assert np.mean(mean) < np.mean(off) < 0.05
    last = walks[-1]
    assert Walk.from_json(last.to_json()).to_json() == last.to_json()
    assert (last.steps, last.end.steps) == (8, 240)


def test_blocks_are_taken_again_where_there_are_too_few() -> None:
    hill = Hill()
    walk(hill, Place.start(np.full(4, 0.3)), 20, (0,))
    assert sorted(hill.seen[:8]) == sorted(hill.seen[8:16]) == list(range(8))
    assert len(set(hill.seen[16:])) == 4


def test_a_leg_fails_where_a_slope_cannot_be_had() -> None:
    class Broken(Hill):
        def at(self, genome: Mapping[str, float], block: int) -> Slope:
            raise TrialError("the gradient of the smooth fitness is not finite")

    with pytest.raises(TrialError, match="not finite"):
        walk(Broken(), Place.start(np.full(4, 0.3)), 4, (0,))


@pytest.mark.parametrize(("items", "steps"), [(1, 4), (400, 4), (800, 8), (5000, 16)])
def test_a_leg_s_steps(items: int, steps: int) -> None:
    assert steps_of_leg(items) == steps


def test_a_climb_that_only_breaks_floors_is_given_up(tmp_path: Path) -> None:
    """Its slopes lead out of the floor; CMA-ES goes on from the best point that keeps it."""

    class Fenced(AnalyticProblem):
        floors = (Floor(0, "landscape", "acc", Limit(0.6), upper=True),)

    def kept(records: list[TrialRecord]) -> list[bool]:
        return [record.violation == 0 for record in records]

    free = searched(tmp_path / "free.db", AnalyticProblem(), Climbing(ridge), 50)
    fenced = searched(tmp_path / "fenced.db", Fenced(), Climbing(ridge), 50)
    legs = [record for record in fenced if record.leg is not None]
    assert len(legs) < sum(record.leg is not None for record in free)
    for number in range(2):
        climb = [one for one in legs if one.leg and one.leg["climb"] == number]
        assert kept(climb)[-ASTRAY:] == [False] * ASTRAY
    assert sum(kept(fenced)[legs[-1].number + 2 :]) > 10
    parts = searched(tmp_path / "parts.db", Fenced(), Climbing(ridge), 9)
    parts = searched(tmp_path / "parts.db", Fenced(), Climbing(ridge), 50)
    assert [record.genome for record in parts] == [record.genome for record in fenced]


def test_a_studys_first_leg_is_begun_whatever_is_left(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    """Without it there would be no candidate."""
    store = make_store(tmp_path / "a.db", problem, "ascent")
    SearchLoop(store, problem, Budget(None, items=4)).run(LocalPool(lambda: Climbing(ridge)))
    assert climbs_of(store.records()) == [0]


@pytest.mark.parametrize("items", [45, 60, 65, 90])
def test_a_leg_in_vain_leaves_the_rest_of_the_budget_to_others(
    tmp_path: Path, problem: AnalyticProblem, items: int
) -> None:
    """The next one will hardly cost what slopes do."""

    class Whole(Climbing):
        def run(self, job: Job) -> Outcome:
            return replace(super().run(job), items=problem.items)

    store = make_store(tmp_path / "a.db", problem, "ascent")
    loop = SearchLoop(store, problem, Budget(None, items=items))
    done = loop.run(LocalPool(lambda: Whole(ridge, slopes=False)))
    assert items <= done.items < items + problem.items


@pytest.mark.parametrize("items", range(165, 215, 10))
def test_a_leg_that_failed_does_not_make_the_next_one_cheap(
    tmp_path: Path, problem: AnalyticProblem, items: int
) -> None:
    """The second climb's first."""

    legs = count()

    class Costly(Climbing):
        def run(self, job: Job) -> Outcome:
            if job.leg is not None and next(legs) == 3:
                raise TrialError("out of memory, by chance")
            outcome = super().run(job)
            return replace(outcome, items=problem.items * (4 if outcome.walk else 1))

    store = make_store(tmp_path / "a.db", problem, "ascent")
    evaluator = Costly(lambda genome: 0.1 + 0.01 * ridge(genome))
    done = SearchLoop(store, problem, Budget(None, items=items)).run(LocalPool(lambda: evaluator))
    assert done.items < items + problem.items


def test_of_workers_side_by_side_one_begins_a_first_leg_that_does_not_fit(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    store = make_store(tmp_path / "a.db", problem, "ascent")
    SearchLoop(store, problem, Budget(3)).run(LocalPool(lambda: Climbing(ridge)))
    pool = Waiting()
    with pytest.raises(EvomergeError, match="enough"):
        SearchLoop(store, problem, Budget(None, items=50)).run(pool)
    assert [job.leg is not None for job in pool.jobs] == [True]


def test_all_legs_of_many_workers_count_with_their_slopes(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    """Also those beyond which a climb has none, while the first has not come back."""

    class Many(Waiting):
        size = CLIMBS * LEGS + 20

    store = make_store(tmp_path / "a.db", problem, "ascent")
    SearchLoop(store, problem, Budget(3)).run(LocalPool(lambda: Climbing(ridge)))
    pool, room = Many(), CLIMBS * LEGS + 5
    with pytest.raises(EvomergeError, match="enough"):
        # Two trials without slopes would fit besides.
        SearchLoop(store, problem, Budget(None, items=3 + room * 40 + 20)).run(pool)
    assert len(pool.jobs) == room
    assert all(job.leg is not None for job in pool.jobs)


def test_a_first_leg_that_failed_is_tried_again_whatever_is_left(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    store = make_store(tmp_path / "a.db", problem, "ascent")
    evaluator = Climbing(failing(ridge, lambda call: call == 3))
    SearchLoop(store, problem, Budget(None, items=14)).run(LocalPool(lambda: evaluator))
    assert [one.state for one in store.records()[3:]] == ["failed", "complete"]
    # The same where it was running when the driver died.
    store = make_store(tmp_path / "b.db", problem, "ascent")
    SearchLoop(store, problem, Budget(3)).run(LocalPool(lambda: Climbing(ridge)))
    with pytest.raises(EvomergeError, match="enough"):
        SearchLoop(store, problem, Budget(None, items=14)).run(Waiting())
    store = make_store(tmp_path / "b.db", problem, "ascent")
    evaluator = Climbing(failing(ridge, lambda call: call == 0))
    SearchLoop(store, problem, Budget(None, items=14)).run(LocalPool(lambda: evaluator))
    assert [one.state for one in store.records()[3:]] == ["failed", "complete"]


def test_where_the_fitter_climb_stands_is_raced(tmp_path: Path, problem: AnalyticProblem) -> None:
    """Of two that have come as far; and of one that goes on beside one that is over."""
    calls = count()
    known = {3 + SCOUT - 1: 0.55, 3 + 2 * SCOUT - 1: 0.6}
    objective = Climbing(lambda genome: known.get(next(calls), ridge(genome)))
    store = make_store(tmp_path / "a.db", problem, "ascent")
    for trials in (3 + 2 * SCOUT, 3 + DEPTH + SCOUT + 1 + 2):
        SearchLoop(store, problem, Budget(trials)).run(LocalPool(lambda: objective))
        last = store.records()[-1]
        mean = store.mean()
        assert mean is not None
        assert last.walk is not None
        assert [mean[name] for name in sorted(mean)] == last.walk["end"]["point"]
    assert climbs_of(store.records())[-1] == 0, "the first goes on when the second is over"


def test_a_mean_that_failed_is_scored_again(tmp_path: Path, problem: AnalyticProblem) -> None:
    """Once; where that fails too, CMA-ES goes on from the best leg."""
    top = 3 + DEPTH
    once = searched(
        tmp_path / "a.db", problem, Climbing(failing(ridge, lambda n: n == top)), top + 2
    )
    assert [one.climbed for one in once[top:]] == [0, 0]
    assert [one.state for one in once[top:]] == ["failed", "complete"]
    assert once[top].genome == once[top + 1].genome
    never = failing(ridge, lambda n: n in (top, top + 1, top + 2 + DEPTH, top + 3 + DEPTH))
    records = searched(tmp_path / "b.db", problem, Climbing(never), top + 4 + DEPTH + 8)
    fittest = max(records, key=lambda one: one.fitness or -np.inf)
    for one in records[-8:]:
        assert float(np.abs(point_of(one) - point_of(fittest)).max()) < 0.3


def test_failures_before_a_leg_that_came_back_do_not_end_the_climb() -> None:
    """By the order in which they came back, not by their numbers."""
    store = optuna.create_study()
    for number, told in ((0, 2), (1, 0), (2, 1)):
        walked = {} if number else {WALK: walk(Hill(), Place.start(np.zeros(4)), 4, (0,)).to_json()}
        attributes = {LEG: {CLIMB: 0}, TOLD: told, **walked}
        store.add_trial(create_trial(value=0.0, user_attrs=attributes))
    climb = Climb.of(0, store.trials)
    assert (climb.vain, climb.over) == (0, False)
    store.add_trial(create_trial(value=0.0, user_attrs={LEG: {CLIMB: 0}, TOLD: 3}))
    assert Climb.of(0, store.trials).vain == 1, "failures apart are not added up"


def test_what_was_drawn_before_a_slope_came_back_is_not_told_to_the_later_cma_es(
    problem: AnalyticProblem,
) -> None:
    """It was drawn about another mean. With workers side by side a leg may come back late."""
    sampler = make_sampler("ascent", problem.distributions, problem.point(0.5), seed=3, sigma=0.15)

    def mean_after(attributes: dict[str, object]) -> list[float]:
        study = optuna.create_study(direction="maximize")

        def add(value: float, at: float, **attrs: object) -> None:
            trial = create_trial(
                value=value,
                params=problem.point(at),
                distributions=dict(problem.distributions),
                user_attrs={TOLD: len(study.trials), **attrs},
            )
            study.add_trial(trial)

        add(0.5, 0.4, kind="baseline")
        add(0.9, 0.6, climbed=0)
        for n in range(2 * 8):
            add(0.1 * n, 0.62 + n / 100, **attributes)
        mean = sampler.mean(study)
        return [round(value, 9) for value in mean.values()]

    assert mean_after({"plain": True}) == [0.6] * 4
    assert mean_after({}) != [0.6] * 4
    # So the sampler marks it, once legs have come to nothing.
    study = optuna.create_study(direction="maximize")
    for told in range(2):
        assert LEG in sampler.facts(study, told)
        study.add_trial(create_trial(value=0.0, user_attrs={LEG: {CLIMB: 0}, TOLD: told}))
    assert sampler.facts(study, 2) == {"plain": True}
