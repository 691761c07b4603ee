"""Smooth metrics, against a plain reimplementation from what ``simple_evaluate`` logs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import TaskError
from evomerge.evaluation import (
    ItemSet,
    MetricName,
    Scorer,
    Setting,
    TaskRequest,
    build_items,
    compare,
    fitness,
)
from evomerge.evaluation.choices import Choices
from evomerge.evaluation.scores import Scores
from evomerge.evaluation.smooth import SMOOTH
from tests.evaluation import worlds
from tests.evaluation.test_equality import LENGTH, reference, run_both
from tests.evaluation.worlds import TaskFolder


def asked(task: str, *metrics: str, **more: Any) -> list[TaskRequest]:
    return [TaskRequest(task, MetricName(metric), **more) for metric in metrics]


def built(folder: TaskFolder, tokenizer: Any, requests: list[TaskRequest]) -> ItemSet:
    setting = Setting(include_path=(folder.path,))
    return build_items(requests, setting, tokenizer, max_length=LENGTH)


def by_hand(
    likelihoods: Sequence[float], right: Sequence[int], texts: Sequence[str], delimiter: str = " "
) -> dict[str, float | tuple[float, float]]:
    """One item's smooth metrics as their definitions have them, in plain Python."""
    values: dict[str, float | tuple[float, float]] = {}
    units = {"": [1] * len(texts), "_norm": map(len, texts)}
    units["_bytes"] = [len(text.encode()) for text in texts]
    for unit, lengths in units.items():
        z = [ll / length for ll, length in zip(likelihoods, lengths, strict=True)]
        total = sum(math.exp(x) for x in z)
        values[f"gold_prob{unit}"] = sum(math.exp(z[i]) for i in right) / total
        wrong = [x for i, x in enumerate(z) if i not in right]
        values[f"margin{unit}"] = max(z[i] for i in right) - max(wrong)
    best = max(right, key=lambda i: likelihoods[i])
    values["gold_loglikelihood"] = likelihoods[best]
    values["bits_per_byte"] = (likelihoods[best], len((delimiter + texts[best]).encode()))
    return values


def check_items(scores: Scores, task: str, expected: list[dict[str, Any]]) -> None:
    """Item values, their mean (or bits over bytes) and the standard error of it."""
    for name in expected[0]:
        metric = MetricName(name, "none")
        mine = scores.tasks[task].items[metric]
        want = np.array([item[name] for item in expected], dtype=float)
        np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-4)
        value = scores.value(task, metric)
        if name == "bits_per_byte":
            bits = -want[:, 0].sum() / math.log(2) / want[:, 1].sum()
            assert value.value == pytest.approx(bits, rel=1e-5)
            assert not value.higher_is_better
        else:
            assert value.value == pytest.approx(want.mean(), rel=1e-4, abs=1e-5)
            error = want.std(ddof=1) / math.sqrt(len(want))
            assert value.stderr == pytest.approx(error, rel=1e-3, abs=1e-6)
            assert value.higher_is_better


