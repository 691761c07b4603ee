"""``evomerge check``: what fits is counted, what does not is refused all at once."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.search.folder import StudyFolder
from evomerge.search.opening import PROVENANCE
from evomerge.search.storage import open_store
from tests.cli.worlds import BASELINES, World, run, said, strict_json, told
from tests.evaluation import shipped


def test_a_good_space_in_words(shared: World) -> None:
    result = run("check", shared.space("good"))
    assert result.exit_code == 0
    text = said(result)
    assert "4 genes: weight/add/0, weight/add/1, weight/most/0, weight/most/1" in text
    assert f"{BASELINES} baselines: base, uniform, only add, only most" in text
    assert "40 search items, 40 race items, 60 held-out items" in text
    assert "Everything fits." in text


def test_a_good_space_in_json(shared: World) -> None:
    result = run("check", shared.space("good"), "--json", "--workers", 2)
    assert result.exit_code == 0
    data = strict_json(result.stdout)
    assert data["ok"] is True
    assert data["genes"][0]["name"] == "weight/add/0"
    assert data["genes"][0]["low"] == -0.2
    assert data["genes"][0]["high"] == 1.2
    assert data["baselines"] == ["base", "uniform", "only add", "only most"]
    assert data["items"] == {"search": 40, "race": 40, "holdout": 60}
    assert set(data["tasks"]) == {"quickstart_add", "quickstart_most"}
    assert data["workers"] == 2
    assert data["at_least"]["worker_bytes"] > 4 * 1_000_000
    assert {model["layers"] for model in data["models"]} == {6}


def test_every_fault_of_a_space_at_once_with_its_line(world: World) -> None:
    space = world.write(
        "broken.yaml",
        """\
base_model: quickstart/models/base
models: [quickstart/models/add, quickstart/models/most]
merge_methd: ties
merge_method: tise
genome:
  layers: {groups: two}
  weight: [1.0, 0.0]
include_path: quickstart/tasks
tasks:
  - {task: quickstart_add, items: -3}
