"""CMA-ES: late results, baselines, restarts; and that Optuna's own sampler gets them wrong."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import optuna
import pytest
from cmaes import CMA
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler

from evomerge.search.cmaes import InjectableCMA, Replay
from evomerge.search.cmaes_sampler import CmaEsSampler
from evomerge.search.generations import ArrivalNSGAII, Generations
from evomerge.search.sampler import make_sampler
from tests.search.landscapes import noisy, run_generations, sphere

GENES = {f"weight/{i}": FloatDistribution(0.0, 1.0) for i in range(8)}
START = dict.fromkeys(GENES, 0.2)
DELAYS = [3, 5, 4, 7, 3, 3, 11, 4]


def test_where_every_gene_chooses_a_method_the_ascent_is_cma_es() -> None:
    methods = {"layers/0/merge_method": FloatDistribution(0.0, 2.0)}
    start = dict.fromkeys(methods, 1.0)
    assert isinstance(make_sampler("ascent", methods, start, seed=0), CmaEsSampler)
    mixed = {**methods, **GENES}
    some = make_sampler("ascent", mixed, {**start, **START}, seed=0)
    assert not isinstance(some, CmaEsSampler)


def search(sampler: BaseSampler, *, workers: int, seed: int, trials: int = 160) -> optuna.Study:
    """Minimise nothing but time: a noisy sphere with ``workers`` trials in flight."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    order = iter(range(10**9))
    flying = {}

    def ask() -> tuple[int, Mapping[str, float]]:
        trial = study.ask(GENES)
        flying[trial.number] = trial
        return trial.number, trial.params

    def tell(number: int, value: float) -> None:
        flying[number].set_user_attr("told", next(order))
        study.tell(number, value)

    run_generations(ask, tell, noisy(sphere(), 0.01, seed), trials, workers, DELAYS)
    return study


def level(study: optuna.Study) -> float:
    """The true value of the last twenty candidates, on average: where the distribution is."""
    return float(np.mean([sphere()(trial.params) for trial in study.trials[-20:]]))


def optunas(seed: int) -> optuna.samplers.CmaEsSampler:
    return optuna.samplers.CmaEsSampler(seed=seed, x0=START, sigma0=1 / 6, n_startup_trials=0)


def ours(seed: int, sigma: float = 1 / 6) -> CmaEsSampler:
    return CmaEsSampler(GENES, START, sigma=sigma, seed=seed)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.filterwarnings("ignore")
def test_late_results_are_not_wasted() -> None:
    """With 16 workers every result counts; Optuna's sampler drops the late ones and lags behind."""
    seeds = range(6)
    mine = np.mean([level(search(ours(s), workers=16, seed=s)) for s in seeds])
    theirs = np.mean([level(search(optunas(s), workers=16, seed=s)) for s in seeds])
    alone = np.mean([level(search(ours(s), workers=1, seed=s)) for s in seeds])
    assert mine > theirs + 0.01
    assert mine > alone - 0.06


def test_every_result_moves_the_distribution() -> None:
    study = search(ours(0), workers=16, seed=0, trials=100)
    sampler = ours(0)
    told = sampler.solutions(study)
    assert len(told) == 100
    low, high = np.zeros(8), np.ones(8)
    replay = Replay(low, high, sigma=1 / 6, seed=0)
    start = np.full(8, 0.2)
    batches = [replay.mean(start, told[: replay.population * k]) for k in range(1, 10)]
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(batches))