def logged(results: dict[str, Any], task: str) -> list[tuple[Any, list[float]]]:
    """Per document what ``simple_evaluate`` logs: it, and its requests' log-likelihoods."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [(s["doc"], [float(response[0][0]) for response in s["resps"]]) for s in samples]


def test_multiple_choice(model: Any, tokenizer: Any, folder: TaskFolder) -> None:
    task = worlds.add_choices(folder, "choices", doc_to_choice="{{choices + ['é à ü']}}")
    scores, results = run_both(model, tokenizer, folder, asked(task, *SMOOTH, items=11))
    expected = [
        by_hand(likelihoods, [doc["label"]], [*doc["choices"], "é à ü"])
        for doc, likelihoods in logged(results, task)
    ]
    check_items(scores, task, expected)
    for margin, accuracy in (("margin", "acc"), ("margin_norm", "acc_norm")):
        found = scores.tasks[task].items
        ahead, right = found[MetricName(margin, "none")], found[MetricName(accuracy, "none")]
        decided = ahead != 0  # of equally likely choices lm-eval takes the first
        np.testing.assert_array_equal(right[decided], ahead[decided] > 0)
        assert decided.sum() > 5


@pytest.mark.parametrize(
    "more",
    [
        {"doc_to_target": "{{choices[label]}}"},
        {"doc_to_target": "{{[label, 0]}}"},
        {"metric_list": worlds.metrics("acc", "acc_mutual_info")},
        {"metric_list": worlds.metrics("acc", "exact_match")},
    ],
    ids=["text", "several", "mutual-information", "lm-eval's own code"],
)
def test_ways_of_saying_what_is_right(
    model: Any, tokenizer: Any, folder: TaskFolder, more: dict[str, Any]
) -> None:
    task = worlds.add_choices(folder, "choices", doc_to_text="{{question}} ?", **more)
    several = "[" in str(more.get("doc_to_target", "")) and "label, 0" in more["doc_to_target"]
    if several:  # a choice that is never right
        definition = (folder.path / f"{task}.yaml").read_text()
        text = definition.replace(
            "doc_to_choice: choices", "doc_to_choice: \"{{choices + ['it']}}\""
        )
        (folder.path / f"{task}.yaml").write_text(text)
    names = ("gold_prob", "margin_bytes", "bits_per_byte")
    scores, results = run_both(model, tokenizer, folder, asked(task, *names, items=9))
    expected = []
    for doc, likelihoods in logged(results, task):
        texts = [*doc["choices"], *(["it"] if several else [])]
        right = sorted({doc["label"], 0} if several else {doc["label"]})
        item = by_hand(likelihoods[: len(texts)], right, texts)
        expected.append({name: item[name] for name in names})
    check_items(scores, task, expected)


def test_choices_in_the_context(model: Any, tokenizer: Any, folder: TaskFolder) -> None:
    rows = [
        {"answer": row["label"] % 2, "options": row["choices"][:2], "rest": " " + row["question"]}
        for row in worlds.choice_rows(10)
    ]
    task = folder.add(
        "blank",
        {"test": rows},
        output_type="multiple_choice",
        doc_to_text="answer",
        doc_to_target="rest",
        doc_to_choice="options",
        target_delimiter="",
        metric_list=worlds.metrics("acc"),
    )
    scores, results = run_both(model, tokenizer, folder, asked(task, "gold_prob", "bits_per_byte"))
    expected = []
    for doc, likelihoods in logged(results, task):
        item = by_hand(likelihoods, [doc["answer"]], doc["options"])
        bits = (likelihoods[doc["answer"]], len(doc["rest"].encode()))
        expected.append({"gold_prob": item["gold_prob"], "bits_per_byte": bits})
    check_items(scores, task, expected)


def test_texts_whose_likelihood_the_task_asks_for(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    last = worlds.add_last_word(folder, "last")
    rolling = folder.add(
        "rolling",
        {"test": worlds.text_rows(6, words=(3, 150))},
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    requests = [
        *asked(last, "gold_loglikelihood", "bits_per_byte"),
        *asked(rolling, "bits_per_byte"),
    ]
    scores, results = run_both(model, tokenizer, folder, requests)
    items = [
        {
            "gold_loglikelihood": likelihood,
            "bits_per_byte": (likelihood, len(doc["last"].encode())),
        }
        for doc, (likelihood,) in logged(results, last)
    ]
    check_items(scores, last, items)
    texts = sorted(results["samples"][rolling], key=lambda sample: sample["doc_id"])
    expected = [
        {"bits_per_byte": (float(s["resps"][0][0]), len(s["doc"]["text"].encode()))} for s in texts
    ]
    check_items(scores, rolling, expected)


@pytest.mark.parametrize("chat", [False, True])
def test_the_gold_solution_of_what_is_written(
    model: Any, tokenizer: Any, folder: TaskFolder, chat: bool
) -> None:
    delimiter = "" if chat else " "
    task = worlds.add_writing(folder, "writing", doc_to_target="{{text}} é", fewshot_split="test")
    setting = Setting(include_path=(folder.path,), apply_chat_template=chat)
    requests = [
        TaskRequest(task, MetricName.parse(name), items=8, num_fewshot=1)
        for name in ("gold_loglikelihood", "exact_match,whole", "bits_per_byte")
    ]
    items = build_items(requests, setting, tokenizer, max_length=400)
    scores = Scorer(model, tokenizer, items).score()
    options = {"apply_chat_template": chat, "num_fewshot": 1}
    results = reference(model, tokenizer, folder, items, [task], **options)
    exact = MetricName("exact_match", "whole")
    assert scores.value(task, exact).value == results["results"][task][str(exact)]
    assert len(items.queries) == 16
    expected = []
    for instance in items.tasks[0].task.instances:
        text = f"{delimiter}{instance.doc['text']} é"
        likelihood = plain_likelihood(model, tokenizer, instance.args[0], text)
        pair = (likelihood, len(text.encode()))
        expected.append({"gold_loglikelihood": likelihood, "bits_per_byte": pair})
    check_items(scores, task, expected)


def plain_likelihood(model: Any, tokenizer: Any, prompt: str, text: str) -> float:
    """lm-eval's own answer to one request."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    request = Instance("loglikelihood", {}, (prompt, text), 0)
    return float(language_model.loglikelihood([request], disable_tqdm=True)[0][0])