search: {sampler: cma}
""",
    )
    before = world.listing()
    result = run("check", space)
    assert result.exit_code == 1
    for line in (3, 4, 6, 7, 10, 11):
        assert f"broken.yaml:{line}:" in result.stderr, line
    assert "merge_method" in result.stderr
    assert "task_arithmetic" in result.stderr  # what is allowed
    assert not result.stdout
    assert world.listing() == before
    data = strict_json(run("check", space, "--json").stdout)
    assert data["ok"] is False
    assert len(data["faults"]) >= 6
    assert all(set(fault) == {"place", "problem"} for fault in data["faults"])
    searched = run("search", space)
    assert searched.exit_code == 1
    assert world.listing() == before


def test_a_space_that_is_not_there(world: World) -> None:
    result = run("check", "nowhere.yaml")
    assert result.exit_code == 1
    assert "nowhere.yaml" in result.stderr


def test_a_file_that_is_no_yaml(world: World) -> None:
    result = run("check", world.write("broken.yaml", "models: [a, b\ngenome: {\n"))
    assert result.exit_code == 1
    assert "broken.yaml:" in result.stderr


def test_missing_models_are_all_named(world: World) -> None:
    space = world.space(models=["quickstart/models/ad", "quickstart/models/mots"])
    before = world.listing()
    for command in ("check", "search"):
        result = run(command, space)
        assert result.exit_code == 1
        assert "quickstart/models/ad" in told(result)
        assert "quickstart/models/mots" in told(result)
        assert world.listing() == before


def test_tasks_metrics_and_items_are_refused_together(world: World) -> None:
    tasks = [
        {"task": "quickstart_ad"},
        {"task": "quickstart_most", "metric": "exact_match"},
        {"task": "quickstart_kinds", "items": 400},
    ]
    before = world.listing()
    result = run("check", world.space(tasks=tasks))
    after = world.listing() - {"small.yaml"}
    assert result.exit_code == 1
    text = told(result)
    assert "quickstart_ad" in text
    assert "quickstart_add" in text  # the near match
    assert "exact_match" in text
    assert "acc" in text
    assert "400" in text
    assert "300" in text  # how many there are
    assert after == before


def test_more_items_than_there_are_are_refused_at_their_keys(world: World) -> None:
    tasks = [{"task": f"quickstart_{name}", "items": 290} for name in ("add", "most")]
    space = world.space(tasks=tasks, finals={"items": 3000}, holdout={"items": 5})
    lines = space.read_text().splitlines()
    result = run("check", space)
    assert result.exit_code == 1
    for name in ("add", "most"):
        line = lines.index("finals:") + 2
        assert (
            f"small.yaml:{line}: finals.items: task quickstart_{name}: 3000, but search and "
            "held-out items leave 5 documents; write 1 to 5, or leave the key out"
        ) in told(result)
    space = world.space(tasks=tasks, finals=None, holdout={"items": 11})
    line = space.read_text().splitlines().index("holdout:") + 2
    result = run("check", space)
    assert result.exit_code == 1
    assert (
        f"small.yaml:{line}: holdout.items: task quickstart_add: 11, but the search leaves 10"
    ) in told(result)


def test_models_of_another_shape_name_the_tensor(world: World) -> None:
    file = world.models / "most" / "model.safetensors"
    held = load_file(file)
    name = "model.layers.2.mlp.up_proj.weight"
    held[name] = torch.zeros(held[name].shape[0] + 1, held[name].shape[1])
    save_file(held, file, metadata={"format": "pt"})
    result = run("check", world.space())
    assert result.exit_code == 1
    assert name in told(result)
    assert "most" in told(result)


def test_another_vocabulary_is_refused(world: World) -> None:
    file = world.models / "most" / "tokenizer.json"
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(data))
    result = run("check", world.space())
    assert result.exit_code == 1
    assert "most" in told(result)


def test_a_folder_that_is_no_model(world: World) -> None:
    (world.models / "most" / "model.safetensors").unlink()
    shutil.rmtree(world.models / "add")
    (world.models / "add").mkdir()
    result = run("check", world.space())
    assert result.exit_code == 1
    assert "models/most" in told(result)
    assert "models/add" in told(result)


@pytest.mark.parametrize("genome", [{"weight": 0.5}, {"weight": [0.5, 0.5]}])
def test_a_genome_in_which_nothing_varies(world: World, genome: dict[str, object]) -> None:
    result = run("check", world.space(genome=genome))
    assert result.exit_code == 1
    assert "genome" in told(result)


EVOLVE = """\
genome:
  models: [quickstart/models/add, quickstart/models/most]
  merge_method: dare_ties
  base_model: quickstart/models/base
  tokenizer_source: base
  layer_granularity: 3
  allow_negative_weights: false
tasks:
  - {name: quickstart_add, weight: 1.0, metric: "acc,none"}
  - {name: quickstart_most, weight: 0.5}
