"""Items scored a share at a time: the same scores, the same items for all, honest estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.evaluation import (
    ItemSet,
    MetricName,
    Scorer,
    Scores,
    Setting,
    TaskRequest,
    TaskScore,
    Value,
    build_items,
    fitness,
)
from evomerge.evaluation.incumbent import Difference, Incumbent
from evomerge.evaluation.rungs import RungScorer, means_alone, restricted, rungs_of
from tests.evaluation import worlds
from tests.evaluation.worlds import TaskFolder

ACC, WHOLE = MetricName("acc", "none"), MetricName("acc", "whole")
SHARES = (0.25, 0.5)


def every_kind(folder: TaskFolder, tokenizer: Any) -> ItemSet:
    """Choices, one letter, a word's likelihood, texts, gold solutions, a weighted group."""
    small = worlds.add_choices(folder, "small", count=6, seed=1)
    large = worlds.add_choices(folder, "large", count=20, seed=2)
    aggregate = [{"metric": "acc", "weight_by_size": True}]
    folder.write(
        "both", {"group": "both", "task": [small, large], "aggregate_metric_list": aggregate}
    )
    writing = worlds.add_writing(folder, "writing", count=16)
    requests = [
        TaskRequest(worlds.add_choices(folder, "choices"), MetricName("acc_norm")),
        TaskRequest("choices", MetricName("gold_prob"), weight=0.5),
        TaskRequest(worlds.add_one_letter(folder, "letter")),
        TaskRequest(worlds.add_last_word(folder, "word"), MetricName("acc"), weight=2.0),
        TaskRequest(writing, MetricName("exact_match", "whole")),
        TaskRequest(writing, MetricName("gold_loglikelihood"), weight=0.01),
        TaskRequest("both"),
    ]
    return build_items(requests, Setting(include_path=(folder.path,)), tokenizer, max_length=96)


class World:
    """The items with a model, and a scorer that counts the queries that were put."""

    def __init__(self, items: ItemSet, model: Any, tokenizer: Any) -> None:
        self.items, self.model, self.tokenizer, self.put = items, model, tokenizer, 0

    def scorer(self, places: Sequence[int] | None = None) -> Any:
        scorer = Scorer(self.model, self.tokenizer, self.items, places=places)
        world, count = self, len(self.items.queries) if places is None else len(places)

        class Counting:
            def respond(self) -> list[list[Any]]:
                world.put += count
                return list(scorer.respond())

        return Counting()

    def rungs(self, shares: Sequence[float] = SHARES) -> RungScorer:
        return RungScorer(self.items, shares, 0, self.scorer)

    def whole(self) -> Scores:
        return Scorer(self.model, self.tokenizer, self.items).score()

    def incumbent(self, ahead: float = 0.0) -> Incumbent:
        """One that does as the model does, and so much better on every item."""
        scores = self.whole()
        made = Incumbent.of(7, fitness(scores, self.items.requests), scores, self.items.requests)
        assert made is not None
        values = {leaf: one + np.float32(ahead) for leaf, one in made.values.items()}
        return replace(made, values=values, fitness=made.fitness + ahead * len(values))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> ItemSet:
    return every_kind(TaskFolder(tmp_path_factory.mktemp("tasks")), tokenizer)


@pytest.fixture
def world(kinds: ItemSet, model: Any, tokenizer: Any) -> World:
    return World(kinds, model, tokenizer)


def test_a_candidate_that_is_not_stopped_has_the_scores_of_one_without_rungs(world: World) -> None:
    whole, incumbent = world.whole(), world.incumbent()
    for compared in (None, incumbent):
        world.put = 0
        scored = world.rungs().score(compared)
        assert scored.estimate is None
        assert scored.items == len(world.items)
        assert world.put == len(world.items.queries), "nothing is asked twice"
        assert scored.scores.tasks.keys() == whole.tasks.keys()
        for name, task in whole.tasks.items():
            mine = scored.scores.tasks[name]
            assert mine.doc_ids == task.doc_ids
            for metric, value in task.metrics.items():
                counted = metric.name in ("acc", "acc_norm", "exact_match")
                tolerance = 0.0 if counted else 1e-5
                assert mine.metrics[metric].value == pytest.approx(value.value, rel=tolerance)
                assert mine.metrics[metric].aggregation == value.aggregation
            for metric, values in task.items.items():
                np.testing.assert_allclose(mine.items[metric], values, rtol=1e-4, atol=1e-4)
    one = world.rungs(()).score(incumbent)
    assert one.scores.to_json() == whole.to_json(), "no rungs: the same passes"


