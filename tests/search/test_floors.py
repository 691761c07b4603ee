"""Floors: known limits, Deb's rules for every sampler, and studies that go on to the last bit."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import TrialError
from evomerge.evaluation import Scores, TaskRequest, TaskScore, Value
from evomerge.evaluation.incumbent import Incumbent
from evomerge.search.budget import Budget, Progress, best_of
from evomerge.search.cmaes import Replay
from evomerge.search.floors import Constraints, Floor, ranked_value
from evomerge.search.loop import SearchLoop
from evomerge.search.pool import Job, LocalPool, Outcome
from evomerge.search.problem import SearchError
from evomerge.search.records import PlannedBaseline, TrialRecord
from evomerge.search.sampler import make_sampler
from evomerge.search.storage import StudyStore, create_store, open_store
from evomerge.space.limits import Limit
from tests.search.conftest import ACC, AnalyticProblem

ABSOLUTE = Floor(1, "guard", "acc", Limit(0.86), upper=False)
RELATIVE = Floor(1, "guard", "acc", Limit(-0.1, "base"), False, ("base",))
BEST = Floor(1, "guard", "acc", Limit(-0.14, "best"), False, ("only a", "only b"))
"""All three come to the same limit: the base has 0.96 in guard, the best fine-tuned model 1."""


class Guarded(AnalyticProblem):
    """The fitness rises towards 0.7 in every gene; guard falls beyond 0.2."""

    def __init__(self, *floors: Floor) -> None:
        super().__init__()
        self.floors = floors

    def fitness(self, scores: Scores) -> float:
        return scores.value("gain", ACC).value

    def error(self, scores: Scores) -> float | None:
        return scores.value("gain", ACC).stderr

    def baselines(self) -> list[PlannedBaseline]:
        inside = [("base", 0.0), ("only a", 0.2), ("only b", 0.8), ("uniform", 0.9)]
        return [PlannedBaseline(n, self.recipe(self.point(v)), self.point(v)) for n, v in inside]


def scored(point: np.ndarray) -> Scores:
    gain, guard = (1 - float(np.mean((point - at) ** 2)) for at in (0.7, 0.2))
    return Scores(
        {
            name: TaskScore({ACC: Value(value, 0.01)}, {ACC: np.array([value])}, (0,))
            for name, value in (("gain", gain), ("guard", guard))
        }
    )


class Worker:
    """Scores both tasks; the jobs whose recipes' numbers are ``broken`` fail."""

    def __init__(self, broken: Sequence[float] = ()) -> None:
        self.broken = broken

    def run(self, job: Job) -> Outcome:
        point = np.array(list(yaml.safe_load(job.recipe).values()))
        if point[0] in self.broken:
            raise TrialError("out of memory")
        return Outcome(job, scored(point), {}, items=10)


def opened(path: Path, problem: Guarded, sampler: str = "cmaes") -> StudyStore:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store = create_store("floors", f"sqlite:///{path}")
    settings = {"n_startup_trials": 8} if sampler in ("tpe", "gp") else {}
    size = 6 if sampler in ("cmaes", "ascent", "nsga2") else None
    start = problem.point(0.5)
    genes = problem.distributions
    drawn = make_sampler(sampler, genes, start, seed=3, population=size, settings=settings)
    store.use(drawn)
    store.plan(problem.baselines())
    return store


def run(
    store: StudyStore,
    problem: Guarded,
    trials: int,
    *,
    pool: LocalPool | None = None,
    stop_after: int | None = None,
) -> Progress:
    stop, seen = threading.Event(), 0

    def observe(record: TrialRecord | None, _progress: Progress) -> None:
        nonlocal seen
        seen += record is not None
        if stop_after is not None and seen >= stop_after:
            stop.set()

    loop = SearchLoop(store, problem, Budget(trials), observe, stop)
    return loop.run(pool or LocalPool(Worker))


VALUES = st.floats(-1e9, 1e9)
LACKS = st.dictionaries(st.sampled_from("abc"), st.floats(-2, 2), max_size=3)
CANDIDATES = st.lists(st.tuples(VALUES, LACKS), min_size=2, max_size=12)


def debs_key(value: float, constraints: Mapping[str, float]) -> tuple[float, float]:
    """Those that keep all floors by their value, then the others by what they lack."""
    violation = sum(lack for lack in constraints.values() if lack > 0)
    return (violation, 0.0) if violation > 0 else (0.0, value)


@given(CANDIDATES)
def test_numbers_rank_by_debs_rules(candidates: list[tuple[float, dict[str, float]]]) -> None:
    for one, other in itertools.combinations(candidates, 2):
        mine, theirs = ranked_value(*one), ranked_value(*other)
        assert np.isfinite([mine, theirs]).all()
        first, second = debs_key(*one), debs_key(*other)
        if first[0] != second[0] and abs(first[0] - second[0]) < 1e-9:
            continue  # sums that rounding alone tells apart
        assert (mine < theirs) == (first < second)


