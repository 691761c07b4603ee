"""``evomerge search``: what it keeps, what it refuses to go on with, and candidates that fail."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.search.storage import open_store
from tests.cli.worlds import BASELINES, SPACE, World, run, said, strict_json, table, told, trials


def searched(*words: object) -> Any:
    result = run("search", *words)
    assert result.exit_code == 0, result.stderr
    return result


def spoil(file: Path, name: str, value: float, *, element: int = 0) -> None:
    held = load_file(file)
    held[name].view(-1)[element] = value
    save_file(held, file, metadata={"format": "pt"})


def test_the_same_seed_gives_the_same_trials_also_in_two_halves(shared: World) -> None:
    space = shared.root / "small.yaml"
    searched(space, "--study", "halves", "--trials", 3)  # within the baselines
    searched(space, "--study", "halves", "--trials", 6)  # within a generation
    result = searched(space, "--study", "halves", "--trials", 8)
    assert "Going on with study halves: 6 trials are finished." in told(result)
    assert trials("halves") == trials("small")
    verdicts = [(shared.study(n) / "heldout.json").read_text() for n in ("halves", "small")]
    assert verdicts[0] == verdicts[1]


def test_nothing_is_done_twice(shared: World) -> None:
    before = trials("small")
    result = searched(shared.root / "small.yaml", "--trials", 8)
    assert "8 trials are finished" in told(result)
    assert "held-out items" in said(result)
    assert trials("small") == before


def test_another_seed_gives_other_trials(shared: World) -> None:
    space = shared.root / "small.yaml"
    searched(space, "--study", "seeded", "--trials", 6, "--seed", 4)  # the items are others too
    mine, theirs = trials("seeded"), trials("small")
    assert [t[5] for t in mine[:BASELINES]] == [t[5] for t in theirs[:BASELINES]]
    assert mine[BASELINES][5] != theirs[BASELINES][5]
    origin = json.loads((shared.study("seeded") / "provenance.json").read_text())
    assert origin["seeds"]["search"] == 4
    refused = run("search", space, "--study", "seeded", "--trials", 8)
    assert refused.exit_code == 1
    assert "seed" in told(refused)


def test_another_space_is_refused_naming_each_key(shared: World) -> None:
    before = trials("small")
    genome = {**SPACE["genome"], "weight": [-0.2, 1.1]}
    tasks = [{**SPACE["tasks"][0], "items": 25}, SPACE["tasks"][1]]
    changed = shared.space("changed", genome=genome, tasks=tasks, merge_method="ties")
    result = run("search", changed, "--study", "small", "--trials", 9)
    assert result.exit_code == 1
    for words in ("genome.weight", "1.1", "1.2", "items", "25", "merge_method", "--fresh"):
        assert words in told(result), words
    assert trials("small") == before


def test_other_weights_are_refused(world: World) -> None:
    space = world.space()
    searched(space, "--trials", 5)
    spoil(world.models / "most" / "model.safetensors", "model.norm.weight", 0.5)
    result = run("search", space, "--trials", 6)
    assert result.exit_code == 1
    assert "models/most have changed" in told(result)
    assert len(trials("small")) == 5


def test_fresh_sets_the_old_study_aside(world: World) -> None:
    space = world.space()
    searched(space, "--trials", 5)
    old = trials("small")
    spoil(world.models / "most" / "model.safetensors", "model.norm.weight", 0.5)
    searched(space, "--trials", 4, "--fresh")
    assert len(trials("small")) == 4
    (aside,) = world.root.glob("studies/small.*")
    assert trials(aside) == old
    assert (aside / "trials.csv").is_file()
    assert len(table(world.study("small"))) == 4


def test_a_race_that_was_interrupted_goes_on(shared: World) -> None:
    space = shared.root / "small.yaml"
    store = open_store("small", f"sqlite:///{shared.study('small')}/study.db")
    whole, judged = store.facts["race"], store.facts["verdict"]
    first = {**whole["race"], "rounds": whole["race"]["rounds"][:1]}
    store.remember(race={**whole, "race": first, "finished": False}, verdict=None)
    searched(space, "--trials", 8)
    after = open_store("small", store.url).facts
    assert len(whole["race"]["rounds"]) > 1
    assert after["race"]["race"] == whole["race"]
    assert after["verdict"] == judged


def test_a_storage_elsewhere(world: World) -> None:
    url = f"sqlite:///{world.root}/elsewhere.db"
    space = world.space()
    result = searched(space, "--study", "mine", "--storage", url, "--trials", 5)
    assert f"evomerge best mine --storage {url}" in said(result)
    assert not (world.study("mine") / "study.db").exists()
    assert len(table(world.study("mine"))) == 5
    best = strict_json(run("best", "mine", "--storage", url, "--json").stdout)
    assert best["trials"] == {"complete": 5}
    assert run("export", "mine", "--storage", url, "-o", "best.yaml").exit_code == 0
    assert (world.root / "best.yaml").is_file()
    lost = run("best", "mine")
    assert lost.exit_code == 1
    old = trials("mine", url)

    # Another machine with the same storage has the files too.
    shutil.rmtree(world.root / "studies")
    searched(space, "--study", "mine", "--storage", url, "--trials", 6)
    assert {path.name for path in world.study("mine").iterdir()} >= {
        "space.yaml", "best.yaml", "trials.csv", "provenance.json", "heldout.json",
    }  # fmt: skip

    searched(space, "--study", "mine", "--storage", url, "--trials", 4, "--fresh")
    assert len(trials("mine", url)) == 4
    names = told(run("best", "unknown", "--storage", url))
    aside = names.split("it has: ")[1].split(", ")[1]
    assert trials(aside, url)[:5] == old
    # The old study's files are not mixed with the new one's.
    (folder,) = world.root.glob("studies/mine.*")
    assert len(table(folder)) == 6


def test_a_moved_world_is_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study does not mind where the models lie: labels and hashes say what they are."""
    searched(world.space(), "--study", "whole", "--trials", 7)
    whole = trials("whole")
    searched(world.space(), "--trials", 2)
    moved = world.root.with_name("moved")
    os.rename(world.root, moved)
    monkeypatch.chdir(moved)
    try:
        searched(moved / "small.yaml", "--trials", 7)
        found = trials("small")
        assert [t[:6] for t in found] == [t[:6] for t in whole]
        assert (moved / "studies" / "small" / "heldout.json").is_file()
        spoil(moved / "quickstart/models/most/model.safetensors", "model.norm.weight", 0.5)
        refused = run("search", moved / "small.yaml", "--trials", 8)
        assert refused.exit_code == 1
        assert "models/most" in told(refused)
    finally:
        os.rename(moved, world.root)


