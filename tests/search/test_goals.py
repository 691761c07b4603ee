"""Several goals: known fronts, and a study of two that is broken off and gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from evomerge.search.goals import front, spread
from evomerge.search.records import PlannedBaseline, TrialRecord
from evomerge.search.sampler import make_sampler
from evomerge.search.storage import StudyStore, create_store, open_store

GENES = {f"weight/{i}": FloatDistribution(0.0, 1.0) for i in range(4)}
GRID = st.integers(0, 4).map(float)


def point(number: int, values: tuple[float, ...]) -> TrialRecord:
    return TrialRecord(number, "search", "complete", fitness=sum(values), values=values)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(GRID, GRID, GRID), max_size=25))
def test_the_front_is_what_nothing_dominates(rows: list[tuple[float, ...]]) -> None:
    found = front([point(number, values) for number, values in enumerate(rows)])
    study = optuna.create_study(directions=["maximize"] * 3)
    study.add_trials([optuna.trial.create_trial(values=values) for values in rows])
    assert {r.values for r in found} == {tuple(t.values) for t in study.best_trials}
    assert [r.number for r in found] == [rows.index(r.values) for r in found]


def test_spread_takes_the_fittest_and_the_ends() -> None:
    angles = np.linspace(0, np.pi / 2, 40)
    records = [point(n, (float(np.cos(a)), float(np.sin(a)))) for n, a in enumerate(angles)]
    numbers = [record.number for record in spread(front(records), 5)]
    fittest = max(records, key=lambda record: record.fitness or 0).number
    assert {0, 39, fittest} <= set(numbers)
    assert max(np.diff(numbers)) <= 20
    assert spread(records[:3], 5) == records[:3]


def opened(path: Path) -> StudyStore:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store = create_store("two", f"sqlite:///{path}", goals=("a", "b"))
    start = dict.fromkeys(GENES, 0.5)
    store.use(make_sampler("nsga2", GENES, start, seed=5, population=6))
    store.plan([PlannedBaseline("outside", "", None), PlannedBaseline("base", "", start)])
    return store


def searched(store: StudyStore, until: int) -> None:
    """Two spheres; the front is the segment between their centres. Every seventh trial fails."""
    with store.batch():  # written at the end, whole
        while (trial := store.ask(GENES)).number < until - 1:
            told(store, trial)
        told(store, trial)


def told(store: StudyStore, trial: TrialRecord) -> None:
    if trial.number % 7 == 6:
        store.fail(trial.number, "not finite")
        return
    genes = np.array(list(trial.genome.values()) or [0.0])
    values = [1 - float(np.mean((genes - at) ** 2)) for at in (0.3, 0.7)]
    store.tell(trial.number, sum(values) / 2, values=values)


def test_a_study_of_two_goals_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.db", tmp_path / "broken.db"
    searched(opened(whole), 40)
    for until in (9, 21, 40):
        searched(opened(broken), until)
    first, second = (open_store("two", f"sqlite:///{path}").records() for path in (whole, broken))
    assert first == second
    assert [r.state for r in first].count("failed") == 5
    assert all(len(r.values) == 2 for r in first if r.state == "complete")
    assert first[8].fitness == pytest.approx(sum(first[8].values) / 2, abs=0)


def test_nsga2_comes_nearer_to_the_front_than_random(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    searched(store, 100)
    late = [r for r in store.records()[70:] if r.state == "complete"]
    # On the front the two distances from the centres add up to the centres' own: 0.4.
    excess = [sum(np.sqrt(1 - np.array(r.values))) - 0.4 for r in late]
    draws = np.random.default_rng(0).random((2000, 4))
    uniform = sum(np.sqrt(np.mean((draws - at) ** 2, axis=1)) for at in (0.3, 0.7)) - 0.4
    assert np.median(excess) < 0.5 * np.median(uniform)
