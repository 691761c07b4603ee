"""On the shipped tasks and trained models, our scores are ``simple_evaluate``'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.evaluation import (
    MetricName,
    Scorer,
    Setting,
    TaskRequest,
    build_items,
    context_length,
)
from tests.evaluation.test_equality import check_answers, check_equal, reference
from tests.evaluation.worlds import TaskFolder

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart"
MODELS = sorted(path.parent for path in (QUICKSTART / "models").glob("*/config.json"))
TASKS = sorted(path.stem for path in (QUICKSTART / "tasks").glob("*.yaml"))
ITEMS = 40


def metric_of(task: str) -> MetricName:
    definition = (QUICKSTART / "tasks" / f"{task}.yaml").read_text()
    return MetricName("exact_match" if "generate_until" in definition else "acc")


@pytest.mark.skipif(not MODELS, reason="the quickstart's models are not trained yet")
@pytest.mark.parametrize("path", MODELS[:2], ids=lambda path: path.name)
def test_every_quickstart_task(path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    requests = [TaskRequest(task, metric_of(task), items=ITEMS) for task in TASKS]
    setting = Setting(include_path=(QUICKSTART / "tasks",))
    items = build_items(
        requests, setting, tokenizer, max_length=context_length(model.config, tokenizer)
    )
    scorer = Scorer(model, tokenizer, items)
    results = reference(
        model, tokenizer, TaskFolder(QUICKSTART / "tasks"), items, TASKS, batch_size=8
    )
    check_equal(scorer.score(), results)
    check_answers(scorer, results, items.samples)
