"""Several goals and floors, from the space to the exported recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from tests.cli.worlds import SPACE, World, run, said, strict_json, table, told, trials

NSGA2 = {"seed": 3, "population": 4, "scan": False}
ADD, MOST = SPACE["tasks"]
GOALS = ["quickstart_add", "quickstart_most"]
FLOOR = "quickstart_most acc >= base - 0.1"


def with_goals(world: World, name: str = "front", **changes: Any) -> Path:
    return world.space(name, objective="pareto", search=NSGA2, **changes)


def with_floor(world: World, name: str = "floor", **changes: Any) -> Path:
    return world.space(name, tasks=[ADD, {**MOST, "min": "base - 0.1"}], **changes)


def searched(*words: object) -> Any:
    result = run("search", *words)
    assert result.exit_code == 0, result.stderr
    return result


def dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def test_a_front_is_searched_judged_shown_and_exported(world: World) -> None:
    result = searched(with_goals(world), "--trials", 16)
    assert "the front of" in said(result)
    assert "points of the front on 60 held-out items" in said(result)
    assert "Any other point: evomerge export front --trial N" in said(result)

    rows = table(world.study("front"))
    values = rows[[f"goal/{goal}" for goal in GOALS]].to_numpy().tolist()
    scores = rows[[f"score/{goal}/acc,none" for goal in GOALS]].to_numpy().tolist()
    assert values == scores
    for number, on_front in enumerate(rows.front):
        beaten = any(dominates(other, values[number]) for other in values)
        earlier = values.index(values[number]) < number
        assert on_front == (not beaten and not earlier)
    assert (rows.state == "complete").all(), "no candidate is stopped early"

    data = strict_json(run("best", "front", "--json").stdout)
    assert data["verdict"] is None
    assert data["race"] is None
    front = {point["trial"]: point for point in data["front"]}
    assert set(front) == set(rows.trial[rows.front])
    assert data["choice"]["trial"] in front
    assert data["choice"]["fitness"] == pytest.approx(rows.fitness.max())
    held_out = json.loads((world.study("front") / "heldout.json").read_text())
    assert held_out == data["front_verdict"]
    assert held_out["goals"] == GOALS
    assert {point["number"] for point in held_out["points"]} <= set(front)
    for point in held_out["points"]:
        assert list(front[point["number"]]["goals"].values()) == point["search_values"]
        assert [lead["goal"] for lead in point["leads"]] == GOALS
    in_words = said(run("best", "front"))
    assert "the fittest of the front by the tasks' weights" in in_words

    best = yaml.safe_load((world.study("front") / "best.yaml").read_text())
    assert best == yaml.safe_load(data["choice"]["recipe"])
    for number, point in front.items():
        exported = yaml.safe_load(run("export", "front", "--trial", number).stdout)
        assert exported == yaml.safe_load(point["recipe"])

    study = optuna.load_study(
        study_name="front", storage=f"sqlite:///{world.study('front')}/study.db"
    )
    assert study.metric_names == GOALS
    assert {tuple(trial.values) for trial in study.best_trials} == {
        tuple(point["goals"].values()) for point in front.values()
    }


def test_a_front_goes_on_where_it_stopped_and_is_judged_anew(world: World) -> None:
    searched(with_goals(world), "--trials", 6)
    before = json.loads((world.study("front") / "heldout.json").read_text())
    result = searched(with_goals(world), "--trials", 13)
    assert "6 trials are finished" in told(result)
    searched(with_goals(world), "--study", "whole", "--trials", 13)
    assert trials("front") == trials("whole")
    after = json.loads((world.study("front") / "heldout.json").read_text())
    assert (before["after"], after["after"]) == (6, 13)
    assert after == json.loads((world.study("whole") / "heldout.json").read_text())
    again = searched(with_goals(world), "--trials", 13)
    assert "points of the front on 60 held-out items" in said(again), "it is kept in the study"


def test_another_objective_is_another_space(world: World) -> None:
    searched(with_goals(world), "--trials", 5)
    one = world.space("front", search=NSGA2 | {"sampler": "nsga2"})
    result = run("search", one, "--trials", 8)
    assert result.exit_code == 1
    assert 'was made from another space: objective is not given, was "pareto"' in told(result)
    floor = with_goals(world, tasks=[ADD, {**MOST, "min": 0.3}])
    result = run("search", floor, "--trials", 8)
    assert result.exit_code == 1
    assert "tasks[1].min is 0.3, was not given" in told(result)
    assert len(trials("front")) == 5


def test_patience_is_refused_where_there_are_several_goals(world: World) -> None:
    result = run("search", with_goals(world), "--trials", 8, "--patience", 3)
    assert result.exit_code == 1
    assert "--patience: 3 has no effect under objective: pareto" in told(result)
    assert not world.study("front").exists()


def test_a_floor_is_searched_with_judged_and_shown(world: World) -> None:
    result = searched(with_floor(world), "--trials", 18)
    rows = table(world.study("floor"))
    lacks = rows[f"floor/{FLOOR}"]
    score = rows["score/quickstart_most/acc,none"]
    assert lacks.tolist() == pytest.approx((score[0] - 0.1 - score).tolist(), abs=1e-9)
    assert "quickstart_most acc >= base - 0.1 (" in said(result)
    assert f"{int((lacks <= 0).sum())} of 18 complete trials keep them" in said(result)
    assert "Floors on the held-out items: quickstart_most acc >= base - 0.1: " in said(result)

    data = strict_json(run("best", "floor", "--json").stdout)
    assert data["best"]["fitness"] == pytest.approx(rows.fitness[lacks <= 0].max())
    assert data["best"]["lacks"][FLOOR] <= 0
    (check,) = data["verdict"]["floors"]
    assert check["floor"] == FLOOR
    assert check["margin"] == pytest.approx(check["value"] - check["limit"])
    raced = {one["trial"] for one in data["race"]["finalists"]}
    assert all(lacks[number] <= 0 for number in raced if number is not None)

    storage = f"sqlite:///{world.study('floor')}/study.db"
    study = optuna.load_study(study_name="floor", storage=storage)
    assert [t.constraints[FLOOR] for t in study.trials] == pytest.approx(lacks.tolist(), abs=1e-9)


def test_floors_and_goals_together(world: World) -> None:
    space = with_goals(world, "both", tasks=[ADD, {**MOST, "min": "base - 0.1"}])
    searched(space, "--trials", 12)
    rows = table(world.study("both"))
    lacks = rows[f"floor/{FLOOR}"]
    keep = lacks <= 0
    assert keep.any()
    assert not rows.front[~keep].any()
    held_out = json.loads((world.study("both") / "heldout.json").read_text())
    for point in held_out["points"]:
        assert [one["floor"] for one in point["floors"]] == [FLOOR]


def test_check_tells_goals_and_floors(shared: World) -> None:
    tasks = [{**ADD, "min": 0.2}, {**MOST, "min": "best - 0.1"}]
    space = with_goals(shared, "told", tasks=tasks)
    words = said(run("check", space))
    assert "2 goals: quickstart_add, quickstart_most" in words
    assert "Floors: quickstart_add acc >= 0.2; quickstart_most acc >= best - 0.1" in words
    data = strict_json(run("check", space, "--json").stdout)
    assert data["objective"] == "pareto"
    assert data["goals"] == GOALS
    assert data["floors"] == ["quickstart_add acc >= 0.2", "quickstart_most acc >= best - 0.1"]
    plain = strict_json(run("check", shared.space("plain"), "--json").stdout)
    assert (plain["objective"], plain["goals"], plain["floors"]) == ("weighted", ["fitness"], [])


def test_floors_on_the_wrong_side_or_of_no_model_are_refused_together(shared: World) -> None:
    space = shared.write(
        "wrong.yaml",
        """\
