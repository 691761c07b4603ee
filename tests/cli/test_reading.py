"""``evomerge best``, ``export`` and ``dashboard``, and the files beside a study's database."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cli.worlds import EVOMERGE, World, run, said, strict_json, table, told


def test_the_best_trial_in_words_and_in_json(shared: World) -> None:
    in_words = run("best", "small")
    assert in_words.exit_code == 0
    assert "8 complete" in said(in_words)
    assert "held-out items" in said(in_words)
    in_json = run("best", "small", "--json")
    data = strict_json(in_json.stdout)
    rows = table(shared.study("small"))
    assert data["study"] == "small"
    assert data["trials"] == {"complete": 8}
    assert data["best"]["fitness"] == pytest.approx(rows.fitness.max())
    assert data["best_baseline"]["kind"] == "baseline"
    held_out = json.loads((shared.study("small") / "heldout.json").read_text())
    assert data["verdict"] == held_out
    finalists = data["race"]["finalists"]
    assert data["race_items"] > 0
    assert finalists[0]["search_fitness"] == data["best"]["fitness"]
    assert "The race: " in said(in_words)
    assert held_out["items"] == 60
    assert run("best", "studies/small", "--json").stdout == in_json.stdout


def test_an_unknown_study_lists_the_known_ones(shared: World) -> None:
    before = shared.listing()
    for command in ("best", "export", "dashboard"):
        result = run(command, "smal")
        assert result.exit_code == 1
        assert "smal" in told(result)
        assert "studies below studies/: small" in told(result)
    elsewhere = run("best", "smal", "--storage", f"sqlite:///{shared.study('small')}/study.db")
    assert elsewhere.exit_code == 1
    assert "it has: small" in told(elsewhere)
    assert shared.listing() == before


def test_a_storage_that_is_not_there_is_not_made(shared: World) -> None:
    before = shared.listing()
    result = run("best", "small", "--storage", "sqlite:///nowhere.db")
    assert result.exit_code == 1
    assert "nowhere.db" in told(result)
    assert shared.listing() == before
    assert run("best", "small", "--storage", "nonsense").exit_code == 1
    assert run("best", "small", "--storage", "redis://localhost:1").exit_code == 1


def test_export_writes_a_recipe_that_mergekit_reads(shared: World) -> None:
    from mergekit.config import MergeConfiguration

    result = run("export", "small", "--trial", 6, "-o", "sixth.yaml")
    assert result.exit_code == 0
    assert "sixth.yaml" in told(result)
    text = (shared.root / "sixth.yaml").read_text()
    printed = run("export", "small", "--trial", 6)
    assert yaml.safe_load(printed.stdout) == yaml.safe_load(text)
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    assert config.merge_method == "task_arithmetic"
    refused = run("export", "small", "--trial", 7, "-o", "sixth.yaml")
    assert refused.exit_code == 1
    assert "sixth.yaml" in told(refused)
    assert (shared.root / "sixth.yaml").read_text() == text
    assert run("export", "small", "-o", "no/such/folder.yaml").exit_code == 1


def test_export_without_a_number_is_the_best(shared: World) -> None:
    best = strict_json(run("best", "small", "--json").stdout)["best"]
    assert yaml.safe_load(run("export", "small").stdout) == yaml.safe_load(best["recipe"])


def test_export_of_a_trial_that_is_not_there(shared: World) -> None:
    result = run("export", "small", "--trial", 99)
    assert result.exit_code == 1
    assert "99" in told(result)
    assert "0 to 7" in told(result)


def test_names_in_brackets_are_printed_as_they_are(shared: World) -> None:
    (shared.root / "[bold]").mkdir()
    result = run("export", "small", "-o", "[bold]/a.yaml")
    assert "[bold]/a.yaml" in told(result)
    (shared.root / "[").mkdir()
    result = run("export", "small", "-o", "[/bold]")  # a closing tag that opens nothing
    assert result.exit_code == 0
    assert "[/bold]" in told(result)


def test_the_files_of_a_study(shared: World) -> None:
    from importlib.metadata import version

    from mergekit.config import MergeConfiguration

    from evomerge.recipe import load_recipe

    folder = shared.study("small")
    assert (folder / "space.yaml").read_text() == (shared.root / "small.yaml").read_text()
    best = strict_json(run("best", "small", "--json").stdout)["best"]
    assert yaml.safe_load((folder / "best.yaml").read_text()) == yaml.safe_load(best["recipe"])
    assert load_recipe(folder / "best.yaml").merge_method == "task_arithmetic"
    MergeConfiguration.model_validate(yaml.safe_load((folder / "best.yaml").read_text()))

    rows = table(folder)
    assert list(rows.trial) == list(range(8))
    assert list(rows.kind) == ["baseline"] * 4 + ["search"] * 4
    assert list(rows.label[:4]) == ["base", "uniform", "only add", "only most"]
    assert rows.fitness.notna().all()
    means = rows[["score/quickstart_add/acc,none", "score/quickstart_most/acc,none"]].mean(axis=1)
    assert rows.fitness.tolist() == pytest.approx(means.tolist())
    assert rows["weight/add/0"].between(-0.2, 1.2).all()

    origin = json.loads((folder / "provenance.json").read_text())
    for package in ("evomerge", "torch", "transformers", "lm-eval", "optuna", "ray"):
        assert origin["versions"][package] == version(package)
    assert set(origin["checkpoints"]) == {str(shared.models / n) for n in ("base", "add", "most")}
    for model, facts in origin["checkpoints"].items():
        weights = (Path(model) / "model.safetensors").read_bytes()
        assert facts["sha256"] == hashlib.sha256(weights).hexdigest()
    assert {"quickstart_add", "quickstart_most"} <= set(origin["tasks"])
    assert origin["seeds"] == {"search": 3, "masks": 0}


def test_the_dashboard_where_it_is_not_installed(
    shared: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    result = run("dashboard", "small")
    assert result.exit_code == 1
    assert "pip install 'evomerge[dashboard]'" in told(result)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.slow
def test_the_dashboard_is_served_on_this_machine_alone(shared: World) -> None:
    port = free_port()
    server = subprocess.Popen(
        [*EVOMERGE, "dashboard", "small", "--port", str(port)],
        cwd=shared.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        address = f"http://127.0.0.1:{port}/dashboard"
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(address, timeout=5) as page:
                    assert page.status == 200
                break
            except OSError:
                assert server.poll() is None, server.stderr.read()
                assert time.monotonic() < deadline, "the dashboard did not answer"
                time.sleep(0.3)
        taken = subprocess.run(
            [*EVOMERGE, "dashboard", "small", "--port", str(port)],
            cwd=shared.root,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert taken.returncode == 1
        assert f"127.0.0.1:{port}" in taken.stderr
        assert "Traceback" not in taken.stderr
    finally:
        server.terminate()
        server.communicate(timeout=20)


def test_a_study_knows_every_item_of_every_trial(shared: World) -> None:
    from evomerge.api import load_study
    from evomerge.errors import StudyError
    from evomerge.evaluation import fitness
    from evomerge.search.plans import task_requests
    from evomerge.space import SearchSpace

    study = load_study("small")
    assert list(study.item_scores) == [trial.number for trial in study.trials]
    requests = task_requests(SearchSpace.model_validate_json(study.facts["space"]))
    for trial in study.trials:
        scores = study.item_scores[trial.number]
        assert fitness(scores, requests) == trial.fitness
        for task, metrics in trial.scores.items():
            kept = {
                str(metric): [found.value, found.stderr]
                for metric, found in scores.tasks[task].metrics.items()
            }
            assert kept == metrics
            for metric, values in scores.tasks[task].items.items():
                assert len(values) == 20
                assert values.mean() == pytest.approx(metrics[str(metric)][0])
    best = study.trial().number
    outcome = study.compare(0, best)
    assert outcome.difference == pytest.approx(study.trial().fitness - study.trial(0).fitness)
    assert outcome.low is not None
    with pytest.raises(StudyError, match="has no trial 99"):
        study.compare(0, 99)


def test_a_study_in_a_storage_elsewhere_keeps_its_items_in_its_folder(world: World) -> None:
    from evomerge.api import load_study
    from evomerge.errors import StudyError

    storage = f"sqlite:///{world.root}/elsewhere.db"
    words = ("search", world.space(), "--storage", storage, "--trials")
    assert run(*words, 5).exit_code == 0
    assert run(*words, 6).exit_code == 0
    assert world.study("small").joinpath("items.scores").is_file()
    assert list(load_study("small", storage).item_scores) == [0, 1, 2, 3, 4, 5]
    # A fresh study leaves the old one's items with it.
    assert run(*words, 5, "--fresh").exit_code == 0
    study = load_study("small", storage)
    assert list(study.item_scores) == [0, 1, 2, 3, 4]
    world.study("small").joinpath("items.scores").unlink()
    with pytest.raises(StudyError, match=r"trial 1 has no item scores in studies/small/items"):
        load_study("small", storage).compare(1, 2)
