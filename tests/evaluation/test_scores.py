"""Scores, their JSON, and the fitness that is made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from evomerge.errors import TaskError
from evomerge.evaluation import (
    MetricName,
    Scores,
    TaskRequest,
    TaskScore,
    Value,
    fitness,
    fitness_error,
    goals,
)

ACC = MetricName("acc", "none")
PPL = MetricName("perplexity", "none")

numbers = st.floats(allow_nan=True, allow_infinity=False)
arrays = st.one_of(
    npst.arrays(np.float64, st.integers(1, 12), elements=st.sampled_from([0.0, 1.0])),
    npst.arrays(np.float64, st.integers(1, 12), elements=numbers),
    npst.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(2)), elements=numbers),
)
values = st.builds(
    Value,
    st.floats(allow_nan=False),
    st.none() | st.floats(0, 1),
    st.booleans(),
    st.sampled_from(["mean", "perplexity", "custom"]),
)


def one_task(name: str, **metrics: Any) -> Scores:
    known = {MetricName(key, "none"): value for key, value in metrics.items()}
    return Scores({name: TaskScore(known)})


@given(st.dictionaries(st.sampled_from([ACC, PPL, MetricName("f1", "a,b")]), values), arrays)
def test_json_keeps_every_bit(metrics: dict[MetricName, Value], array: np.ndarray) -> None:
    score = TaskScore(
        metrics=metrics,
        items=dict.fromkeys(metrics, array),
        doc_ids=tuple(range(len(array))),
        shares={ACC: {"a": 0.25, "b": 0.75}},
    )
    back = Scores.from_json(Scores({"task": score}).to_json()).tasks["task"]
    assert back.metrics == score.metrics
    assert back.doc_ids == score.doc_ids
    assert back.shares == score.shares
    for metric, items in score.items.items():
        np.testing.assert_array_equal(back.items[metric], items)


def test_json_of_right_and_wrong_is_one_digit_per_item() -> None:
    items = np.array([0.0, 1.0] * 500)
    plain = Scores({"t": TaskScore({ACC: Value(0.5)}, {ACC: items})}).to_json()
    assert len(plain) < 1200


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("acc", MetricName("acc")),
        ("acc,none", ACC),
        ("exact_match, strict-match", MetricName("exact_match", "strict-match")),
    ],
)
def test_metric_names(text: str, name: MetricName) -> None:
    assert MetricName.parse(text) == name
    assert MetricName.parse(str(name)) == name


def test_what_was_not_scored_is_named() -> None:
    scores = one_task("colours", acc=Value(0.5), acc_norm=Value(0.25))
    assert scores.value("colours", MetricName("acc_norm")).value == 0.25
    with pytest.raises(TaskError, match="task shapes: was not scored; there is 'colours'"):
        scores.value("shapes", ACC)
    with pytest.raises(TaskError, match="'f1' is not reported; the task reports 'acc,none' and"):
        scores.value("colours", MetricName("f1"))


def test_fitness_is_the_weighted_mean_and_larger_is_better() -> None:
    scores = Scores(
        one_task("a", acc=Value(0.8)).tasks
        | one_task("b", perplexity=Value(5.0, higher_is_better=False)).tasks
    )
    requests = [TaskRequest("a", ACC, weight=3.0), TaskRequest("b", PPL, weight=1.0)]
    assert fitness(scores, requests) == pytest.approx((3 * 0.8 - 5.0) / 4)
    assert fitness(scores, requests, plain_sum=True) == pytest.approx(3 * 0.8 + 5.0)
    against = [TaskRequest("a", ACC, weight=-1.0)]
    assert fitness(scores, against) == pytest.approx(-0.8)
    with pytest.raises(TaskError, match="every weight is 0"):
        fitness(scores, [TaskRequest("a", ACC, weight=0.0)])


def test_the_error_of_the_fitness_by_hand() -> None:
    """As a Monte Carlo of independent scores has it, for means, weights and plain sums."""
    errors, weights = np.array([0.05, 0.02, 0.3]), np.array([5.0, -1.0, 0.5])
    scores = Scores(
        {n: one_task(n, acc=Value(0.5, e)).tasks[n] for n, e in zip("abc", errors, strict=True)}
    )
    requests = [TaskRequest(n, ACC, weight=w) for n, w in zip("abc", weights, strict=True)]
    draws = np.random.default_rng(0).normal(0.5, errors, (200_000, 3)) @ weights
    assert fitness_error(scores, requests, plain_sum=True) == pytest.approx(draws.std(), rel=0.01)
    size = np.abs(weights).sum()
    assert fitness_error(scores, requests) == pytest.approx(draws.std() / size, rel=0.01)
    # A floor's task without a weight counts for nothing; one that counts has to have an error.
    free = Scores({**scores.tasks, "d": one_task("d", acc=Value(0.5)).tasks["d"]})
    floor = [*requests, TaskRequest("d", ACC, weight=0.0)]
    assert fitness_error(free, floor) == fitness_error(scores, requests)
    assert fitness_error(free, [TaskRequest("d", ACC)]) is None


def test_goals_are_what_each_request_adds_but_for_its_weights_size() -> None:
    scores = Scores(
        one_task("a", acc=Value(0.8)).tasks
        | one_task("b", perplexity=Value(5.0, higher_is_better=False)).tasks
    )
    up, down = TaskRequest("a", ACC, weight=3.0), TaskRequest("b", PPL, weight=0.5)
    assert goals(scores, [up, down]) == (0.8, -5.0)
    assert goals(scores, [up, down], plain_sum=True) == (0.8, 5.0)
    against = [replace(up, weight=-2.0), replace(down, weight=-1.0), replace(up, weight=0.0)]
    assert goals(scores, against) == (-0.8, 5.0), "one without a weight is no goal"
    assert goals(scores, against, plain_sum=True) == (-0.8, -5.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 9)), min_size=1, max_size=5))
def test_fitness_lies_among_the_metrics(pairs: list[tuple[float, float]]) -> None:
    tasks: dict[str, TaskScore] = {}
    for number, (value, _) in enumerate(pairs):
        tasks |= one_task(str(number), acc=Value(value)).tasks
    requests = [TaskRequest(str(i), ACC, weight=weight) for i, (_, weight) in enumerate(pairs)]
    got = fitness(Scores(tasks), requests)
    low, high = min(v for v, _ in pairs), max(v for v, _ in pairs)
    assert low - 1e-9 <= got <= high + 1e-9
    assert math.isfinite(got)