def test_a_candidate_that_cannot_win_is_stopped_with_what_it_would_have_scored(
    world: World,
) -> None:
    incumbent = world.incumbent(ahead=0.3)
    world.put = 0
    scored = world.rungs().score(incumbent)
    first = rungs_of(world.items, SHARES, 0)[0]
    assert world.put == len(first.places) < len(world.items.queries)
    assert scored.items == first.items == sum(map(len, first.seen.values()))
    # Every item is 0.3 behind, so the items that were seen say it all.
    expected = fitness(world.whole(), world.items.requests)
    assert scored.estimate == pytest.approx(expected, abs=1e-5)
    whole = world.whole()
    for leaf, rows in first.seen.items():
        mine, theirs = scored.scores.tasks[leaf], whole.tasks[leaf]
        assert mine.doc_ids == tuple(theirs.doc_ids[row] for row in rows)
        for metric, values in mine.items.items():
            np.testing.assert_allclose(values, theirs.items[metric][rows], atol=1e-4)
            assert mine.metrics[metric].value == pytest.approx(values.mean())
    assert "perplexity" not in {metric.name for metric in scored.scores.tasks["word"].metrics}
    leaves = scored.scores.tasks
    shares = whole.shares("both", ACC)
    together = sum(share * leaves[leaf].metrics[ACC].value for leaf, share in shares.items())
    assert leaves["both"].metrics[ACC].value == pytest.approx(together)
    assert Scores.from_json(scored.scores.to_json()).to_json() == scored.scores.to_json()


@pytest.mark.parametrize(("errors", "stopped"), [(1.2, (False, False)), (2.3, (True, False)),
                                                 (3.5, (True, True))])  # fmt: skip
def test_a_lenient_incumbent_stops_only_who_is_almost_certainly_worse(
    world: World, errors: float, stopped: tuple[bool, bool]
) -> None:
    """So many standard errors behind after the first rung."""
    rival = world.incumbent()
    draw = np.random.default_rng(0)
    noisy = {leaf: one + draw.normal(size=one.shape) for leaf, one in rival.values.items()}
    rival = replace(rival, values={leaf: one.astype("f4") for leaf, one in noisy.items()})
    first = rungs_of(world.items, SHARES[:1], 0)[0]
    found = rival.difference(world.whole(), first.seen)
    assert found is not None
    behind = (found.value + errors * found.stderr) / len(rival.values)
    ahead = {leaf: one + np.float32(behind) for leaf, one in rival.values.items()}
    rival = replace(rival, values=ahead)
    scores = [world.rungs(SHARES[:1]).score(one) for one in (rival, rival.leniently())]
    assert tuple(one.estimate is not None for one in scores) == stopped


def test_what_rounding_may_do_is_no_evidence() -> None:
    scores = scores_of({"a": np.full(50, 0.5), "b": np.full(200, 0.25)})
    lower = scores_of({"a": np.full(50, 0.5 - 1e-7), "b": np.full(200, 0.25 - 1e-7)})
    seen = {"a": np.arange(25), "b": np.arange(100)}
    found = made(scores).difference(lower, seen)
    assert found is not None
    assert found.value < 0
    assert not found.hopeless


def test_late_in_its_items_a_baseline_that_may_be_as_good_on_others_is_not_stopped() -> None:
    """What is sure of nearly all the items, of which few are left, is not of others like them."""
    late = Difference(-1.5, 0.3, 1.0)
    assert late.hopeless
    assert not late.surely_hopeless
    assert Difference(-2.1, 0.3, 1.0).surely_hopeless
    assert not Difference(-2.1, 0.9, 1.0).surely_hopeless


