"""The finals: who is raced, who wins, what is kept of it, and what is shipped."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.search.finalists import (
    MEAN,
    RACE,
    best_baselines,
    best_searched,
    decided,
    draws_masks,
    entrants_of,
    under_seed,
)
from evomerge.search.race import Race, RoundResult
from evomerge.search.records import TrialRecord

FITNESS = {"1": 0.62, "2": 0.60, "3": 0.58}
DARE = """merge_method: dare_ties
base_model: base
mask_seed: 7
models:
  - {model: a, parameters: {weight: 1.0, density: 0.5}}
dtype: float32
"""


def result(items: int, error: float = 0.01, **fitness: float) -> RoundResult:
    scores = {name.removeprefix("t"): value for name, value in fitness.items()}
    names = list(scores)
    errors = {a: dict.fromkeys(names[i + 1 :], error) for i, a in enumerate(names)}
    return RoundResult(items, scores, errors)


def test_luck_on_the_search_items_is_outweighed_by_fresh_ones() -> None:
    race = Race(FITNESS, 100)
    assert race.leader == "1"
    assert race.remaining == ("1", "2", "3"), "nobody drops out before a fresh item"
    race = replace(race, rounds=(result(100, t1=0.55, t2=0.60, t3=0.58),))
    assert race.leader == "2"
    assert race.pooled("1") == pytest.approx(0.585)
    assert race.fresh("1") == pytest.approx(0.55)


def test_who_is_clearly_behind_drops_out_and_is_not_asked_again() -> None:
    race = Race(FITNESS, 100, (result(300, t1=0.62, t2=0.61, t3=0.50),))
    assert race.error("3", "1") == race.error("1", "3")
    assert race.error("1", "3") == pytest.approx(0.01 * (300 / 400) ** 0.5)
    assert race.remaining == ("1", "2")
    later = replace(race, rounds=(*race.rounds, result(100, t1=0.60, t2=0.70)))
    assert later.raced == ("1", "2")
    assert later.leader == "2"
    unknown = Race(FITNESS, 100, (RoundResult(300, {"1": 0.9, "2": 0.1}, {}),))
    assert unknown.remaining == ("1", "2"), "without an error nobody is clearly behind"


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0.001, 0.2), st.integers(1, 500)
)
def test_the_leader_remains_and_a_race_survives_json(
    values: list[float], error: float, items: int
) -> None:
    searched = {str(place): value for place, value in enumerate(values)}
    fresh = {f"t{place}": value for place, value in enumerate(reversed(values))}
    race = Race(searched, 50, (result(items, error, **fresh),))
    assert race.leader in race.remaining
    assert all(race.pooled(race.leader) >= race.pooled(name) for name in race.raced)
    assert Race.from_json(race.to_json()) == race


def test_what_a_mask_seed_is_worth() -> None:
    seeds = {"1": [0.5, 0.6, 0.7], "2": [0.6, 0.6, 0.6]}
    one = RoundResult(10, {"1": 0.6, "2": 0.6}, {}, seeds)
    assert Race(FITNESS, 10, (one,)).seed_spread == pytest.approx((0.01 / 2) ** 0.5)
    assert Race(FITNESS, 10, (one, one)).seed_spread == pytest.approx((0.01 / 2) ** 0.5)
    assert Race(FITNESS, 10, (replace(one, seeds={}),)).seed_spread is None


def trial(number: int, fitness: float | None, kind: str = "search", **more: object) -> TrialRecord:
    score = {} if fitness is None else {"task": {"acc": [fitness, 0.02]}}
    error = None if fitness is None else 0.02
    known = {"state": "complete", "recipe": f"recipe {number}", "scores": score, "error": error}
    known |= more
    return TrialRecord(number, kind, fitness=fitness, **known)  # type: ignore[arg-type]


TRIALS = [
    trial(0, 0.50, "baseline", label="base"),
    trial(1, 0.60, "baseline", label="uniform"),
    trial(2, 0.58, "baseline", label="only a"),
    trial(3, 0.66),
    trial(4, 0.70, state="pruned"),
    trial(5, 0.65),
    trial(6, 0.66, recipe="recipe 3"),
    trial(7, None, state="failed"),
]


def test_the_best_few_are_raced() -> None:
    assert [one.number for one in best_searched(TRIALS, 2)] == [3, 5], "6 is a twin, 4 was pruned"
    leg = trial(8, 0.9, leg={"climb": 0})
    assert [one.number for one in best_searched([*TRIALS, leg], 2)] == [3, 5], "8 is of a climb"
    assert [one.number for one in best_baselines(TRIALS)] == [1, 2], "base is clearly behind"
    unknown = [replace(one, error=None) if one.number == 0 else one for one in TRIALS]
    assert [one.number for one in best_baselines(unknown)] == [1, 2, 0], "nobody knows if it is"


def lacking(number: int, fitness: float, lack: float, kind: str = "search") -> TrialRecord:
    return trial(number, fitness, kind, constraints={"floor": lack}, label=f"label {number}")


def test_what_breaks_a_floor_that_others_keep_is_not_raced() -> None:
    trials = [
        lacking(0, 0.60, 0.1, "baseline"),
        lacking(1, 0.50, -0.1, "baseline"),
        lacking(2, 0.70, 0.2),
        lacking(3, 0.55, 0.0),
        lacking(4, 0.52, -0.3),
    ]
    assert [one.number for one in entrants_of(trials, 6)] == [3, 4, 1]
    found = decided(trials, {})
    assert found is not None
    assert (found.choice.number, [one.number for one in found.baselines]) == (3, [1])
    unkept = decided([*trials[:1], *trials[2:]], {})
    assert unkept is not None
    assert [one.number for one in unkept.baselines] == [0], "it has to be beaten nevertheless"
    assert [one.number for one in entrants_of([*trials[:1], *trials[2:]], 6)] == [3, 4]


def test_where_no_trial_keeps_the_floors_the_least_broken_is_shipped_without_a_race() -> None:
    trials = [lacking(0, 0.60, 0.3, "baseline"), lacking(1, 0.70, 0.2), lacking(2, 0.4, 0.1)]
    assert [one.number for one in entrants_of(trials, 6)] == [2]
    found = decided(trials, {})
    assert found is not None
    assert (found.choice.number, found.baselines[0].number) == (2, 0)


def fact(rounds: list[RoundResult], **more: object) -> dict[str, object]:
    searched = {"3": 0.66, "5": 0.65, MEAN: 0.64, "1": 0.60, "2": 0.58}
    mean = {"genome": {"weight/a": 0.5}, "recipe": "recipe of the mean", "fitness": 0.64}
    race = Race(searched, 100, tuple(rounds)).to_json()
    return {RACE: {"after": 8, "finished": True, "mean": mean, "race": race, **more}}


def test_the_race_decides_until_trials_are_added() -> None:
    before = decided(TRIALS, {})
    assert before is not None
    assert (before.choice.number, before.raced) == (3, False)
    fresh = {"t3": 0.55, "t5": 0.60, "t1": 0.61, "t2": 0.5, f"t{MEAN}": 0.66}
    facts = fact([result(400, **fresh)])
    after = decided(TRIALS, facts)
    assert after is not None
    assert after.raced
    assert after.choice == after.winner
    assert (after.choice.kind, after.choice.recipe) == (MEAN, "recipe of the mean")
    assert [one.number for one in after.baselines] == [1, 2]
    assert decided([*TRIALS, trial(8, 0.1)], facts) == before
    assert decided(TRIALS, fact([result(400, **fresh)], finished=False)) == before


def test_the_best_baseline_is_not_the_one_that_stayed_longest() -> None:
    # The leader resembles baseline 1: its gap is soon sure, though it is smaller than 2's.
    first = result(100, t3=0.70, t5=0.60, t1=0.64, t2=0.60)
    found = decided(TRIALS, fact([first, result(100, t3=0.70, t2=0.60)]))
    assert found is not None
    assert found.choice.number == 3
    assert [one.number for one in found.baselines] == [1, 2]


def test_a_baseline_that_wins_the_race_is_shipped() -> None:
    fresh = {"t3": 0.55, "t5": 0.60, "t1": 0.70, "t2": 0.5, f"t{MEAN}": 0.60}
    found = decided(TRIALS, fact([result(400, **fresh)]))
    assert found is not None
    assert found.choice.label == "uniform"
    assert found.baselines[0] == found.choice
    assert found.winner is not None
    assert found.winner.number == 5


def test_another_mask_seed_changes_nothing_else() -> None:
    assert draws_masks(DARE)
    assert not draws_masks(DARE.replace("dare_ties", "ties"))
    assert not draws_masks(DARE.replace("0.5", "1.0")), "nothing is dropped"
    assert not draws_masks(DARE.replace(", density: 0.5", "")), "1 by default"
    assert draws_masks(DARE.replace("0.5", "[1.0, 0.9]"))
    assert draws_masks(DARE.replace("0.5", "[{filter: mlp, value: 0.5}, {value: 1.0}]"))
    assert under_seed(DARE, 0) == DARE
    assert "mask_seed: 9" in under_seed(DARE, 2)
    assert under_seed(DARE, 2).replace("mask_seed: 9", "mask_seed: 8") == under_seed(DARE, 1)
