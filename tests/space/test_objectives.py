"""Several goals and floors in a space: what is read, what goes together, what is refused where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.space import SearchSpace, load_space
from evomerge.space.limits import Limit

from .conftest import Load, Write

HEAD = """
base_model: models/base
models: [models/math, models/code, models/chat]
merge_method: dare_ties
genome: {density: [0.1, 1.0]}
"""
TWO = HEAD + "objective: pareto\ntasks: [arc_easy, {task: arc_challenge, weight: 2}]\n"


def refused(write: Write, text: str) -> list[str]:
    path = write(text)
    with pytest.raises(SpaceError) as raised:
        load_space(path)
    return [str(fault).removeprefix(f"{path}:") for fault in raised.value.faults]


def test_several_goals_are_searched_by_nsga2_unless_another_is_named(load: Load) -> None:
    plain = load(HEAD + "tasks: [arc_easy]\n")
    assert (plain.objective, plain.several_goals, plain.search.sampler) == (
        "weighted",
        False,
        "ascent",
    )
    assert load(TWO).several_goals
    assert load(TWO).search.sampler == "nsga2"
    assert load(TWO + "search: {population: 8, seed: 3}\n").search.sampler == "nsga2"
    for sampler in ("nsga2", "tpe", "gp", "random"):
        assert load(TWO + f"search: {{sampler: {sampler}}}\n").search.sampler == sampler
    again = SearchSpace.model_validate_json(load(TWO).model_dump_json())
    assert again.search == load(TWO).search


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            "search: {sampler: cmaes}",
            "7: search.sampler: 'cmaes' is refused: it searches one goal; objective: pareto takes "
            "nsga2, tpe, gp, random",
        ),
        ("search: {sampler: ascent}", "7: search.sampler: 'ascent' is refused: it searches one"),
        ("search: {rungs: [0.5]}", "7: search.rungs: no candidate is stopped early under objec"),
        ("search: {patience: 4}", "7: search.patience: 4 has no effect under objective: pareto"),
        ("finals: {items: 50}", "7: finals.items: 50 has no effect under objective: pareto"),
        ("search: {sigma: 0.1}", "7: search.sigma: 0.1 has no effect: nsga2 does not read it"),
    ],
)
def test_what_does_not_go_with_several_goals(write: Write, further: str, message: str) -> None:
    (found,) = refused(write, TWO + further)
    assert found.startswith(message), found


@pytest.mark.parametrize(
    ("tasks", "number"), [("[arc_easy]", 1), ("[{task: a, weight: 0}, {task: b, weight: -1}]", 1)]
)
def test_one_goal_is_not_several(write: Write, tasks: str, number: int) -> None:
    (found,) = refused(write, HEAD + f"objective: pareto\ntasks: {tasks}\n")
    assert found.startswith("5: objective: 'pareto' needs at least 2 tasks whose weight is not 0")
    assert f"there is {number}" in found


def test_other_objectives_are_refused_with_the_allowed_ones(write: Write) -> None:
    (found,) = refused(write, HEAD + "objective: best\ntasks: [arc_easy, boolq]\n")
    assert found == "5: objective: 'best' is refused: must be 'weighted' or 'pareto'"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.5", Limit(0.5)),
        ("3", Limit(3.0)),
        ("-0.25", Limit(-0.25)),
        ("base", Limit(0.0, "base")),
        ("base - 0.02", Limit(-0.02, "base")),
        ("base-0.02", Limit(-0.02, "base")),
        ("best + 1.", Limit(1.0, "best")),
        ("best - .5e-1", Limit(-0.05, "best")),
    ],
)
def test_limits_are_read(load: Load, text: str, limit: Limit) -> None:
    space = load(HEAD + f"tasks: [{{task: arc_easy, min: {text}}}]\n")
    assert space.tasks[0].min_ == limit
    assert space.tasks[0].max_ is None
    again = SearchSpace.model_validate_json(space.model_dump_json())
    assert again.tasks == space.tasks


@given(
    st.builds(
        Limit, st.floats(-1e6, 1e6).map(lambda x: x + 0.0), st.sampled_from([None, "base", "best"])
    )
)
def test_a_limit_is_read_as_it_was_written(limit: Limit) -> None:
    assert Limit.parse(limit.as_data()) == limit


@pytest.mark.parametrize(
    "text",
    [
        "bst",
        "base - x",
        "base * 0.9",
        "yes",
        ".inf",
        ".nan",
        "[1]",
        "base - -1",
        "base + 1e999",
        "''",
    ],
)
def test_what_is_no_limit(write: Write, text: str) -> None:
    (found,) = refused(write, HEAD + f"tasks:\n- arc_easy\n- {{task: boolq, min: {text}}}\n")
    assert found.startswith("7: tasks[1].min: ")
    assert "is refused: allowed: a number; base or best (the best fine-tuned model" in found


def test_a_floor_has_one_side(write: Write) -> None:
    (found,) = refused(write, HEAD + "tasks: [{task: boolq, min: 0.5, max: 0.9}]\n")
    assert found.startswith("5: tasks[0].max: min is given too")


def test_goals_and_floors_are_part_of_what_a_space_means(load: Load) -> None:
    one = load(HEAD + "tasks: [arc_easy, boolq]\n")
    goals = load(HEAD + "objective: pareto\ntasks: [arc_easy, boolq]\n")
    floor = load(HEAD + "tasks: [arc_easy, {task: boolq, min: base - 0.02}]\n")
    assert len({one.digest(), goals.digest(), floor.digest()}) == 3
    assert goals.describe_changes(one) == ['objective is "pareto", was not given']
    assert floor.describe_changes(one) == ['tasks[1].min is "base - 0.02", was not given']
    explicit = load(HEAD + "objective: weighted\ntasks: [arc_easy, boolq]\n")
    assert explicit.digest() == one.digest()