@pytest.mark.parametrize("by_size", [True, False, None], ids=["by size", "plain", "tag"])
def test_groups(model: Any, tokenizer: Any, folder: TaskFolder, by_size: bool | None) -> None:
    more = {"tag": "both"} if by_size is None else {}
    small = worlds.add_choices(folder, "small", count=6, seed=1, **more)
    large = worlds.add_choices(folder, "large", count=20, seed=2, **more)
    if by_size is not None:
        aggregate = [{"metric": "acc", "weight_by_size": by_size}]
        group = {"group": "both", "task": [small, large], "aggregate_metric_list": aggregate}
        folder.write("both", group)
    requests = [*asked("both", "gold_prob", items=13), *asked("both", "bits_per_byte", items=13)]
    items = built(folder, tokenizer, requests)
    scores = Scorer(model, tokenizer, items).score()
    for metric in (request.metric for request in items.requests):
        members = [scores.value(task, metric).value for task in (small, large)]
        expected = np.average(members, weights=[3, 10] if by_size else None)
        assert scores.value("both", metric).value == pytest.approx(expected)
    prob, bits = (scores.value("both", request.metric).value for request in items.requests)
    assert fitness(scores, items.requests) == pytest.approx((prob - bits) / 2)
    outcome = compare(scores, scores, items.requests)
    assert (outcome.difference, outcome.low, outcome.high) == (0.0, 0.0, 0.0)


def test_the_task_s_own_metric_of_the_name_comes_first(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    (folder.path / "own.py").write_text(
        "def judge(doc, results):\n    return {'gold_prob': float(len(doc['question']))}\n"
    )
    task = worlds.add_choices(folder, "own", metric_list=worlds.metrics("gold_prob"))
    file = folder.path / "own.yaml"
    file.write_text(file.read_text() + "process_results: !function own.judge\n")
    scores, results = run_both(model, tokenizer, folder, asked(task, "gold_prob"))
    lengths = [len(doc["question"]) for doc, _ in logged(results, task)]
    assert scores.value(task, MetricName("gold_prob")).value == pytest.approx(np.mean(lengths))


REFUSED: dict[str, tuple[Any, str]] = {
    "own code": (
        lambda folder: worlds.add_choices(folder, "task"),
        "task task: judges its answers by code of its own",
    ),
    "no right choice": (
        lambda folder: worlds.add_choices(folder, "task", doc_to_target="{{label + 2}}"),
        "of its documents have no right choice (the first is document",
    ),
    "no wrong choice": (
        lambda folder: worlds.add_choices(folder, "task", doc_to_target="{{[0, 1, 2, 3]}}"),
        "have no wrong choice",
    ),
    "no choices": (
        lambda folder: worlds.add_writing(folder, "task"),
        "'margin' compares choices, and the task (generate_until) has none",
    ),
    "rolling": (worlds.add_rolling, "allowed: what it reports, and bits_per_byte"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_for(folder: TaskFolder, tokenizer: Any, case: str) -> None:
    add, expected = REFUSED[case]
    task = add(folder, "task") if case == "rolling" else add(folder)
    if case == "own code":
        (folder.path / "own.py").write_text("def judge(doc, results):\n    return {'acc': 1.0}\n")
        file = folder.path / "task.yaml"
        file.write_text(file.read_text() + "process_results: !function own.judge\n")
    with pytest.raises(TaskError) as refused:
        built(folder, tokenizer, asked(task, "margin"))
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"doc_to_target": ""}, "has no gold solution: its target (doc_to_target) is ''"),
        ({"doc_to_target": 0, "process_results": True}, "its target (doc_to_target) is 0"),
        ({"unsafe_code": True}, "its targets are the code of tests"),
        ({"doc_to_target": "{{(text + ' ') * 40}}"}, "its gold solution: the continuation"),
    ],
)
def test_no_gold_solution(
    folder: TaskFolder, tokenizer: Any, more: dict[str, Any], expected: str
) -> None:
    own_code = more.pop("process_results", False)
    task = worlds.add_writing(folder, "task", **more)
    if own_code:
        (folder.path / "own.py").write_text("def judge(doc, results):\n    return {'acc': 1.0}\n")
        file = folder.path / "task.yaml"
        file.write_text(file.read_text() + "process_results: !function own.judge\n")
    setting = Setting(include_path=(folder.path,), confirm_unsafe=True)
    with pytest.raises(TaskError) as refused:
        build_items(asked(task, "gold_loglikelihood"), setting, tokenizer, max_length=LENGTH)
    assert expected in str(refused.value)


