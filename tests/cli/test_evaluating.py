"""``evomerge evaluate``: models and recipes; the scores are lm-eval's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

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
    expected = {"value": 1.0, "stderr": None, "higher_is_better": True}
    assert scores["quickstart_add"]["metrics"]["acc,none"] == expected


OF_TASKS = ("--include-path", "quickstart/tasks")


def test_two_models_are_compared_item_by_item(shared: World) -> None:
    from evomerge.api import evaluate
    from evomerge.evaluation import MetricName, TaskRequest, compare

    words = ["evaluate", "quickstart/models/add", "--compare", "quickstart/models/most"]
    words += ["--tasks", "quickstart_add=12, quickstart_most", "--items", "20", *OF_TASKS]
    words += ["--metric", "acc", "--metric", "gold_prob"]
    data = strict_json(run(*words, "--json").stdout)
    assert [data["model"], data["other"]["model"]] == [words[1], words[3]]
    assert [task["items"] for task in data["tasks"].values()] == [12, 20]
    requests = [
        TaskRequest(task, MetricName(metric), items=items)
        for task, items in (("quickstart_add", 12), ("quickstart_most", 20))
        for metric in ("acc", "gold_prob")
    ]
    ours, theirs = (
        evaluate(model, requests, include_path=[shared.tasks]) for model in (words[1], words[3])
    )
    expected = compare(theirs, ours, requests)
    for found, one in zip(data["differences"], expected.tasks, strict=True):
        assert (found["task"], found["metric"]) == (one.task, one.metric)
        assert (found["value"], found["other"]) == (one.b, one.a)
        assert (found["better_by"], found["low"], found["high"]) == (
            one.difference,
            one.low,
            one.high,
        )
        assert (found["better"], found["worse"], found["same"]) == (one.wins, one.losses, one.ties)
        metric = data["tasks"][one.task]["metrics"][one.metric]
        assert metric["value"] == one.b
        assert data["other"]["tasks"][one.task]["metrics"][one.metric]["value"] == one.a
    table = said(run(*words))
    for one in expected.tasks:
        assert f"{one.difference:+.4f}" in table
        assert f"{one.low:+.4f} to {one.high:+.4f}" in table


def test_a_model_and_itself_do_not_differ(shared: World) -> None:
    """Without --metric every metric that the tasks report; the recipe of a model is the model."""
    recipe = """\
merge_method: linear
models: [{model: quickstart/models/add, parameters: {weight: 1.0}}]
dtype: float32
"""
    other = shared.write("itself.yaml", recipe)
    options = ("--tasks", "quickstart_count", "--items", 25, *OF_TASKS, "--compare", other)
    data = strict_json(run("evaluate", "quickstart/models/add", *options, "--json").stdout)
    assert [one["metric"] for one in data["differences"]] == ["acc,none", "acc_norm,none"]
    for one in data["differences"]:
        assert [one[key] for key in ("better_by", "low", "high", "same")] == [0.0, 0.0, 0.0, 25]


def test_what_json_says_of_the_run(shared: World) -> None:
    options = ("--tasks", "quickstart_add", "--items", 9, "--seed", 4, *OF_TASKS, "--dtype")
    result = run("evaluate", "quickstart/models/add", *options, "float32", "--json")
    data = strict_json(result.stdout)
    task = data["tasks"]["quickstart_add"]
    assert (task["items"], task["version"], task["num_fewshot"]) == (9, "1.0", 0)
    settings = data["settings"]
    assert settings["seed"] == 4
    assert settings["dtype"] == "float32"
    assert settings["apply_chat_template"] is False
    assert data["versions"]["lm-eval"]
    other = run("evaluate", "quickstart/models/add", *options, "float32", "--json", "--seed", 5)
    assert strict_json(other.stdout)["items_digest"] != data["items_digest"]


def test_the_scores_of_every_item_in_a_file(shared: World) -> None:
    import json

    file = shared.root / "items.jsonl"
    words = ("evaluate", "quickstart/models/add", "--compare", "quickstart/models/base")
    words += ("--tasks", "quickstart_add", "--items", "15", "--metric", "bits_per_byte")
    data = strict_json(run(*words, *OF_TASKS, "--samples", file, "--json").stdout)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 30
    assert len({(line["model"], line["doc_id"]) for line in lines}) == 30
    for model, tasks in ((words[1], data["tasks"]), (words[3], data["other"]["tasks"])):
        metrics = tasks["quickstart_add"]["metrics"]
        mine = [line for line in lines if line["model"] == model]
        right = sum(line["acc,none"] for line in mine) / 15
        assert right == pytest.approx(metrics["acc,none"]["value"])
        nats, size = (sum(line["bits_per_byte,none"][i] for line in mine) for i in (0, 1))
        bits = -nats / size / 0.6931471805599453
        assert bits == pytest.approx(metrics["bits_per_byte,none"]["value"])
    again = run(*words, *OF_TASKS, "--samples", file)
    assert again.exit_code == 1
    assert "items.jsonl: exists; it is not overwritten" in told(again)


def test_everything_that_is_wrong_at_once(shared: World) -> None:
    result = run(
        "evaluate", "quickstart/models/ad", "--compare", "quickstart/models/mots",
        "--tasks", "quickstart_ad=0,quickstart_most", "--dtype", "f32", "--device", "tpux",
        "--samples", "nowhere/file", *OF_TASKS,
    )  # fmt: skip
    assert result.exit_code == 1
    text = told(result)
    expected = (
        "models/ad:",
        "models/mots:",
        "task quickstart_ad: '0' items",
        "task quickstart_ad: ",
        "'f32'",
        "'tpux'",
        "nowhere/file:",
    )
    for words in expected:
        assert words in text
    assert "for 7 reasons" in text


def test_a_filter_of_a_metric_is_shown_alone(shared: World, tmp_path: Path) -> None:
    items = shared.root / "quickstart/tasks/items/add.search.jsonl"
    definition = {
        "task": "written",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [
            {"name": name, "filter": [{"function": "take_first"}]} for name in ("whole", "strict")
        ],
    }
    (tmp_path / "written.yaml").write_text(yaml.safe_dump(definition))
    asked = (
        "evaluate",
        "quickstart/models/add",
        "--tasks",
        "written=2",
        "--include-path",
        tmp_path,
    )
    one = run(*asked, "--metric", "exact_match,strict")
    assert one.exit_code == 0, one.stderr
    assert "exact_match,strict" in one.stdout
    assert "exact_match,whole" not in one.stdout
    both = run(*asked)
    assert "exact_match,strict" in both.stdout
    assert "exact_match,whole" in both.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("quickstart/models/ad", "--tasks", "quickstart_add"), "quickstart/models/ad"),
        (("nowhere.yaml", "--tasks", "quickstart_add"), "nowhere.yaml"),
        (("", "--tasks", "quickstart_add"), "path"),
        (("+x", "--tasks", "quickstart_add"), "path"),
        (("quickstart/models/add", "--tasks", ","), "tasks: none given"),
        (("quickstart/models/add", "--tasks", "quickstart_add=x"), "'x' items"),
        (("quickstart/models/add", "--tasks", "quickstart_add=301"), "300"),
        (
            ("quickstart/models/add", "--tasks", "quickstart_add", "--metric", "accc"),
            "'accc' is not reported; the task reports 'acc,none' and 'acc_norm,none'; allowed "
            "besides: gold_prob",
        ),
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