@pytest.mark.parametrize("shares", [(), (0.5,), (0.1, 0.3, 0.6)])
def test_rungs_share_out_every_task_and_keep_a_document_s_queries_together(
    world: World, shares: tuple[float, ...]
) -> None:
    rungs = rungs_of(world.items, shares, 3)
    assert len(rungs) == len(shares) + 1
    assert sorted(place for rung in rungs for place in rung.places) == list(
        range(len(world.items.queries))
    )
    before: dict[str, set[int]] = {task.name: set() for task in world.items.tasks}
    for rung, share in zip(rungs, (*shares, 1.0), strict=True):
        for task in world.items.tasks:
            seen = set(rung.seen[task.name].tolist())
            assert before[task.name] <= seen, "a rung adds to those before"
            assert abs(len(seen) - share * len(task.doc_ids)) <= 1
            before[task.name] = seen
    start = 0
    for task in world.items.tasks:
        documents = [i.doc_id for i in task.task.instances] * 2  # gold solutions come after
        for rung, earlier in zip(rungs, [None, *rungs], strict=False):
            new = set(rung.seen[task.name].tolist())
            new -= set() if earlier is None else set(earlier.seen[task.name].tolist())
            mine = {p - start for p in rung.places if start <= p < start + len(task.queries)}
            assert mine == {q for q in range(len(task.queries)) if documents[q] in new}
        start += len(task.queries)


def test_the_order_hangs_on_the_seed_alone(world: World) -> None:
    def order(seed: int) -> list[tuple[int, ...]]:
        return [rung.places for rung in rungs_of(world.items, SHARES, seed)]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_metrics_that_are_no_means_are_named(
    folder: TaskFolder, tokenizer: Any, kinds: ItemSet
) -> None:
    requests = [
        TaskRequest(worlds.add_last_word(folder, "word"), MetricName("perplexity")),
        TaskRequest(worlds.add_one_letter(folder, "letter"), MetricName("margin")),
        TaskRequest("letter", MetricName("bits_per_byte")),
    ]
    items = build_items(requests, Setting(include_path=(folder.path,)), tokenizer, max_length=96)
    assert means_alone(items) == ["word: perplexity", "letter: bits_per_byte"]
    assert means_alone(kinds) == []


def test_a_task_whose_own_code_fails_on_made_up_answers_stops_nobody(
    folder: TaskFolder, model: Any, tokenizer: Any
) -> None:
    (folder.path / "own.py").write_text(
        "def judge(doc, results):\n"
        "    if not results[0]:\n"
        "        raise ValueError('an answer has no words')\n"
        "    return {'acc': float(len(results[0]) > 9)}\n"
    )
    worlds.add_writing(folder, "own", count=40, metric_list=worlds.metrics("acc"))
    own = folder.path / "own.yaml"
    own.write_text(own.read_text() + "process_results: !function own.judge\n")
    setting, request = Setting(include_path=(folder.path,)), TaskRequest("own", WHOLE)
    items = build_items([request], setting, tokenizer, max_length=96)
    odd = World(items, model, tokenizer)
    scored = odd.rungs().score(odd.incumbent(ahead=0.9))
    assert scored.estimate is None
    assert scored.scores.to_json() == odd.whole().to_json()


def scores_of(values: dict[str, np.ndarray]) -> Scores:
    return Scores(
        {
            task: TaskScore({ACC: Value(float(one.mean()))}, {ACC: one}, tuple(range(len(one))))
            for task, one in values.items()
        }
    )


REQUESTS = [TaskRequest("a", ACC, weight=3.0), TaskRequest("b", ACC, weight=1.0)]


def made(scores: Scores, requests: list[TaskRequest] = REQUESTS, **how: Any) -> Incumbent:
    incumbent = Incumbent.of(3, fitness(scores, requests, **how), scores, requests, **how)
    assert incumbent is not None
    return incumbent


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_on_all_items_the_difference_is_that_of_the_fitness(seed: int, plain: bool) -> None:
    rng = np.random.default_rng(seed)
    one, two = (scores_of({"a": rng.random(20), "b": rng.random(7)}) for _ in range(2))
    requests = [*REQUESTS, TaskRequest("a", ACC, weight=-0.5)]
    found = made(one, requests, plain_sum=plain).difference(two)
    expected = [fitness(scores, requests, plain_sum=plain) for scores in (one, two)]
    assert found is not None
    assert found.value == pytest.approx(expected[1] - expected[0], abs=1e-6)
    assert found.stderr == 0.0, "nothing is left to guess"
    assert found.noise > 0.0


