"""Two models on the same items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import TaskError
from evomerge.evaluation import (
    MetricName,
    Scores,
    TaskRequest,
    TaskScore,
    Value,
    compare,
    fitness,
)
from evomerge.evaluation.paired import mcnemar

ACC = MetricName("acc", "none")
PPL = MetricName("perplexity", "none")
BITS = MetricName("bits_per_byte", "none")
F1 = MetricName("f1", "none")


def right_or_wrong(items: np.ndarray, *, ids: tuple[int, ...] | None = None) -> TaskScore:
    items = np.asarray(items, dtype=float)
    return TaskScore(
        {ACC: Value(float(items.mean()))}, {ACC: items}, ids or tuple(range(len(items)))
    )


def likelihoods(values: np.ndarray) -> TaskScore:
    value = Value(float(np.exp(-values.mean())), None, False, "perplexity")
    return TaskScore({PPL: value}, {PPL: values}, tuple(range(len(values))))


def bits(values: np.ndarray) -> TaskScore:
    total = -values[:, 0].sum() / values[:, 1].sum() / np.log(2)
    return TaskScore(
        {BITS: Value(float(total), None, False, "bits_per_byte")},
        {BITS: values},
        tuple(range(len(values))),
    )


def test_the_difference_is_that_of_the_fitness_and_the_counts_are_of_items() -> None:
    rng = np.random.default_rng(0)
    a = Scores({"x": right_or_wrong(rng.integers(2, size=50)), "y": likelihoods(-rng.random(30))})
    b = Scores({"x": right_or_wrong(rng.integers(2, size=50)), "y": likelihoods(-rng.random(30))})
    requests = [TaskRequest("x", ACC, weight=2.0), TaskRequest("y", PPL)]
    for plain in (False, True):
        got = compare(a, b, requests, plain_sum=plain)
        expected = fitness(b, requests, plain_sum=plain) - fitness(a, requests, plain_sum=plain)
        assert got.difference == pytest.approx(expected)
        assert got.low is not None
        assert got.high is not None
        assert got.low < got.difference < got.high
    x, y = got.tasks
    assert (x.wins, x.losses) == (
        int((b.tasks["x"].items[ACC] > a.tasks["x"].items[ACC]).sum()),
        int((b.tasks["x"].items[ACC] < a.tasks["x"].items[ACC]).sum()),
    )
    assert x.wins + x.losses + x.ties == 50
    assert y.wins == int((b.tasks["y"].items[PPL] > a.tasks["y"].items[PPL]).sum())
    assert y.p_value is None
    assert x.p_value == mcnemar(x.wins, x.losses)
    assert got.wins == x.wins + y.wins


def test_lower_is_better_turns_the_sign() -> None:
    worse, better = np.full(20, -2.0), np.full(20, -1.0)
    a, b = Scores({"y": likelihoods(worse)}), Scores({"y": likelihoods(better)})
    got = compare(a, b, [TaskRequest("y", PPL)])
    assert got.difference > 0
    assert got.tasks[0].difference == pytest.approx(np.exp(2) - np.exp(1))
    assert got.tasks[0].a > got.tasks[0].b
    assert got.wins == 20
    pairs = np.stack([np.linspace(-9, -5, 12), np.linspace(3, 8, 12)], axis=1)
    lighter = pairs * [0.9, 1.0]
    got = compare(
        Scores({"z": bits(pairs)}), Scores({"z": bits(lighter)}), [TaskRequest("z", BITS)]
    )
    assert got.low is not None
    assert got.low > 0
    assert got.wins == 12


def test_it_is_seeded_and_antisymmetric() -> None:
    rng = np.random.default_rng(1)
    a, b = (Scores({"x": right_or_wrong(rng.integers(2, size=80))}) for _ in range(2))
    requests = [TaskRequest("x", ACC)]
    assert compare(a, b, requests, seed=3) == compare(a, b, requests, seed=3)
    assert compare(a, b, requests, seed=3) != compare(a, b, requests, seed=4)
    there, back = compare(a, b, requests), compare(b, a, requests)
    assert there.difference == pytest.approx(-back.difference)
    assert there.low == pytest.approx(-back.high)  # type: ignore[operator]
    same = compare(a, a, requests)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    assert same.tasks[0].p_value == 1.0


def test_the_interval_is_the_normal_one_for_many_items() -> None:
    rng = np.random.default_rng(2)
    first = rng.normal(size=400)
    second = first + rng.normal(0.1, 0.5, size=400)
    a, b = Scores({"x": right_or_wrong(first)}), Scores({"x": right_or_wrong(second)})
    got = compare(a, b, [TaskRequest("x", ACC)])
    half = 1.96 * (second - first).std(ddof=1) / np.sqrt(400)
    assert got.high is not None
    assert got.low is not None
    assert got.high - got.difference == pytest.approx(half, rel=0.05)
    assert got.difference - got.low == pytest.approx(half, rel=0.05)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        first = rng.random(60) < 0.5
        second = np.where(rng.random(60) < 0.7, first, rng.random(60) < 0.7)
        truth = 0.3 * (0.7 - 0.5)
        a, b = Scores({"x": right_or_wrong(first)}), Scores({"x": right_or_wrong(second)})
        got = compare(a, b, [TaskRequest("x", ACC)], resamples=400, seed=trial, confidence=0.9)
        assert got.low is not None
        assert got.high is not None
        hits += got.low <= truth <= got.high
    assert 165 <= hits <= 195  # 180 expected, standard deviation 4.2


def test_groups_are_resampled_within_their_tasks() -> None:
    def model(seed: int) -> Scores:
        rng = np.random.default_rng(seed)
        small, large = (right_or_wrong(rng.integers(2, size=n)) for n in (10, 90))
        shares = {"small": 0.1, "large": 0.9}
        value = sum(
            shares[name] * score.metrics[ACC].value
            for name, score in (("small", small), ("large", large))
        )
        group = TaskScore({ACC: Value(value, aggregation="group")}, shares={ACC: shares})
        return Scores({"small": small, "large": large, "both": group})

    a, b = model(0), model(1)
    got = compare(a, b, [TaskRequest("both", ACC)])
    assert got.difference == pytest.approx(b.value("both", ACC).value - a.value("both", ACC).value)
    assert got.wins + got.losses + got.ties == 100
    assert got.tasks[0].p_value is not None
    # A group weighted by size is as good as one task with all the items.
    items = {
        name: np.concatenate([m.tasks["small"].items[ACC], m.tasks["large"].items[ACC]])
        for name, m in (("a", a), ("b", b))
    }
    whole = compare(
        Scores({"x": right_or_wrong(items["a"])}),
        Scores({"x": right_or_wrong(items["b"])}),
        [TaskRequest("x", ACC)],
    )
    assert got.difference == pytest.approx(whole.difference)
    assert got.low == pytest.approx(whole.low, abs=0.03)


def test_two_metrics_of_a_task_share_their_resamples() -> None:
    rng = np.random.default_rng(5)
    norm = MetricName("acc_norm", "none")

    def model() -> Scores:
        items = rng.integers(2, size=60).astype(float)
        value = Value(float(items.mean()))
        return Scores(
            {"x": TaskScore({ACC: value, norm: value}, {ACC: items, norm: items}, tuple(range(60)))}
        )

    a, b = model(), model()
    one = compare(a, b, [TaskRequest("x", ACC)])
    twice = compare(a, b, [TaskRequest("x", ACC), TaskRequest("x", norm)])
    assert (twice.low, twice.high) == pytest.approx((one.low, one.high))


def test_f1_by_lm_eval_s_own_function_and_no_interval_for_texts() -> None:
    rng = np.random.default_rng(4)
    gold = rng.integers(2, size=40)

    def model(share: float) -> TaskScore:
        predicted = np.where(rng.random(40) < share, gold, 1 - gold)
        pairs = np.stack([gold, predicted], axis=1).astype(float)
        hits = (gold * predicted).sum()
        f1 = 2 * hits / (gold.sum() + predicted.sum())
        return TaskScore({F1: Value(float(f1), aggregation="f1")}, {F1: pairs}, tuple(range(40)))

    a, b = Scores({"x": model(0.6)}), Scores({"x": model(0.95)})
    got = compare(a, b, [TaskRequest("x", F1)], resamples=60)
    assert got.low is not None
    assert got.high is not None
    assert got.low < got.difference < got.high
    bleu = MetricName("bleu", "none")
    texts = Scores({"x": TaskScore({bleu: Value(3.0, aggregation="bleu")}, {}, (0, 1))})
    got = compare(texts, texts, [TaskRequest("x", bleu)])
    assert (got.difference, got.low, got.high) == (0.0, None, None)


def test_items_that_report_nothing_are_left_out() -> None:
    a = Scores({"x": right_or_wrong(np.array([0.0, np.nan, 1.0, 0.0]))})
    b = Scores({"x": right_or_wrong(np.array([1.0, np.nan, 1.0, 1.0]))})
    got = compare(a, b, [TaskRequest("x", ACC)])
    assert got.low is not None
    assert got.high is not None
    assert 0 <= got.low <= got.high <= 1
    assert (got.wins, got.losses, got.ties) == (2, 0, 2)


def test_other_items_are_refused() -> None:
    a = Scores({"x": right_or_wrong(np.ones(3))})
    b = Scores({"x": right_or_wrong(np.ones(3), ids=(0, 1, 3))})
    with pytest.raises(TaskError, match="scored on different items"):
        compare(a, b, [TaskRequest("x", ACC)])
    with pytest.raises(ValueError, match="confidence"):
        compare(a, a, [TaskRequest("x", ACC)], confidence=1.0)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(wins: int, losses: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected)
