"""A score is lm-eval's score: ours against ``simple_evaluate`` on the same model and items."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.evaluation import ItemSet, MetricName, Scorer, Setting, TaskRequest, build_items
from evomerge.evaluation.scores import Scores
from tests.evaluation import worlds
from tests.evaluation.worlds import TaskFolder, make_model, make_tokenizer

LENGTH = 96


def reference(
    model: Any,
    tokenizer: Any,
    folder: TaskFolder,
    items: ItemSet,
    names: list[str],
    *,
    batch_size: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """``simple_evaluate`` itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
        tasks=names,
        samples=items.samples,
        task_manager=TaskManager(include_path=str(folder.path), include_defaults=False),
        bootstrap_iters=options.pop("bootstrap_iters", 2),
        **options,
    )
    assert results is not None
    return dict(results)


def check_equal(scores: Scores, results: dict[str, Any]) -> None:
    """Every number that lm-eval reports is ours too."""
    for task, theirs in results["results"].items():
        reported = {
            key: value
            for key, value in theirs.items()
            if "," in key and "_stderr" not in key
        }
        assert reported
        for key, value in reported.items():
            name = MetricName.parse(key)
            mine = scores.tasks[task].metrics[name]
            assert mine.value == pytest.approx(value, rel=1e-5), (task, key)
            stderr = theirs[f"{name.name}_stderr,{name.filter}"]
            if stderr != "N/A" and mine.stderr is not None:
                assert mine.stderr == pytest.approx(stderr, rel=1e-4)


def check_answers(scorer: Scorer, results: dict[str, Any], samples: dict[str, list[int]]) -> None:
    """Every log-likelihood within 1e-4, every greedy flag and every text the same."""
    answers = iter(scorer.respond())
    for task in scorer.items.tasks:
        logged = results["samples"][task.name]
        first_filter = [sample for sample in logged if sample["filter"] == logged[0]["filter"]]
        assert [sample["doc_id"] for sample in first_filter] == samples[task.name]
        theirs = [resps for sample in first_filter for resps in sample["resps"]]
        assert len(theirs) == len(task.queries)
        for expected in theirs:
            mine = next(answers)
            assert len(mine) == len(expected)
            for got, want in zip(mine, expected, strict=True):
                if isinstance(want, str):
                    assert got == want
                else:
                    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def run_both(
    model: Any,
    tokenizer: Any,
    folder: TaskFolder,
    requests: list[TaskRequest],
    setting: Setting | None = None,
    *,
    batch_tokens: int = 300,
    **options: Any,
) -> tuple[Scores, dict[str, Any]]:
    setting = setting or Setting(include_path=(folder.path,))
    items = build_items(requests, setting, tokenizer, max_length=LENGTH)
    scorer = Scorer(model, tokenizer, items, batch_tokens=batch_tokens)
    scores = scorer.score()
    names = list(dict.fromkeys(request.task for request in requests))
    results = reference(model, tokenizer, folder, items, names, **options)
    check_equal(scores, results)
    check_answers(scorer, results, items.samples)
    return scores, results


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(
    ("add", "metric"),
    [
        (worlds.add_choices, "acc_norm"),
        (worlds.add_one_letter, "acc"),
        (worlds.add_last_word, "perplexity"),
        (worlds.add_rolling, "bits_per_byte"),
        (worlds.add_writing, "exact_match,first-letter"),
    ],
)
def test_every_kind_of_request(
    folder: TaskFolder, add: worlds.Adder, metric: str, adds_bos: bool
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    model = make_model(tokenizer)
    task = add(folder, "plain")
    scores, _ = run_both(
        model,
        tokenizer,
        folder,
        [TaskRequest(task, MetricName.parse(metric), items=7)],
    )
    assert len(scores.tasks[task].doc_ids) == 7