def test_the_estimate_is_unbiased_and_its_error_is_as_large_as_said() -> None:
    """Over 4000 draws of a third of the items; Cochran's variance of a stratified sample."""
    rng = np.random.default_rng(1)
    mine = {task: rng.integers(2, size=n).astype(float) for task, n in (("a", 60), ("b", 30))}
    other = {task: np.where(rng.random(len(v)) < 0.4, 1 - v, v) for task, v in mine.items()}
    incumbent, candidate = made(scores_of(mine)), scores_of(other)
    whole = incumbent.difference(candidate)
    assert whole is not None
    guesses = []
    for _ in range(4000):
        seen = {task: np.sort(rng.permutation(len(v))[: len(v) // 3]) for task, v in mine.items()}
        guess = incumbent.difference(candidate, seen)
        assert guess is not None
        guesses.append((guess.value, guess.stderr))
    values, errors = np.array(guesses).T
    assert values.mean() == pytest.approx(whole.value, abs=4 * values.std() / np.sqrt(4000))
    assert errors.mean() == pytest.approx(values.std(), rel=0.08)
    # The side on which a candidate is stopped: 5 % by the normal distribution.
    too_low = np.mean(values + 1.645 * errors < whole.value)
    assert 0.03 < too_low < 0.07


def test_tasks_that_add_nothing_make_nobody_less_sure() -> None:
    rng = np.random.default_rng(4)
    mine = {task: rng.integers(2, size=40).astype(float) for task in "abc"}
    other = {task: rng.integers(2, size=40).astype(float) for task in "abc"}
    some = {task: np.arange(12) for task in "abc"}
    alone = made(scores_of(mine)).difference(scores_of(other), some)
    floor = [*REQUESTS, TaskRequest("c", ACC, weight=0.0)]
    assert alone is not None
    assert made(scores_of(mine), floor).difference(scores_of(other), some) == alone
    ppl = MetricName("perplexity", "none")
    odd = TaskScore(
        {ppl: Value(2.0, None, False, "perplexity")}, {ppl: mine["c"]}, tuple(range(40))
    )
    scores = Scores({**scores_of(mine).tasks, "c": odd})
    floor[-1] = TaskRequest("c", ppl, weight=0.0)
    assert Incumbent.of(0, 0.5, scores, floor) is None, "nor is the floor known of one stopped"


def test_an_incumbent_is_kept_to_the_last_bit_and_equal_answers_are_no_difference() -> None:
    rng = np.random.default_rng(2)
    scores = scores_of({"a": rng.random(50), "b": rng.integers(2, size=9).astype(float)})
    incumbent = made(scores)
    again = Incumbent.from_json(3, incumbent.to_json())
    assert again.to_json() == incumbent.to_json()
    for one in (incumbent, again):
        found = one.difference(scores)
        assert found is not None
        assert (found.value, found.stderr) == (0.0, 0.0)
        assert found.noise < 1e-6, "nothing but what rounding might do"
        assert not found.hopeless


def test_what_is_no_sum_over_items_has_no_incumbent() -> None:
    ppl = MetricName("perplexity", "none")
    values = -np.random.default_rng(3).random(30)
    score = TaskScore({ppl: Value(2.0, None, False, "perplexity")}, {ppl: values}, tuple(range(30)))
    request = TaskRequest("a", ppl)
    assert Incumbent.of(0, -2.0, Scores({"a": score}), [request]) is None
    gone = np.where(np.arange(30) < 3, np.nan, 1.0)  # items that report nothing
    holed = Scores({"a": TaskScore({ACC: Value(1.0)}, {ACC: gone}, tuple(range(30)))})
    assert made(holed, [TaskRequest("a", ACC)]).difference(holed) is None


def test_a_lower_metric_that_is_better_counts_the_other_way() -> None:
    loss = MetricName("loss", "none")

    def scored(values: np.ndarray) -> Scores:
        value = Value(float(values.mean()), None, higher_is_better=False)
        return Scores({"a": TaskScore({loss: value}, {loss: values}, tuple(range(20)))})

    low, high = scored(np.full(20, 0.2)), scored(np.linspace(0.5, 0.7, 20))
    requests = [TaskRequest("a", loss)]
    some = {"a": np.arange(10)}
    found = made(low, requests).difference(high, some)
    assert found is not None
    assert found.hopeless
    better = made(high, requests).difference(low, some)
    assert better is not None
    assert not better.hopeless
    assert restricted(low, some).tasks["a"].metrics[loss].higher_is_better is False


def test_a_handful_of_items_proves_nothing() -> None:
    right, wrong = (scores_of({"a": np.full(40, v), "b": np.full(40, v)}) for v in (1.0, 0.0))
    few = {"a": np.arange(4), "b": np.arange(4)}
    assert made(right).difference(wrong, few) is None
    enough = made(right).difference(wrong, {"a": np.arange(5), "b": np.arange(5)})
    assert enough is not None
    assert enough.hopeless