limit: 12
apply_chat_template: false
"""


def test_mergekit_evolves_own_file_is_checked_and_searched_unchanged(world: World) -> None:
    space = world.write("evolve.yaml", EVOLVE)
    unknown = run("check", space)
    assert unknown.exit_code == 1
    assert "quickstart_add" in unknown.stderr
    options = ("--include-path", "quickstart/tasks")
    checked = run("check", space, "--json", *options)
    assert checked.exit_code == 0, checked.stderr
    data = strict_json(checked.stdout)
    assert data["merge_method"] == "dare_ties"
    assert len(data["genes"]) == 2 * 2 * 2  # models × groups × (weight, density)
    assert data["items"]["search"] == 24
    searched = run("search", space, "--trials", 6, *options)
    assert searched.exit_code == 0, searched.stderr
    best = strict_json(run("best", "evolve", "--json").stdout)
    scores = best["best"]["scores"]
    total = scores["quickstart_add"]["acc,none"][0] + 0.5 * scores["quickstart_most"]["acc,none"][0]
    assert best["best"]["fitness"] == pytest.approx(total)  # their plain sum


def test_where_the_models_will_be_held_is_told(shared: World) -> None:
    space = shared.space("held", resources={"residency": "device", "workers": 3})
    assert "Models in host memory, a copy for each of 3 workers: " in said(run("check", space))
    data = strict_json(run("check", shared.space("good"), "--json", "--workers", 2).stdout)
    assert data["residency"]["residency"] == "host"
    assert "one copy for all 2 workers, mapped from the files" in data["residency"]["message"]
    # Three models once, the live model for each worker.
    assert 0 < data["residency"]["host_bytes"] < data["at_least"]["worker_bytes"] * 2


def test_models_that_do_not_fit_are_refused(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.search.residence.free_host_memory", lambda: 10**6)
    for command in ("check", "search"):
        result = run(command, shared.space("large", resources={"residency": "host"}))
        assert result.exit_code == 1
        text = " ".join(result.stderr.split())
        assert "large.yaml:" in text
        assert "resources.residency: the models do not fit (host: " in text
        assert "are needed in host memory, 1.0 MB are free, a tenth of it kept back" in text
    assert not (shared.root / "studies" / "large").exists()
    result = run("check", shared.space("strange", resources={"residency": "gpu"}))
    assert result.exit_code == 1
    assert "resources.residency" in result.stderr
    assert "auto" in result.stderr


def test_what_the_search_sees_of_a_benchmark_is_told_once_and_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", world.root / "cache")
    shipped.make_hub(world.root)
    own = [str(shipped.SHIPPED / folder) for folder in ("arc", "lambada")]
    tasks = [{"task": "arc_easy", "items": 4}, {"task": "lambada_openai", "items": 5}]
    changes = {"include_path": own, "holdout": {"items": 3}}
    space = world.space("public", tasks=tasks, **changes)
    note = "task lambada_openai: is searched on the documents ('test') that this public benchmark"
    checked = run("check", space)
    assert said(checked).count(note) == 1
    assert "arc_easy: is searched" not in said(checked)
    searched = run("search", space, "--trials", BASELINES)
    assert searched.exit_code == 0, searched.stderr
    assert told(searched).count(note) == 1
    kept = json.loads((world.study("public") / "provenance.json").read_text())
    assert kept["splits"] == {"arc_easy": "validation", "lambada_openai": "test"}
    # Items of another split are other items: the study is not gone on with.
    tasks[0]["split"] = "evaluation"
    again = run("search", world.space("public", tasks=tasks, **changes), "--trials", 9)
    assert again.exit_code == 1
    assert "its tasks' items, prompts or tokenizer have changed" in told(again)
    assert "split: evaluation" not in told(again)


def test_a_study_from_before_there_was_a_choice_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", world.root / "cache")
    shipped.make_hub(world.root)
    tasks = [{"task": "arc_easy", "items": 4, "split": "evaluation"}]
    changes = {"include_path": str(shipped.SHIPPED / "arc"), "holdout": {"items": 3}}
    space = world.space("older", tasks=tasks, **changes)
    assert run("search", space, "--trials", BASELINES).exit_code == 0
    with StudyFolder(world.study("older")).lock():
        store = open_store("older", StudyFolder(world.study("older")).url)
        origin = store.facts[PROVENANCE]
        store.remember(**{PROVENANCE: {k: v for k, v in origin.items() if k != "splits"}})
    assert run("search", space, "--trials", BASELINES + 1).exit_code == 0
    del tasks[0]["split"]
    refused = run("search", world.space("older", tasks=tasks, **changes), "--trials", 9)
    assert refused.exit_code == 1
    assert "split: evaluation says so of a task" in told(refused)


def test_tasks_that_run_code_need_a_yes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", world.root / "cache")
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(world.root / "modules"))
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")  # the test's own, so that it is taken back
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL")
    shipped.make_hub(world.root)
    own = world.root / "own"
    own.mkdir()
    short = {"task": "short", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}}
    short["include"] = str(shipped.SHIPPED / "humaneval" / "humaneval.yaml")
    world.write("own/short.yaml", yaml.safe_dump(short))
    tasks = [{"task": "short", "metric": "pass@1", "items": 2}]
    evaluate = ("evaluate", "quickstart/models/base", "--tasks", "short", "--include-path", own)
    for yes in (False, True):
        space = world.space(
            "code", include_path=str(own), tasks=tasks, confirm_unsafe=yes, holdout=None
        )
        flag = ["--confirm-unsafe"] if yes else []
        for result in (run("check", space), run(*evaluate, *flag)):
            assert result.exit_code == (0 if yes else 1), result.stderr
            assert ("task short: runs code that the model writes" in told(result)) is not yes