models: [quickstart/models/add, quickstart/models/most]
merge_method: linear
genome: {weight: [0.0, 1.0]}
include_path: quickstart/tasks
tasks:
  - {task: quickstart_add, metric: bits_per_byte, items: 10, min: 0.4}
  - {task: quickstart_most, items: 10, min: base - 0.1}
  - {task: quickstart_kinds, items: 10, weight: -1, min: 0.2}
  - {task: quickstart_count, items: 10, weight: 0, max: 0.2}
""",
    )
    result = run("check", space, "--json")
    faults = {one["place"]: one["problem"] for one in strict_json(result.stdout)["faults"]}
    assert faults == {
        f"{space}:6: tasks[0].min": "0.4 is refused: bits_per_byte,none of quickstart_add is to be "
        "low; write max: 0.4",
        f"{space}:7: tasks[1].min": "base - 0.1 is refused: no base model is among the baselines "
        "of this space; write a number",
        f"{space}:8: tasks[2].min": "0.2 is refused: acc,none of quickstart_kinds is to be low; "
        "write max: 0.2",
        f"{space}:9: tasks[3].max": "0.2 is refused: acc,none of quickstart_count is to be high; "
        "write min: 0.2",
    }
    right = yaml.safe_load(space.read_text())
    for place, key, value in ((0, "max", 0.4), (2, "max", "best"), (3, "min", 0.2)):
        right["tasks"][place].pop("min", None)
        right["tasks"][place].pop("max", None)
        right["tasks"][place][key] = value
    right["tasks"][1]["min"] = "best - 0.1"
    again = run("check", shared.write("right.yaml", yaml.safe_dump(right)), "--json")
    assert strict_json(again.stdout)["floors"][2] == "quickstart_kinds acc <= best"


def test_floors_beyond_their_metric_are_refused(shared: World) -> None:
    space = shared.write(
        "beyond.yaml",
        """\
base_model: quickstart/models/base
models: [quickstart/models/add, quickstart/models/most]
merge_method: linear
genome: {weight: [0.0, 1.0]}
include_path: quickstart/tasks
tasks:
  - {task: quickstart_add, items: 10, min: 60}
  - {task: quickstart_most, items: 10, min: base - 1}
  - {task: quickstart_kinds, metric: gold_prob, items: 10, weight: -1, max: 101.5}
  - {task: quickstart_count, metric: bits_per_byte, items: 10, max: 60}
""",
    )
    result = run("check", space, "--json")
    faults = {one["place"]: one["problem"] for one in strict_json(result.stdout)["faults"]}
    share = "lies between 0 and 1; write a share"
    assert faults == {
        f"{space}:7: tasks[0].min": f"60 is refused: acc,none of quickstart_add {share}, such as "
        "0.6",
        f"{space}:8: tasks[1].min": f"base - 1.0 is refused: acc,none of quickstart_most {share}, "
        "such as base - 0.01",
        f"{space}:9: tasks[2].max": f"101.5 is refused: gold_prob,none of quickstart_kinds {share}",
    }
    right = (
        space.read_text().replace("60}", "1}", 1).replace("- 1}", "- 0.9}").replace("101.5", "0")
    )
    told = run("check", shared.write("within.yaml", right), "--json")
    assert strict_json(told.stdout)["floors"][0] == "quickstart_add acc >= 1"