@given(st.integers(0, 2**20), st.lists(LACKS, min_size=12, max_size=12))
def test_cma_es_moves_as_told_the_ranks(seed: int, lacks: list[dict[str, float]]) -> None:
    """What the numbers are does not matter, only how they sort."""
    generator = np.random.default_rng(seed)
    points = generator.random((12, 3))
    values = generator.normal(size=12)
    told = [ranked_value(v, c) for v, c in zip(values, lacks, strict=True)]
    ranks = np.searchsorted(np.unique(told), told).astype(float)

    def mean(numbers: Sequence[float]) -> np.ndarray:
        replay = Replay(np.zeros(3), np.ones(3), sigma=0.2, seed=0, population=6)
        solutions = [(point, float(n)) for point, n in zip(points, numbers, strict=True)]
        return replay.mean(np.full(3, 0.5), solutions)

    np.testing.assert_array_equal(mean(told), mean(list(ranks)))


def record(number: int, fitness: float, *lacks: float, **more: Any) -> TrialRecord:
    constraints = {str(place): lack for place, lack in enumerate(lacks)}
    return TrialRecord(number, "search", "complete", fitness, constraints=constraints, **more)


def test_the_best_keeps_its_floors_or_breaks_them_least() -> None:
    kept, fitter, fittest = record(0, 0.2, -0.1, 0.0), record(1, 0.5, 0.1), record(2, 0.9, 0.05)
    assert best_of([fittest, kept, fitter]) == kept
    assert best_of([fitter, fittest]) == fittest, "it lacks less"
    assert best_of([kept, replace(kept, number=7)]) == kept
    assert record(0, 0.2, -1.0, 0.25, 0.5).violation == 0.75


@pytest.mark.parametrize("floor", [ABSOLUTE, RELATIVE, BEST])
def test_a_limit_is_known_once_its_baselines_are(floor: Floor, tmp_path: Path) -> None:
    problem = Guarded(floor)
    store = opened(tmp_path / "study.db", problem)
    run(store, problem, 8)
    lacks = [one.constraints[floor.name] for one in open_store(store.name, store.url).records()]
    points = [0.0, 0.2, 0.8, 0.9]
    wanted = [0.86 - (1 - (point - 0.2) ** 2) for point in points]
    assert lacks[:4] == pytest.approx(wanted)
    assert len(lacks) == 8
    study = optuna.load_study(study_name="floors", storage=store.url)
    assert [t.constraints[floor.name] for t in study.trials] == lacks, "as the dashboard shows them"
    assert store.records() == open_store(store.name, store.url).records()


def test_names_say_what_is_kept() -> None:
    assert RELATIVE.name == "guard acc >= base - 0.1"
    assert replace(ABSOLUTE, upper=True, metric="ppl,none").name == "guard ppl,none <= 0.86"


def test_a_ceiling_is_the_other_way_round() -> None:
    scores = {"guard": {"bits,none": [0.9, 0.1]}, "other": {"bits,none": [0.1, None]}}
    ceiling = Floor(0, "guard", "bits", Limit(0.05, "best"), True, ("only a", "only b"))
    done = {
        label: TrialRecord(place, "baseline", "complete", 0.1, label=label, scores=of)
        for place, (label, of) in enumerate(
            [("only a", scores), ("only b", {"guard": {"bits,none": [0.8, 0.1]}})]
        )
    }
    assert ceiling.waits({"only a": done["only a"]})
    assert ceiling.bound({"only a": done["only a"]}) is None
    assert ceiling.reference(done) == done["only b"], "the lower one"
    assert ceiling.bound(done) == pytest.approx(0.85)
    assert ceiling.lacks(0.9, 0.85) == pytest.approx(0.05)
    failed = replace(done["only b"], state="failed", scores={})
    assert ceiling.bound({**done, "only b": failed}) == pytest.approx(0.95)


@pytest.mark.parametrize("sampler", ["cmaes", "ascent", "tpe", "gp", "nsga2"])
@pytest.mark.filterwarnings("ignore")
def test_every_sampler_finds_the_best_that_keeps_its_floor(tmp_path: Path, sampler: str) -> None:
    """Up to the floor the genes may be 0.574 on average: a gain of 0.984; the top is at 0.7."""
    problem = Guarded(RELATIVE)
    trials = 40 if sampler == "gp" else 100
    store = opened(tmp_path / "study.db", problem, sampler)
    best = run(store, problem, trials).best
    assert best is not None
    assert best.violation == 0
    assert 0.95 < float(best.fitness or 0) < 0.9845
    late = store.records()[-20:]
    free = opened(tmp_path / "free.db", Guarded(), sampler)
    unbound = run(free, Guarded(), trials).best
    assert unbound is not None
    assert float(unbound.fitness or 0) > 0.985, "without the floor it goes on"
    assert sum(one.violation == 0 for one in late) >= 5