def test_a_misspelt_metric_hears_what_is_allowed(folder: TaskFolder, tokenizer: Any) -> None:
    task = worlds.add_choices(folder, "task")
    with pytest.raises(TaskError, match="'gold_prb' is not reported") as refused:
        built(folder, tokenizer, asked(task, "gold_prb"))
    assert f"allowed besides: {', '.join(SMOOTH)}" in str(refused.value)


tables = st.integers(2, 5).flatmap(
    lambda most: st.tuples(
        st.lists(
            st.lists(st.floats(-80, -0.01), min_size=most, max_size=most), min_size=1, max_size=6
        ),
        st.lists(st.integers(0, most - 1), min_size=6, max_size=6),
        st.lists(st.integers(1, 30), min_size=most, max_size=most),
    )
)


@settings(max_examples=60)
@given(tables, st.randoms(use_true_random=False), st.floats(-40, 0))
def test_properties(
    table: tuple[list[list[float]], list[int], list[int]], random: Any, shift: float
) -> None:
    """Whatever the order of the choices; a likelier context does not matter without lengths."""
    likelihoods, gold, widths = np.array(table[0]), table[1], np.array(table[2], dtype=float)
    right = np.zeros(likelihoods.shape, dtype=bool)
    right[np.arange(len(right)), gold[: len(right)]] = True
    lengths = np.tile(widths, (len(right), 1))
    choices = Choices(np.zeros(right.shape, dtype=int), right, lengths, lengths, lengths)
    values = {name: metric.values(choices, likelihoods) for name, metric in SMOOTH.items()}
    for unit, length in (("", 1.0), ("_norm", lengths)):
        prob, margin = values[f"gold_prob{unit}"], values[f"margin{unit}"]
        assert ((prob > 0) & (prob <= 1)).all()
        compared = likelihoods / length
        best = compared.max(axis=1)
        np.testing.assert_array_equal(margin >= 0, (np.where(right, compared, -1e9).max(1)) == best)
        # Where the margin is below 0, another choice is likelier: never more than half is left.
        assert (prob[margin < 0] <= 0.5).all()
    order = list(range(likelihoods.shape[1]))
    random.shuffle(order)
    mixed = Choices(
        *(array[:, order] for array in (choices.query, right, lengths, lengths, lengths))
    )
    for name, metric in SMOOTH.items():
        np.testing.assert_allclose(metric.values(mixed, likelihoods[:, order]), values[name])
    for name in ("gold_prob", "margin"):
        moved = SMOOTH[name].values(choices, likelihoods + shift)
        np.testing.assert_allclose(moved, values[name], rtol=1e-6, atol=1e-9)
