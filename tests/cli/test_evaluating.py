"""``evomerge evaluate``: models and recipes; the scores are lm-eval's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.worlds import World, run, said, strict_json, told

TASKS = ("quickstart_add", "quickstart_count", "quickstart_kinds", "quickstart_most")


def evaluated(*words: object) -> dict[str, Any]:
    result = run("evaluate", *words, "--json")
    assert result.exit_code == 0, result.stderr
    data = strict_json(result.stdout)
    assert data["model"] == str(words[0])
    return dict(data["tasks"])


def simple_evaluate(folder: Path, tasks: Path, samples: dict[str, list[int]]) -> dict[str, Any]:
    from lm_eval import simple_evaluate as evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results = evaluate(
        model=HFLM(pretrained=str(folder), device="cpu", batch_size=8, dtype="auto"),
        tasks=list(samples),
        samples=samples,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    assert results is not None
    return dict(results["results"])


def test_the_exported_and_merged_model_scores_what_simple_evaluate_says(shared: World) -> None:
    from evomerge.api import evaluate

    names = sorted(path.stem for path in shared.tasks.glob("quickstart_*.yaml"))
    assert len(names) == 9
    assert run("export", "small", "-o", "scored.yaml").exit_code == 0
    assert run("merge", "scored.yaml", "scored").exit_code == 0
    options = ("--include-path", shared.tasks, "--items", 30, "--seed", 5)
    ours = evaluated("scored", "--tasks", ",".join(names), *options)
    scores = evaluate("scored", names, items=30, seed=5, include_path=[shared.tasks])
    drawn = {task: list(score.doc_ids) for task, score in scores.tasks.items()}
    theirs = simple_evaluate(shared.root / "scored", shared.tasks, drawn)
    assert set(ours) == set(names)
    for task in names:
        assert ours[task]["items"] == 30
        metrics = {name: value["value"] for name, value in ours[task]["metrics"].items()}
        assert metrics
        for metric, value in metrics.items():
            assert value == pytest.approx(theirs[task][metric], abs=1e-6), (task, metric)
            assert scores.tasks[task].metrics
    # The recipe, merged in memory, is the same model.
    assert evaluated("scored.yaml", "--tasks", ",".join(names), *options) == ours


def test_a_trial_has_the_scores_of_its_merged_model(shared: World) -> None:
    from evomerge.api import evaluate, load_study
    from evomerge.evaluation import TaskRequest

    trial = load_study("small").trials[5]
    assert run("export", "small", "--trial", 5, "-o", "fifth.yaml").exit_code == 0
    assert run("merge", "fifth.yaml", "fifth").exit_code == 0
    requests = [
        TaskRequest(task, items=20, seed=3, holdout_task=f"{task}_heldout") for task in trial.scores
    ]
    scores = evaluate("fifth", requests, include_path=[shared.tasks])
    for task, metrics in trial.scores.items():
        for metric, (value, _) in metrics.items():
            found = {str(name): v.value for name, v in scores.tasks[task].metrics.items()}
            assert found[metric] == value


def test_in_words(shared: World) -> None:
    result = run(
        "evaluate", "quickstart/models/add", "--tasks", "quickstart_add, quickstart_most",
        "--items", 10, "--include-path", "quickstart/tasks",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "quickstart_add" in said(result)
    assert "acc,none" in said(result)
    assert "1.0000" in said(result)


def test_a_recipe_of_two_stages(shared: World) -> None:
    recipe = """\
name: halfway
merge_method: linear
models:
  - {model: quickstart/models/add, parameters: {weight: 0.5}}
  - {model: quickstart/models/base, parameters: {weight: 0.5}}
dtype: float32
---
merge_method: linear
models:
  - {model: halfway, parameters: {weight: 1.0}}
dtype: float32
"""
    one = "merge_method: linear\n" + recipe.split("merge_method: linear\n")[1].split("---")[0]
    shared.write("stages.yaml", recipe)
    shared.write("stage.yaml", one)
    options = ("--tasks", "quickstart_add", "--include-path", "quickstart/tasks", "--items", 40)
    assert evaluated("stages.yaml", *options) == evaluated("stage.yaml", *options)


def test_one_item_has_no_standard_error(shared: World) -> None:
    options = ("--tasks", "quickstart_add", "--include-path", "quickstart/tasks", "--items", 1)
    scores = evaluated("quickstart/models/add", *options)
    assert scores["quickstart_add"]["metrics"]["acc,none"] == {"value": 1.0, "stderr": None}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("quickstart/models/add", "--tasks", "quickstart_ad"), "quickstart_add"),
        (("quickstart/models/ad", "--tasks", "quickstart_add"), "quickstart/models/ad"),
        (("nowhere.yaml", "--tasks", "quickstart_add"), "nowhere.yaml"),
        (("", "--tasks", "quickstart_add"), "path"),
        (("+x", "--tasks", "quickstart_add"), "path"),
        (("quickstart/models/add", "--tasks", ","), "tasks: none given"),
        (
            ("quickstart/models/add", "--tasks", "quickstart_add", "--dtype", "float64"),
            "float32, bfloat16, float16",
        ),
        (
            ("quickstart/models/add", "--tasks", "quickstart_add", "--device", "tpux"),
            "tpux",
        ),
        (
            ("quickstart/models/add", "--tasks", "quickstart_add", "--items", "301"),
            "300",
        ),
    ],
)
def test_what_is_wrong_is_said(shared: World, words: tuple[str, ...], expected: str) -> None:
    result = run("evaluate", *words, "--include-path", "quickstart/tasks")
    assert result.exit_code in (1, 2)
    assert expected in told(result)
    assert not result.stdout