@pytest.mark.parametrize(
    ("sampler", "cut"),
    [
        *(("cmaes", cut) for cut in (1, 2, 9, 20)),
        ("ascent", 9),
        ("tpe", 12),
        ("gp", 12),
        ("nsga2", 20),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_study_with_floors_goes_on_to_the_last_bit(
    tmp_path: Path, sampler: str, cut: int
) -> None:
    problem = Guarded(BEST, RELATIVE)
    whole, broken = tmp_path / "whole.db", tmp_path / "broken.db"
    run(opened(whole, problem, sampler), problem, 26)
    run(opened(broken, problem, sampler), problem, 26, stop_after=cut)
    run(opened(broken, problem, sampler), problem, 26)
    first, second = (
        open_store("floors", f"sqlite:///{path}").records() for path in (whole, broken)
    )
    assert first == second
    assert all(len(one.constraints) == 2 for one in first)


class Hindmost(LocalPool):
    """Three workers; trial 0, the base, is finished after trial 7."""

    def __init__(self) -> None:
        super().__init__(Worker)
        self._waiting: list[Job] = []

    size = 3  # type: ignore[assignment]

    @property
    def busy(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        self._waiting.sort(key=lambda job: int(job.key) or 7.5)
        return [Worker().run(self._waiting.pop(0))]


def test_what_was_finished_before_its_floor_was_known_gets_its_constraints(tmp_path: Path) -> None:
    problem = Guarded(RELATIVE)
    store = opened(tmp_path / "study.db", problem)
    progress = run(store, problem, 14, pool=Hindmost())
    records = open_store(store.name, store.url).records()
    told = {one.number: one.told for one in records}
    before = [number for number, at in told.items() if (at or 0) < (told[0] or 0)]
    assert len(before) >= 5, "searched ones too"
    for one in records:
        guard = one.scores["guard"]["acc,none"][0]
        assert one.constraints == pytest.approx({RELATIVE.name: 0.86 - guard})
    best = best_of(store.records())
    assert progress.best is not None
    assert best is not None
    assert (progress.best.number, progress.best.violation) == (best.number, 0.0)
    assert progress.best_baseline is not None
    assert progress.best_baseline.label == "only a", "the others are fitter and break the floor"


def test_a_floor_whose_model_failed_ends_the_search(tmp_path: Path) -> None:
    problem = Guarded(RELATIVE)
    store = opened(tmp_path / "study.db", problem)
    with pytest.raises(SearchError, match=r"guard acc >= base - 0.1: .* as base failed; mend it"):
        run(store, problem, 20, pool=LocalPool(lambda: Worker([0.0])))
    with pytest.raises(SearchError, match="base failed"):
        run(opened(tmp_path / "study.db", problem), problem, 20)
    best = Guarded(BEST)
    other = opened(tmp_path / "best.db", best)
    run(other, best, 8, pool=LocalPool(lambda: Worker([0.2])))
    assert other.records()[4].constraints, "the best of those that could be scored is the limit"
    assert other.records()[1].state == "failed"


def test_a_score_that_is_no_number_tells_of_no_floor() -> None:
    constraints = Constraints([ABSOLUTE])
    assert constraints.unfit({"guard": {"acc,none": [float("nan"), None]}}) == (
        "guard acc is nan, not a finite number"
    )
    assert constraints.unfit({"guard": {"acc,none": [0.2, None]}}) is None
    assert constraints.of({"guard": {"acc,none": [0.5, None]}}) == {
        ABSOLUTE.name: pytest.approx(0.36)
    }


class Itemised(Guarded):
    """Candidates are compared item by item."""

    prunes = True

    def incumbent(self, trial: int, fitness: float, scores: Scores) -> Incumbent | None:
        requests = [TaskRequest("gain", ACC), TaskRequest("guard", ACC, weight=0.0)]
        return Incumbent.of(trial, fitness, scores, requests)


@pytest.mark.parametrize("floor", [ABSOLUTE, RELATIVE, BEST])
def test_only_what_keeps_the_floors_is_what_others_are_stopped_by(
    tmp_path: Path, floor: Floor
) -> None:
    problem = Itemised(floor)
    store = opened(tmp_path / "study.db", problem)
    run(store, problem, 30)
    records = store.records()
    rivals = {one.rival for one in records if one.kind == "search"}
    assert len(rivals - {None}) > 1
    assert {one.rival for one in records if one.kind == "baseline"} == {None}, "limits hang on them"
    for one in records:
        if one.kind == "search" and one.rival is not None:
            before = [r for r in records[: one.number] if r.violation == 0]
            assert one.rival == max(before, key=lambda r: (float(r.fitness or 0), -r.number)).number
    assert max(records, key=lambda one: float(one.fitness or 0)).violation > 0