def test_a_model_alone_that_is_far_behind_is_told_as_stopped(world: World) -> None:
    tasks = [{"task": "quickstart_add", "items": 100, "holdout_task": "quickstart_add_heldout"}]
    search = {**SPACE["search"], "rungs": [0.25]}
    result = run("search", world.space("far", tasks=tasks, search=search), "--trials", 5)
    assert result.exit_code == 0, result.stderr
    rows = table(world.study("far"))
    assert rows.state.tolist()[:4] == ["complete", "complete", "complete", "pruned"]
    stopped = rows.iloc[3]
    assert (stopped.label, stopped["items"]) == ("only most", 25)
    estimate = f"~{stopped.estimate:.4f}"
    assert f"{estimate} baseline" in told(result)
    assert "stopped after 25 items" in told(result)
    assert estimate in said(result)
    assert "~: almost surely not the best baseline" in said(result)
    assert estimate in said(run("best", "far"))


def test_a_budget_that_ends_with_the_baselines_says_so(world: World) -> None:
    result = searched(world.space("few"), "--trials", 2)
    assert "the budget ended before the first searched trial: baselines come first" in said(result)


def test_no_time_no_trial(world: World) -> None:
    result = searched(world.space(), "--timeout", 0, "--trials", 5)
    assert "Not proved" in said(result)
    empty = run("best", "small")
    assert empty.exit_code == 1
    assert "no successful trial yet" in told(empty)
    assert run("export", "small").exit_code == 1
    as_json = strict_json(run("best", "small", "--json").stdout)
    assert as_json["best"] is None
    space = world.space(finals={"candidates": 0})  # a race would be left a quarter
    searched(space, "--items", 4 * 40 - 1)  # the last one goes beyond it
    assert len(trials("small")) == 4
    assert strict_json(run("best", "small", "--json").stdout)["items"] == 160


@pytest.mark.parametrize("name", ["", "..", "a/b", "nul\0"])
def test_a_study_by_a_name_that_is_none(shared: World, name: str) -> None:
    result = run("search", shared.root / "small.yaml", "--study", name)
    assert result.exit_code == 1
    assert "name" in told(result)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_nan_is_refused_before_the_first_trial(world: World, value: float) -> None:
    file = world.models / "most" / "model.safetensors"
    name = "model.layers.3.self_attn.q_proj.weight"
    healthy = file.read_bytes()
    spoil(file, name, value, element=77)
    result = run("search", world.space(), "--trials", 5)
    assert result.exit_code == 1
    assert name in told(result)
    assert "models/most" in told(result)
    # Nothing was tried, so mending the model is all that is needed.
    file.write_bytes(healthy)
    searched(world.space(), "--trials", 5)


def test_candidates_that_overflow_fail_and_the_search_goes_on(world: World) -> None:
    space = world.space(
        dtype="float16",
        genome={"weight": [0.0, 1e6]},
        search={"sampler": "random", "seed": 0, "scan": False},
    )
    result = searched(space, "--trials", 9)
    rows = table(world.study("small"))
    assert len(rows) == 9
    failed = rows[rows.state == "failed"]
    assert len(failed) >= 4
    reasons = failed.failure.str
    assert (reasons.contains("NaN or infinity") | reasons.contains("logits are not")).all()
    assert reasons.contains(r"^model\..*weight: .*NaN or infinity").any()
    assert failed.fitness.isna().all()
    assert (rows.state[:BASELINES] == "complete").all()
    assert "failed: " in told(result)
    export = run("export", "small", "--trial", failed.trial.iloc[0])
    assert "merge_method: task_arithmetic" in export.stdout
    best = strict_json(run("best", "small", "--json").stdout)
    assert best["trials"] == {"complete": 9 - len(failed), "failed": len(failed)}


def test_ctrl_c_while_nothing_runs_yet(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evomerge.search.preparation.prepare", interrupted)
    result = run("search", shared.root / "small.yaml")
    assert result.exit_code == 130
    assert "The same command goes on" in told(result)
    fresh = run("search", shared.root / "small.yaml", "--fresh")
    assert "The same command without --fresh goes on" in told(fresh)
    assert len(trials("small")) == 8


def test_torch_is_left_as_it_was(shared: World) -> None:
    assert torch.get_default_dtype() == torch.float32