def test_same_as_plain_cmaes_when_nothing_is_late_or_injected() -> None:
    """One worker, no baselines: told the same solutions, the mean is cmaes' own."""
    study = search(ours(5), workers=1, seed=5, trials=60)
    plain = CMA(mean=np.full(8, 0.2), sigma=1 / 6, bounds=np.tile([0.0, 1.0], (8, 1)), seed=5)
    solutions = [(np.array([t.params[name] for name in GENES]), -t.value) for t in study.trials]
    size = plain.population_size
    for at in range(0, len(solutions) // size * size, size):
        plain.tell(solutions[at : at + size])
    mean = ours(5).mean(study)
    np.testing.assert_allclose([mean[name] for name in GENES], plain.mean, rtol=0, atol=1e-12)


def test_injected_solution_is_shortened_and_drawn_ones_are_not() -> None:
    optimizer = InjectableCMA(mean=np.zeros(6), sigma=0.3, seed=1)
    drawn = [optimizer.ask() for _ in range(2000)]
    assert max(optimizer.step_length(x) for x in drawn) < optimizer.longest_step
    far = np.full(6, 50.0)
    calm = InjectableCMA(mean=np.zeros(6), sigma=0.3, seed=1)
    solutions = [(calm.ask(), float(i)) for i in range(calm.population_size - 1)]
    calm.tell([(far, -1.0), *solutions])
    wild = CMA(mean=np.zeros(6), sigma=0.3, seed=1)
    wild.tell([(far, -1.0), *solutions])
    assert np.linalg.norm(calm.mean) < 2 < np.linalg.norm(wild.mean)


def test_starts_from_the_best_baseline() -> None:
    sampler = ours(0, sigma=0.01)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for value, fitness in ((0.1, 0.3), (0.8, 0.9), (0.5, 0.6)):
        attributes = {"kind": "baseline"}
        study.enqueue_trial(dict.fromkeys(GENES, value), user_attrs=attributes)
        study.tell(study.ask(GENES), fitness)
    point = np.array(list(study.ask(GENES).params.values()))
    np.testing.assert_allclose(point, 0.8, atol=0.05)


def test_baselines_are_not_taken_for_draws() -> None:
    """However many baselines there are, the distribution is still the initial one."""
    study = optuna.create_study(direction="maximize", sampler=ours(0))
    for value in np.linspace(0, 1, 30):
        study.enqueue_trial(dict.fromkeys(GENES, float(value)), user_attrs={"kind": "baseline"})
        study.tell(study.ask(GENES), -abs(value - 0.5))
    mean = ours(0).mean(study)
    best = max((t for t in study.trials), key=lambda t: t.value).params
    assert mean == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("kind", ["cmaes", "tpe", "random", "nsga2"])
def test_draw_depends_on_the_study_alone(kind: str) -> None:
    """A sampler made anew (a resumed study) draws what the old one would have drawn."""

    def make() -> BaseSampler:
        return make_sampler(kind, GENES, START, seed=4, sigma=0.2)

    study = search(make(), workers=1, seed=4, trials=31)
    copy = optuna.create_study(direction="maximize", sampler=make())
    copy.add_trials(study.trials)
    assert copy.ask(GENES).params == study.ask(GENES).params


@pytest.mark.parametrize("kind", ["cmaes", "tpe", "random", "nsga2"])
def test_seed_decides(kind: str) -> None:
    def draws(seed: int) -> list[dict[str, float]]:
        sampler = make_sampler(kind, GENES, START, seed=seed, sigma=0.2)
        return [t.params for t in search(sampler, workers=1, seed=0, trials=15).trials]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_one_gene_is_enough() -> None:
    genes = {"lambda": FloatDistribution(0.2, 1.5)}
    sampler = CmaEsSampler(genes, {"lambda": 1.0}, sigma=0.2, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(60):
        trial = study.ask(genes)
        study.tell(trial, -((trial.params["lambda"] - 0.6) ** 2))
    assert study.best_params["lambda"] == pytest.approx(0.6, abs=0.05)


def test_unknown_sampler_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(
        ValueError, match="'cma' is no sampler; allowed: cmaes, ascent, tpe, gp, random, nsga2"
    ):
        make_sampler("cma", GENES, START, seed=0, sigma=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_baseline_outside_the_genome_turns_optunas_sampler_off() -> None:
    """Why ours is our own: one finished trial without the genes leaves it nothing to search."""

    def drawn_by_cma(study: optuna.Study) -> bool:
        trial = study.ask(GENES)
        study.tell(trial, 0.5)
        return any("generation" in key for key in study.trials[-1].system_attrs)

    study = optuna.create_study(direction="maximize", sampler=optunas(0))
    study.tell(study.ask(GENES), 0.5)
    assert drawn_by_cma(study)
    study.tell(study.ask(), 0.5)
    assert not drawn_by_cma(study)
    mine = optuna.create_study(direction="maximize", sampler=ours(0, sigma=0.01))
    mine.enqueue_trial({}, user_attrs={"kind": "baseline"})
    mine.tell(mine.ask(), 0.5)
    point = np.array(list(mine.ask(GENES).params.values()))
    np.testing.assert_allclose(point, 0.2, atol=0.05)


@pytest.mark.filterwarnings("ignore")
def test_optunas_sampler_draws_otherwise_after_a_restart() -> None:
    """Why ours is our own: the seeds of its draws hang on how long the process has run."""
    study = search(optunas(4), workers=1, seed=4, trials=31)
    copy = optuna.create_study(direction="maximize", sampler=optunas(4))
    copy.add_trials(study.trials)
    assert copy.ask(GENES).params != study.ask(GENES).params


def broken_off(kind: str, directions: int) -> tuple[optuna.Study, optuna.Study]:
    """A study with baselines, one outside of the genome, with late, failed and running trials; and
    the same study as a new process finds it."""

    def study() -> optuna.Study:
        settings = {"n_startup_trials": 12} if kind in ("tpe", "gp") else {}
        size = 5 if kind in ("cmaes", "nsga2") else None
        sampler = make_sampler(kind, GENES, START, seed=4, population=size, settings=settings)
        return optuna.create_study(directions=["maximize"] * directions, sampler=sampler)

    first = study()
    for point in (START, None):
        first.enqueue_trial(dict(point or {}), user_attrs={"kind": "baseline"})
        first.tell(first.ask(GENES if point else {}), [0.1] * directions)
    flying = []
    for number in range(17):
        flying.append(first.ask(GENES))
        if len(flying) == 3:  # three workers, the last begun is the first to finish
            done = flying.pop()
            done.set_user_attr("told", number)
            point = np.array(list(done.params.values()))
            values = [-float(np.mean((point - at) ** 2)) for at in (0.3, 0.7)][:directions]
            failed = number % 6 == 5
            state = optuna.trial.TrialState.FAIL if failed else None
            first.tell(done, None if failed else values, state=state)
    second = study()
    second.add_trials(first.get_trials(deepcopy=True))
    return first, second


@pytest.mark.parametrize(
    ("kind", "directions"), [("tpe", 1), ("tpe", 2), ("gp", 1), ("nsga2", 1), ("nsga2", 2)]
)
def test_a_study_broken_off_goes_on_alike(kind: str, directions: int) -> None:
    first, second = broken_off(kind, directions)
    drawn = first.ask(GENES).params
    assert second.ask(GENES).params == drawn
    assert drawn not in [trial.params for trial in second.trials[:-1]]


@pytest.mark.filterwarnings("ignore")
def test_optunas_gp_raises_at_a_baseline_outside_of_the_genome() -> None:
    """Why ours shows it only what has a genome."""
    study, _ = broken_off("gp", 1)
    inner = optuna.samplers.GPSampler(seed=0, n_startup_trials=12)
    with pytest.raises(KeyError):
        inner.sample_relative(study, study.trials[-1], dict(GENES))


def test_generations_are_cut_by_arrival_and_keep_the_fittest() -> None:
    study, _ = broken_off("nsga2", 1)
    generations = Generations(GENES, 5)
    cut = generations.look(study)
    arrived = [t for g in cut for t in g]
    assert [len(g) for g in cut[:2]] == [6, 5]  # the baseline competes and does not count
    told = [t.user_attrs.get("told", t.number) for t in arrived]
    assert told == sorted(told)
    parents = ArrivalNSGAII(generations, seed=0).get_parent_population(study, 2)
    fittest = sorted((t for g in cut[:2] for t in g), key=lambda t: -t.value)[:5]
    assert {t.number for t in parents} == {t.number for t in fittest}


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsga2"])
def test_settings_reach_the_sampler(kind: str) -> None:
    key = {"tpe": "multivariate", "gp": "deterministic_objective", "nsga2": "mutation_prob"}[kind]
    values = {"tpe": (True, False), "gp": (True, False), "nsga2": (0.0, 1.0)}[kind]

    def draw(value: object) -> dict[str, float]:
        further = {} if kind == "nsga2" else {"n_startup_trials": 6}
        sampler = make_sampler(
            kind, GENES, START, seed=4, population=5, settings={key: value, **further}
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(broken_off("random", 1)[0].get_trials(deepcopy=True))
        return dict(study.ask(GENES).params)

    assert draw(values[0]) != draw(values[1])


_WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None  # as where it is not installed
import optuna
from optuna.distributions import FloatDistribution
from evomerge.search.sampler import make_sampler
{quiet}
genes = {{"weight/0": FloatDistribution(0.0, 1.0)}}
sampler = make_sampler("gp", genes, {{"weight/0": 0.5}}, seed=0, settings={{"n_startup_trials": 1}})
study = optuna.create_study(sampler=sampler)
for value in (0.1, 0.2, 0.3):
    study.tell(study.ask(genes), value)
optuna.logging.get_logger("optuna.study").warning("another warning")
"""


def test_optunas_gp_says_nothing_of_a_package_that_only_makes_it_faster() -> None:
    told = {}
    for quiet in ("", "from evomerge.search.storage import quiet; quiet()"):
        words = [sys.executable, "-c", _WITHOUT_GREENLET.format(quiet=quiet)]
        run = subprocess.run(words, capture_output=True, text=True, check=True)
        told[bool(quiet)] = run.stderr
    assert "greenlet" in told[False], "Optuna says it no more: quiet() need not care"
    assert "greenlet" not in told[True]
    assert "another warning" in told[True], "all else is still told"
