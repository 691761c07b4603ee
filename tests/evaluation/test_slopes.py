"""The smooth fitness that is differentiated: its values, its gradient, what it leaves out."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch

from evomerge.errors import TrialError
from evomerge.evaluation import ItemSet, MetricName, Scorer, Setting, TaskRequest, build_items
from evomerge.evaluation.slopes.gradients import Gradient, Gradients
from evomerge.evaluation.slopes.memory import Limits, has_room
from evomerge.evaluation.slopes.questions import SHARPNESS, SmoothFitness, cut, smooth_fitness
from tests.evaluation import worlds
from tests.evaluation.test_equality import LENGTH
from tests.evaluation.worlds import TaskFolder


def ask(task: str, metric: str, weight: float = 1.0) -> TaskRequest:
    return TaskRequest(task, MetricName.parse(metric), weight=weight)


def built(folder: TaskFolder, tokenizer: Any, requests: list[TaskRequest]) -> ItemSet:
    setting = Setting(include_path=(folder.path,))
    return build_items(requests, setting, tokenizer, max_length=LENGTH)


def smoothed(items: ItemSet, tokenizer: Any, **options: Any) -> SmoothFitness:
    return smooth_fitness(items, tokenizer, LENGTH, **options)


def gradient_of(model: Any, fitness: SmoothFitness, **options: Any) -> Gradient:
    return Gradients(model, fitness.questions, device="cpu", **options).run()


@pytest.fixture
def items(folder: TaskFolder, tokenizer: Any) -> ItemSet:
    """A choice by characters, a choice of one letter, last words, long texts, answers to write."""
    return built(
        folder,
        tokenizer,
        [
            ask(worlds.add_choices(folder, "choices"), "acc_norm", 2.0),
            ask(worlds.add_one_letter(folder, "letters"), "acc"),
            ask(worlds.add_last_word(folder, "words", 6), "gold_loglikelihood", 0.1),
            ask(worlds.add_rolling(folder, "texts", 4), "word_perplexity"),
            ask(worlds.add_writing(folder, "writing", 6), "exact_match,whole", -0.5),
        ],
    )


def test_its_value_is_that_of_the_smooth_metrics(
    model: Any, tokenizer: Any, folder: TaskFolder, items: ItemSet
) -> None:
    smooth = {
        "choices": "gold_prob_norm",
        "letters": "gold_prob",
        "words": "gold_loglikelihood",
        "texts": "bits_per_byte",
        "writing": "bits_per_byte",
    }
    asked = built(folder, tokenizer, [ask(task, metric) for task, metric in smooth.items()])
    scores = Scorer(model, tokenizer, asked).score()
    values = {}
    for task, metric in smooth.items():
        values[task] = scores.value(task, MetricName(metric, "none")).value
    expected = 2 * values["choices"] + values["letters"] + 0.1 * values["words"]
    expected = (expected - values["texts"] + 0.5 * values["writing"]) / 4.6
    fitness = smoothed(items, tokenizer, sharpness=1.0)
    assert fitness.left_out == {}
    for tree in (False, True):
        assert gradient_of(model, fitness, tree=tree).value == pytest.approx(expected, rel=1e-5)


def test_right_and_wrong_alone_are_sharpened(
    model: Any, tokenizer: Any, folder: TaskFolder, items: ItemSet
) -> None:
    """At a large sharpness the share is 1 or 0 as the likeliest choice is: the accuracy itself."""
    asked = built(folder, tokenizer, [ask("choices", "acc_norm", 2.0), ask("letters", "acc")])
    scores = Scorer(model, tokenizer, asked).score()
    values = [scores.value(request.task, request.metric).value for request in asked.requests]
    expected = (2 * values[0] + values[1]) / 3
    near = smoothed(asked, tokenizer, sharpness=1e5)
    assert gradient_of(model, near).value == pytest.approx(expected, abs=1e-6)
    plain, sharp = smoothed(items, tokenizer, sharpness=1.0), smoothed(items, tokenizer)
    changed = {
        (one.contrast, pytest.approx(SHARPNESS) == one.units[0] / other.units[0])
        for one, other in zip(plain.questions, sharp.questions, strict=True)
    }
    assert changed == {(True, True), (False, False)}
    smooth = built(folder, tokenizer, [ask("letters", "gold_prob")])
    assert smoothed(smooth, tokenizer, sharpness=1.0) == smoothed(smooth, tokenizer)


@pytest.mark.parametrize("number", [1, 3, 4, 1000])
def test_blocks_stand_for_all_questions(tokenizer: Any, items: ItemSet, number: int) -> None:
    questions = smoothed(items, tokenizer).questions
    blocks = cut(questions, number, seed=1)
    assert len(blocks) == min(number, len(questions))
    parts = [(one.windows, one.right) for block in blocks for one in block]
    assert Counter(parts) == Counter((one.windows, one.right) for one in questions)
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    whole = sum(abs(one.share) for one in questions)
    for block in blocks:
        assert sum(abs(one.share) for one in block) == pytest.approx(whole)
    if number == 3:
        texts = [sum(not one.contrast for one in block) for block in blocks]
        assert max(texts) - min(texts) <= 2, "every task is in each of them by its share"
        assert cut(questions, 3, seed=1) == blocks != cut(questions, 3, seed=2)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_its_gradient_is_the_limit_of_differences(
    kind: str, tokenizer: Any, items: ItemSet
) -> None:
    make = worlds.make_model if kind == "llama" else worlds.make_gpt2
    model = make(tokenizer).double()
    fitness = smoothed(items, tokenizer)
    found = gradient_of(model, fitness, tree=kind == "llama", limits=Limits(400))
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        way = {n: torch.randn(p.shape, generator=draw) for n, p in model.named_parameters()}
        slope = sum(float((way[name] * one).sum()) for name, one in found.parameters.items())
        step, ends = 1e-4, []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for name, parameter in moved.named_parameters():
                    parameter.add_(way[name], alpha=sign * step)
            ends.append(gradient_of(moved, fitness).value)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=2e-3)


def test_nothing_of_it_is_left_in_the_model(model: Any, tokenizer: Any, items: ItemSet) -> None:
    model.requires_grad_(False)
    before = Scorer(model, tokenizer, items).score()
    first = gradient_of(model, smoothed(items, tokenizer), tree=True)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    after = Scorer(model, tokenizer, items).score()
    assert before.to_json() == after.to_json()
    again = gradient_of(model, smoothed(items, tokenizer), tree=True)
    assert again.value == first.value
    assert all(torch.equal(one, again.parameters[n]) for n, one in first.parameters.items())


def test_batches_and_ways_agree(model: Any, tokenizer: Any, items: ItemSet) -> None:
    fitness = smoothed(items, tokenizer)
    whole = gradient_of(model, fitness, limits=Limits(10**6))
    assert whole.parameters.keys() == {name for name, _ in model.named_parameters()}
    for options in ({"limits": Limits(40)}, {"tree": True}, {"tree": True, "limits": Limits(60)}):
        other = gradient_of(model, fitness, **options)
        for name, one in whole.parameters.items():
            assert float((one - other.parameters[name]).norm()) <= 1e-4 * float(one.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(
    dtype: torch.dtype, model: Any, tokenizer: Any, items: ItemSet
) -> None:
    """A batch per item: sums in the model's own type would lose most of the small terms."""
    half = model.to(dtype)
    fitness = smoothed(items, tokenizer)
    found = gradient_of(half, fitness, limits=Limits(1))
    exact = gradient_of(copy.deepcopy(half).float(), fitness)
    assert found.value == pytest.approx(exact.value, rel=0.02)
    for name, one in exact.parameters.items():
        assert found.parameters[name].dtype == torch.float32
        assert float((one - found.parameters[name]).norm()) < 0.1 * float(one.norm()), name


