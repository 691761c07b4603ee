"""What a search and its finals may score, and that they keep to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.cli.planned import spending_words
from evomerge.search.budget import Budget, cost, nobody
from evomerge.search.evaluator import CandidateEvaluator
from evomerge.search.pool import Job, LocalPool, Outcome
from evomerge.search.preparation import Preparation, prepare
from evomerge.search.race import Race
from evomerge.search.session import SearchOutcome, Session
from evomerge.search.spending import affordable, items_raced, spending
from evomerge.search.storage import StudyStore, create_store
from evomerge.space import load_space

QUICKSTART = Path(__file__).resolve().parents[2] / "search_spaces" / "quickstart"
ITEMS = 40
"""The search items of a trial, and the race's of a finalist."""


def prepared(folder: Path, **changes: Any) -> Preparation:
    """Two of the quickstart's models, 20 items of each of two tasks, 30 held out."""
    tasks = [
        {"task": f"quickstart_{name}", "items": 20, "holdout_task": f"quickstart_{name}_heldout"}
        for name in ("add", "most")
    ]
    data = {
        "base_model": str(QUICKSTART / "models/base"),
        "models": [str(QUICKSTART / "models" / name) for name in ("add", "most")],
        "merge_method": "dare_ties",
        "dtype": "float32",
        "genome": {"weight": [0.0, 1.2], "density": [0.3, 0.9]},
        "include_path": str(QUICKSTART / "tasks"),
        "tasks": tasks,
        "holdout": {"items": 30},
        "search": {"sampler": "random", "scan": False, "rungs": "none"},
        **changes,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return prepare(load_space(folder / "space.yaml"))


class Counting(LocalPool):
    """Counts the scored items by their part."""

    scored: Counter[str]

    def wait(self, timeout: float) -> list[Outcome]:
        outcomes = super().wait(timeout)
        for outcome in outcomes:
            self.scored[outcome.job.part.split()[0]] += outcome.items
        return outcomes


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    """Finalists are raced under three mask seeds."""
    return prepared(tmp_path_factory.mktemp("masked"))


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return create_store("test", f"sqlite:///{tmp_path}/study.db")


Run = Callable[..., tuple[SearchOutcome, Counter[str]]]


@pytest.fixture
def run(store: StudyStore) -> Run:
    scored: Counter[str] = Counter()

    def go_on(prepared: Preparation, **limits: Any) -> tuple[SearchOutcome, Counter[str]]:
        """The study's next run; the items that all its runs have scored."""
        plan = replace(prepared.plan, threads=1, device="cpu")

        def make() -> Counting:
            pool = Counting(plan)
            pool.scored = scored
            return pool

        again = create_store("test", store.url)
        outcome = Session(prepared, again, make, Budget(**limits), nobody).run()
        return outcome, scored

    return go_on


def test_search_and_race_together_keep_to_the_items(
    masked: Preparation, store: StudyStore, run: Run
) -> None:
    """All ten finalists' race under three seeds would cost 1200 items."""
    outcome, scored = run(masked, trials=None, items=40 * ITEMS)
    assert scored["search"] == 35 * ITEMS, "an eighth is the race's"
    assert 2 * 3 * ITEMS // 3 <= scored["race"] <= 5 * ITEMS
    assert scored["holdout"] > 0
    assert outcome.verdict is not None
    assert items_raced(store.facts) == scored["race"]
    first, *_ = outcome.notes
    assert first.startswith("Of 8 finalists that were left, ")
    assert "ran round 1 of 3 of the race: what --items leaves pays for no more." in first


def test_races_before_count_for_a_study_that_goes_on(
    masked: Preparation, store: StudyStore, run: Run
) -> None:
    _, scored = run(masked, trials=None, items=40 * ITEMS)
    first = scored["race"]
    _, scored = run(masked, trials=None, items=80 * ITEMS)
    assert scored["race"] > first
    assert scored["search"] > 35 * ITEMS
    assert scored["search"] + scored["race"] <= 80 * ITEMS
    assert items_raced(store.facts) == scored["race"]
    before = scored.copy()
    _, scored = run(masked, trials=None, items=80 * ITEMS)
    assert scored == before, "nothing is done twice"


def test_a_race_that_two_cannot_run_is_left_out_told_and_goes_on_when_it_can(
    masked: Preparation, run: Run
) -> None:
    finals = masked.space.finals.model_copy(update={"mask_seeds": 20})
    many = replace(masked, space=masked.space.model_copy(update={"finals": finals}))
    outcome, scored = run(many, trials=8, items=11 * ITEMS)
    assert (scored["search"], scored["race"]) == (8 * ITEMS, 0)
    assert outcome.choice is not None
    assert outcome.verdict is not None
    (note,) = outcome.notes
    assert note.startswith("No race: what --items leaves does not pay for two finalists")
    outcome, scored = run(many, trials=8, items=1000 * ITEMS)
    assert scored["search"] == 8 * ITEMS
    assert scored["race"] > 20 * ITEMS
    assert not outcome.notes


def test_a_climb_that_the_budget_ends_is_raced_where_it_stands(
    tmp_path: Path, store: StudyStore, run: Run
) -> None:
    settings = {"scan": False, "rungs": "none"}
    climbing = prepared(tmp_path, search={"sampler": "ascent", **settings})
    outcome, scored = run(climbing, trials=None, items=25 * ITEMS)
    records = store.records()
    assert [one.leg is not None for one in records] == [False] * 4 + [True] * 4
    assert scored["search"] == (4 + 4 * 4 + 1) * ITEMS, "baselines, legs, and where they end"
    mean = store.facts["race"]["mean"]["genome"]
    first = [one for one in records if one.leg is not None and one.leg["climb"] == 0]
    walk = first[-1].walk
    assert walk is not None
    genes, ends = climbing.genes, walk["end"]["point"]
    shares = [(mean[gene.name] - gene.low) / (gene.high - gene.low) for gene in genes]
    assert shares == pytest.approx(ends)
    assert set(store.facts["race"]["race"]["searched"]) >= {"mean", str(records[-1].number)}
    assert outcome.choice is not None


def test_without_a_limit_the_race_costs_what_the_plan_says_at_most(
    masked: Preparation, run: Run
) -> None:
    plan = spending(masked)
    assert plan.search is None
    assert plan.race == (6 + 1 + 3) * 3 * ITEMS + ITEMS
    assert plan.holdout == 4 * 60
    outcome, scored = run(masked, trials=12)
    assert 0 < scored["race"] <= plan.race
    assert 0 < scored["holdout"] <= plan.holdout
    assert not outcome.notes


def test_the_plan_of_a_budget(masked: Preparation) -> None:
    small, large = spending(masked, 20 * ITEMS), spending(masked, 1000 * ITEMS)
    assert (small.search, small.race) == (17.5 * ITEMS, 2.5 * ITEMS)
    assert (large.search, large.race) == (1000 * ITEMS - 31 * ITEMS, 31 * ITEMS)
    later = spending(masked, 20 * ITEMS, raced=100)
    assert (later.search, later.race) == (17.5 * ITEMS - 100, 2.5 * ITEMS)


def test_a_race_that_there_is_not_costs_nothing(masked: Preparation) -> None:
    without = replace(masked, race_items=None)
    assert (spending(without, 800).search, spending(without, 800).race) == (800, 0)


def test_of_those_who_cannot_all_be_paid_the_best_and_a_baseline_run() -> None:
    race = Race({"7": 0.8, "8": 0.7, "2": 0.5, "1": 0.4}, 0)
    costs = dict.fromkeys(race.searched, 10)
    baselines = {"1", "2"}
    assert affordable(race, costs, None, baselines) == ("7", "8", "2", "1")
    assert affordable(race, costs, 40, baselines) == ("7", "8", "2", "1")
    assert affordable(race, costs, 39, baselines) == ("7", "8", "2")
    assert affordable(race, costs, 29, baselines) == ("7", "2")
    assert affordable(race, costs, 19, baselines) == ()
    assert affordable(race, {**costs, "2": 25}, 39, baselines) == ("7", "2")
    assert affordable(race, costs, 79, baselines, True) == ("7", "8", "2"), "half is kept"
    assert affordable(race, costs, 39, baselines, True) == ("7", "8", "2"), "half would be too few"
    ahead = Race({"2": 0.9, "7": 0.8, "8": 0.7}, 0)
    assert affordable(ahead, costs, 20, baselines) == ("2", "7")


def test_several_goals_compare_more_on_the_held_out_items(tmp_path: Path) -> None:
    """Every point that is judged, and every baseline that may have to be passed."""
    several = prepared(tmp_path, objective="pareto")
    points = several.space.finals.candidates
    assert spending(several).holdout == (points + len(several.baselines)) * 60


def test_how_far_the_last_trial_may_go_beyond_its_share(
    tmp_path: Path, masked: Preparation
) -> None:
    """By less than a trial; a first leg, that may fail once, by less than its slopes and score."""
    climbing = prepared(tmp_path, search={"sampler": "ascent", "scan": False, "rungs": "none"})
    assert spending(masked, 20 * ITEMS).beyond == ITEMS - 1
    assert spending(climbing, 20 * ITEMS).beyond == ITEMS - 1
    assert spending(climbing, 9 * ITEMS).search == 315, "of 4 baselines, a failure, a leg: 360"
    assert spending(climbing, 9 * ITEMS).beyond == 360 - 315
    assert spending(climbing, 10 * ITEMS).beyond == ITEMS - 1, "350 of 360"
    few = spending(climbing, 5 * ITEMS)
    assert (few.search, few.beyond, few.least) == (175, 159, 0)
    words = spending_words(few, 200)
    assert "175 of 200 items, its last trial up to 159 more; the race of the finalists has" in words
    assert "rest, at least 0: all of them might need" in words
    assert spending(climbing, 4 * ITEMS).beyond == ITEMS - 1, "the last one is a baseline"
    stopped = prepared(tmp_path, search={"sampler": "ascent", "scan": False, "rungs": [0.5]})
    assert spending(stopped, 1).beyond == ITEMS - 1, "the last one is the base"
    assert spending(stopped, 2 * ITEMS).beyond == 4 * ITEMS - 1


def test_the_plan_of_a_study_that_goes_on(tmp_path: Path) -> None:
    climbing = prepared(tmp_path, search={"sampler": "ascent", "scan": False, "rungs": "none"})
    over = spending(climbing, 1000, raced=100, scored=900)
    assert (over.search, over.beyond, over.least) == (775, 0, 0)
    words = spending_words(over, 1000)
    told = "775 of 1000 items (its trials have scored 900, earlier races 100); the race of the"
    assert told in words
    assert "the rest, at least 0: all" in words
    short = spending(climbing, 1000, raced=950)
    assert (short.search, short.race, short.beyond, short.least) == (0, 50, 0, 50)
    spent = spending(climbing, 1000, raced=100, scored=800)
    assert (spent.search, spent.beyond, spent.least) == (775, 0, 100)
    going = spending(climbing, 1000, raced=100, scored=700)
    assert (going.search, going.beyond, going.least) == (775, ITEMS - 1, 125 - ITEMS + 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_first_leg_goes_as_far_beyond_as_is_told(
    tmp_path: Path, store: StudyStore, run: Run, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbing = prepared(tmp_path, search={"sampler": "ascent", "scan": False, "rungs": "none"})
    score = CandidateEvaluator.run

    def failing(self: CandidateEvaluator, job: Job) -> Outcome:
        if fails and job.key == len(climbing.baselines):
            return Outcome(job, failure="out of memory")
        return score(self, job)

    monkeypatch.setattr(CandidateEvaluator, "run", failing)
    plan = spending(climbing, 6 * ITEMS)
    run(climbing, trials=None, items=6 * ITEMS)
    assert plan.search == 6 * ITEMS - 30
    records = store.records()
    assert [one.state for one in records if one.leg] == ["failed"] * fails + ["complete"]
    scored = sum(cost(one, ITEMS) for one in records)
    assert scored == (8 + fails) * ITEMS
    assert plan.search < scored <= plan.search + plan.beyond


def test_models_that_floors_hang_on_are_scored_on_the_held_out_items(tmp_path: Path) -> None:
    """Which model is the best one differs by task."""
    tasks = [
        {
            "task": f"quickstart_{name}",
            "items": 20,
            "holdout_task": f"quickstart_{name}_heldout",
            "min": limit,
        }
        for name, limit in (("add", "base - 0.1"), ("most", "best - 0.1"), ("kinds", "best"))
    ]
    assert spending(prepared(tmp_path, tasks=tasks)).holdout == (1 + 4) * 90, "no more there are"
    models = [str(QUICKSTART / "models" / name) for name in ("add", "most", "kinds", "count")]
    many = prepared(tmp_path, tasks=tasks, models=models)
    assert len(many.baselines) == 6
    assert spending(many).holdout == (1 + 6) * 90
    plain = [{**task, "min": 0.1} for task in tasks]
    assert spending(prepared(tmp_path, tasks=plain, models=models)).holdout == (1 + 3) * 90
    base = [{**task, "min": "base - 0.1"} for task in tasks]
    assert spending(prepared(tmp_path, tasks=base, models=models)).holdout == (1 + 4) * 90
