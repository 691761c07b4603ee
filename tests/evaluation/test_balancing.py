"""Items on which known models score as on the whole pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.evaluation import (
    MetricName,
    Scores,
    Setting,
    TaskRequest,
    TaskScore,
    Value,
    build_items,
)
from evomerge.evaluation.balancing import balanced, choose_balanced
from tests.evaluation import worlds
from tests.evaluation.worlds import TaskFolder

ACC, BITS = MetricName("acc", "none"), MetricName("bits_per_byte", "none")


def blends(seed: int, items: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Item scores of five known models, and of thirty blends of them with noise of their own."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(5, items))
    weights = rng.random((30, 5))
    return known, weights @ known + rng.normal(0, 0.5, (30, items))


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(0, 9), st.data())
def test_it_takes_so_many_different_items(size: int, seed: int, data: Any) -> None:
    count = data.draw(st.integers(1, size))
    known = np.round(np.random.default_rng(seed).random((3, size)))
    chosen = balanced(known, count, np.random.default_rng(seed))
    assert len(set(chosen.tolist())) == len(chosen) == count
    assert (chosen >= 0).all()
    assert (chosen < size).all()
    again = balanced(known, count, np.random.default_rng(seed))
    np.testing.assert_array_equal(chosen, again)


def test_candidates_are_measured_more_exactly_than_by_random_items() -> None:
    errors: dict[str, list[np.ndarray]] = {"balanced": [], "random": []}
    for seed in range(30):
        known, candidates = blends(seed)
        rng = np.random.default_rng(seed)
        truth = candidates.mean(axis=1)
        for name, places in (
            ("balanced", balanced(known, 25, rng)),
            ("random", rng.permutation(300)[:25]),
        ):
            errors[name].append(candidates[:, places].mean(axis=1) - truth)
    spread = {name: float(np.square(found).mean()) for name, found in errors.items()}
    # Of the variance 5/3 of 1.9 is the known models'; 1,000 draws of five numbers leave little.
    assert spread["balanced"] < 0.5 * spread["random"]


def test_every_item_is_as_likely_as_another() -> None:
    """Else a score on the chosen items would be off in one direction."""
    known, _ = blends(0, items=40)
    drawn = [balanced(known, 10, np.random.default_rng(seed)) for seed in range(120)]
    times = np.bincount(np.concatenate(drawn), minlength=40)
    # 120 draws of a quarter: 30 each, standard deviation 4.7.
    assert times.min() > 10
    assert times.max() < 55
    means = np.array([known[:, places].mean(axis=1) for places in drawn])
    np.testing.assert_allclose(means.mean(axis=0), known.mean(axis=1), atol=0.05)


def test_documents_and_their_metrics() -> None:
    """Pairs count by their likelihood, what is not reported as the rest, other metrics not."""

    def scores(values: np.ndarray) -> Scores:
        pairs = np.stack([values, np.ones(len(values))], axis=1)
        items = {ACC: np.arange(len(values)) % 2.0, BITS: pairs}
        metrics = {ACC: Value(0.5), BITS: Value(1.0)}
        return Scores({"leaf": TaskScore(metrics, items, tuple(range(100, 100 + len(values))))})

    rng = np.random.default_rng(0)
    likelihoods = -rng.random(60) * 9
    likelihoods[3] = np.nan
    pool = [scores(likelihoods), scores(likelihoods * 2)]
    chosen = choose_balanced(pool, {"leaf": 15}, {"leaf": [BITS]}, seed=1)["leaf"]
    assert len(chosen) == 15
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(range(100, 160))
    picked = likelihoods[np.array(chosen) - 100]
    assert np.nanmean(picked) == pytest.approx(np.nanmean(likelihoods), abs=0.05)
    assert choose_balanced(pool, {"leaf": 15}, {"leaf": [BITS]}, seed=2)["leaf"] != chosen


@pytest.mark.parametrize("items", [7, 12])
def test_chosen_documents_are_never_held_out(
    folder: TaskFolder, tokenizer: Any, items: int
) -> None:
    small = worlds.add_choices(folder, "small", count=11, seed=1)
    large = worlds.add_choices(folder, "large", count=28, seed=2)
    aggregate = [{"metric": "acc", "weight_by_size": True}]
    folder.write(
        "both", {"group": "both", "task": [small, large], "aggregate_metric_list": aggregate}
    )
    request = TaskRequest("both", items=items, order="balanced")
    setting = Setting(include_path=(folder.path,))

    def built(request: TaskRequest, part: Any = "search") -> dict[str, list[int]]:
        options: dict[str, Any] = {"max_length": 96, "part": part, "holdout_items": 9}
        return build_items([request], setting, tokenizer, **options).samples

    pool = built(TaskRequest("both"))
    held_out = built(request, "holdout")
    assert sum(map(len, held_out.values())) == 9
    assert sum(map(len, pool.values())) == 30
    for name in (small, large):
        assert not set(pool[name]) & set(held_out[name])
    drawn = built(request)
    assert sum(map(len, drawn.values())) == items
    chosen = tuple((name, tuple(ids[: len(drawn[name])])) for name, ids in pool.items())
    exact = TaskRequest("both", items=items, order="balanced", chosen=chosen)
    assert built(exact) == {name: list(ids) for name, ids in chosen}
    assert built(exact, "holdout") == held_out