def test_batches_that_do_not_fit_are_halved(model: Any, tokenizer: Any, items: ItemSet) -> None:
    fitness = smoothed(items, tokenizer)
    whole = gradient_of(model, fitness)
    most, calls = [100], []

    def check(_module: Any, inputs: tuple[torch.Tensor, ...], _options: Any) -> None:
        calls.append(inputs[0].numel())
        if calls[-1] > most[0]:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(check, with_kwargs=True)
    limits = Limits(800)
    gradients = Gradients(model, fitness.questions, device="cpu", limits=limits)
    other = Gradients(model, fitness.questions, device="cpu", limits=limits)
    found = gradients.run()
    assert max(calls) > 100
    assert found.value == pytest.approx(whole.value, rel=1e-6)
    for name, one in whole.parameters.items():
        torch.testing.assert_close(found.parameters[name], one, rtol=1e-3, atol=1e-6)
    for again in (gradients, other):
        calls.clear()
        again.run()
        assert max(calls) <= 100, "what was learnt about memory is kept, and shared"
    most[0] = 3
    with pytest.raises(TrialError, match="out of memory with the gradient of a single item"):
        gradients.run()


def test_where_a_gradient_is_kept() -> None:
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    assert has_room({}, {})
    assert has_room({first: 80, second: 10}, {first: 100, second: 100})
    assert not has_room({first: 81, second: 10}, {first: 100, second: 100})
    limits = Limits(1000, accelerated=True)
    assert limits.tighten(single=False)
    assert (limits.tokens, limits.on_host) == (500, False)
    # Smaller batches came first: in the host's memory each of them costs a copy.
    assert limits.tighten(single=True)
    assert (limits.tokens, limits.on_host) == (1000, True)
    assert limits.tighten(single=False)
    assert limits.tokens == 500
    assert not limits.tighten(single=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_accelerators_gradient(model: Any, tokenizer: Any, items: ItemSet) -> None:
    fitness = smoothed(items, tokenizer)
    here = gradient_of(model, fitness)
    model.to("cuda")
    for on_host in (False, True):
        limits = Limits(400, on_host=on_host, accelerated=True)
        there = Gradients(model, fitness.questions, device="cuda", limits=limits).run()
        assert there.value == pytest.approx(here.value, rel=1e-4)
        for name, one in here.parameters.items():
            assert (there.parameters[name].device.type == "cpu") is on_host
            torch.testing.assert_close(there.parameters[name].cpu(), one, rtol=1e-2, atol=1e-4)


def test_what_cannot_be_differentiated_is_left_out_with_its_reason(
    folder: TaskFolder, tokenizer: Any
) -> None:
    own = worlds.add_choices(folder, "own", metric_list=worlds.metrics("acc"))
    (folder.path / "own.py").write_text("def judge(doc, results):\n    return {'acc': 1.0}\n")
    file = folder.path / "own.yaml"
    file.write_text(file.read_text() + "process_results: !function own.judge\n")
    plain = worlds.add_one_letter(folder, "letters")
    fitness = smoothed(built(folder, tokenizer, [ask(own, "acc"), ask(plain, "acc")]), tokenizer)
    assert list(fitness.left_out) == ["own"]
    assert "code of its own" in fitness.left_out["own"]
    # The other's weight is what it is in the fitness: a half.
    assert sum(one.share for one in fitness.questions) == pytest.approx(0.5)
    alone = smoothed(built(folder, tokenizer, [ask(own, "acc")]), tokenizer)
    assert alone.questions == ()
    with pytest.raises(ValueError, match="no question"):
        Gradients(None, alone.questions, device="cpu")


def test_weights_of_groups_and_of_plain_sums(folder: TaskFolder, tokenizer: Any) -> None:
    names = [worlds.add_one_letter(folder, "letters"), worlds.add_choices(folder, "choices", 12)]
    folder.write(
        "both",
        {
            "group": "both",
            "task": names,
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        },
    )
    items = built(folder, tokenizer, [ask("both", "acc", 3.0)])
    shares = [one.share for one in smoothed(items, tokenizer).questions]
    assert shares == pytest.approx([1 / 36] * 36)
    words = worlds.add_last_word(folder, "words", 5)
    lower = built(folder, tokenizer, [ask(words, "perplexity", -2.0)])
    # mergekit-evolve's sum: a perplexity is to fall, so its weight is negative.
    summed = smoothed(lower, tokenizer, plain_sum=True).questions
    assert all(one.share > 0 for one in summed)
    bytes_ = sum(len(row["last"].encode()) for row in worlds.text_rows(5))
    assert summed[0].share == pytest.approx(2 / (math.log(2) * bytes_))
    assert all(one.share < 0 for one in smoothed(lower, tokenizer).questions)


def test_a_gradient_that_is_no_number_is_told(model: Any, tokenizer: Any, items: ItemSet) -> None:
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    with pytest.raises(TrialError, match="not finite"):
        gradient_of(model, smoothed(items, tokenizer))
