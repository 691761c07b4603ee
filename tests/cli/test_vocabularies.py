"""Models that number their tokens otherwise: checked, searched, merged, scored by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.cli.worlds import World, run, said, same_bits, strict_json, tensors, told, trials

EMBEDDING = "model.embed_tokens.weight"


def renumber(folder: Path, out: Path, *, extra: int = 0) -> Path:
    """A copy of a model whose trained tokens stand in other rows, with rows of further tokens."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    data = json.loads((out / "tokenizer.json").read_text())
    ids: dict[str, int] = data["model"]["vocab"]
    tokens = sorted(ids, key=lambda token: ids[token])
    moved = [*tokens[:4], *tokens[:3:-1]]
    data["model"]["vocab"] = {token: number for number, token in enumerate(moved)}
    special = {**data["added_tokens"][0]}
    data["added_tokens"] += [
        {**special, "id": len(tokens) + number, "content": f"<extra{number}>"}
        for number in range(extra)
    ]
    (out / "tokenizer.json").write_text(json.dumps(data))
    state = load_file(out / "model.safetensors")
    rows = state[EMBEDDING][[ids[token] for token in moved]]
    state[EMBEDDING] = torch.cat([rows, torch.full((extra, rows.shape[1]), 0.01)])
    save_file(state, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["vocab_size"] = len(tokens) + extra
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture
def moved(world: World) -> World:
    """``world`` with a renumbered ``most``, three tokens taller, beside the original."""
    renumber(world.models / "most", world.models / "moved", extra=3)
    return world


MODELS = ["quickstart/models/add", "quickstart/models/moved"]


def test_check_refuses_then_says_what_it_does(moved: World) -> None:
    plain = moved.space("plain", models=MODELS)
    result = run("check", plain)
    assert result.exit_code == 1
    assert "moved: tokenizer: gives 68 tokens other numbers" in told(result)
    assert "tokenizer_source: base (or union, or a model)" in told(result)
    space = moved.space("by_token", models=MODELS, tokenizer_source="base")
    result = run("check", space)
    assert result.exit_code == 0, result.stderr
    line = (
        "moved: 3 tokens ('<extra0>', '<extra1>', '<extra2>') left out; 68 tokens stand in another "
        "row (tokenizer_source: base)"
    )
    assert line in said(result)
    data = strict_json(run("check", space, "--json").stdout)
    assert len([note for note in data["notes"] if line in note]) == 1


def results(study: Path) -> list[Any]:
    """Trials without their recipes, which name other folders."""
    return [
        [*trial[:2], trial[2] and trial[2].replace("moved", "most"), *trial[3:5], trial[7]]
        for trial in trials(study)
    ]


def test_a_search_by_token_is_the_search_of_the_models_as_they_were(moved: World) -> None:
    assert run("search", moved.space("before"), "--trials", 6).exit_code == 0
    space = moved.space("after", models=MODELS, tokenizer_source="base")
    result = run("search", space, "--trials", 6)
    assert result.exit_code == 0, result.stderr
    assert "3 tokens ('<extra0>', '<extra1>', '<extra2>') left out" in told(result)
    assert results(moved.study("after")) == results(moved.study("before"))


@pytest.mark.parametrize("method", ["dare_ties", "linear"])
def test_what_a_union_search_scored_is_what_is_written(moved: World, method: str) -> None:
    genome = {"weight": [0.3, 0.9], **({"density": 0.6} if method == "dare_ties" else {})}
    space = moved.space(
        "union", models=MODELS, tokenizer_source="union", merge_method=method, genome=genome
    )
    result = run("search", space, "--trials", 5)
    assert result.exit_code == 0, result.stderr
    assert "failed" not in result.stderr
    assert "adds 3 tokens ('<extra0>', '<extra1>', '<extra2>')" in told(result)
    from evomerge.api import load_study

    tasks = ("--tasks", "quickstart_add,quickstart_most", "--include-path", moved.tasks)
    for trial in load_study("union").trials[1::3]:
        (moved.root / "recipe.yaml").write_text(str(trial.recipe))
        out = f"out{trial.number}"
        result = run("merge", "recipe.yaml", out)
        assert result.exit_code == 0, result.stderr
        assert "adds 3 tokens" in told(result)
        assert tensors(moved.root / out)[EMBEDDING].shape[0] == 75
        words = (*tasks, "--items", 20, "--seed", 3, "--json")
        scored = strict_json(run("evaluate", out, *words).stdout)["tasks"]
        assert strict_json(run("evaluate", "recipe.yaml", *words).stdout)["tasks"] == scored
        for task, score in trial.scores.items():
            for metric, value in score.items():
                assert value[0] == pytest.approx(scored[task]["metrics"][str(metric)]["value"])


def test_a_taller_model_is_cut_and_that_is_said(world: World) -> None:
    tall = world.models / "tall"
    tall.mkdir()
    for path in (world.models / "most").iterdir():
        (tall / path.name).write_bytes(path.read_bytes())
    state = load_file(tall / "model.safetensors")
    state[EMBEDDING] = torch.cat([state[EMBEDDING], torch.ones(8, state[EMBEDDING].shape[1])])
    save_file(state, tall / "model.safetensors", {"format": "pt"})
    config = json.loads((tall / "config.json").read_text())
    (tall / "config.json").write_text(json.dumps({**config, "vocab_size": 80}))
    made = {}
    for name in ("most", "tall"):
        recipe = {
            "merge_method": "task_arithmetic",
            "base_model": "quickstart/models/base",
            "models": [{"model": f"quickstart/models/{name}", "parameters": {"weight": 0.7}}],
        }
        world.write(f"{name}.yaml", yaml.safe_dump(recipe))
        result = run("merge", f"{name}.yaml", f"out-{name}")
        assert result.exit_code == 0, result.stderr
        cut = "tall: has 80 rows in model.embed_tokens.weight, but 72 in"
        assert (cut in told(result)) == (name == "tall")
        made[name] = tensors(world.root / f"out-{name}")
    same_bits(made["most"], made["tall"])
