"""The published recipes and their spaces through the commands, on the quickstart's small models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints import Checkpoint
from tests.cli.worlds import SPACE, World, run, same_bits, strict_json, tensors, told, trials

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
HERMES = "NousResearch/Hermes-2-Pro-Llama-3-8B"
CHAT = "Intel/neural-chat-7b-v3-3"
COPIES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "base",
    "aaditya/Llama3-OpenBioLLM-8B": "most",
    "mistralai/Mistral-7B-v0.1": "base",
    "WizardLM/WizardMath-7B-V1.1": "add",
}
MORE = ("<tool>", "<end>")


def taller(folder: Path, out: Path) -> None:
    """A copy of a model with tokens and rows beyond the others'."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens(list(MORE), special_tokens=True)
    assert len(tokenizer) == rows + len(MORE)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.get_input_embeddings().weight.data[rows:] = torch.tensor([[0.25], [-0.25]])
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def put(world: World, name: str, **changes: Any) -> None:
    """A published space, with the quickstart's tasks; ``changes`` are of its last document."""
    documents = list(yaml.safe_load_all((SPACES / name).read_text(encoding="utf-8")))
    documents[-1] |= {key: SPACE[key] for key in ("include_path", "tasks", "holdout")}
    documents[-1]["search"] = {**documents[-1]["search"], "population": 4}
    documents[-1] |= changes
    world.write(name, yaml.safe_dump_all(documents, sort_keys=False))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The models under their names on the hub: Hermes and neural-chat with a larger vocabulary."""
    world = World.make(tmp_path_factory.mktemp("published"))
    for name, own in COPIES.items():
        shutil.copytree(world.models / own, world.root / name)
    for name, own in ((HERMES, "add"), (CHAT, "most")):
        taller(world.models / own, world.root / name)
    for name in ("llama3-biomed", "wizardmath-neural-chat"):
        shutil.copy(SPACES / f"{name}.recipe.yaml", world.root)
        put(world, f"{name}.yaml")
    return world


@pytest.fixture
def world(there: World, monkeypatch: pytest.MonkeyPatch) -> World:
    from tests.cli.worlds import LocalWorkers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(there.root)
    monkeypatch.setattr("evomerge.search.workers.RayPool", LocalWorkers)
    return there


@pytest.mark.parametrize(
    ("name", "who"), [("llama3-biomed", HERMES), ("wizardmath-neural-chat", CHAT)]
)
def test_a_published_recipe_and_its_space(
    world: World, name: str, who: str, tmp_path: Path
) -> None:
    result = run("merge", f"{name}.recipe.yaml", tmp_path / "model")
    assert result.exit_code == 0, result.stderr
    said = f"{who}: has 74 rows in model.embed_tokens.weight, but 72 in"
    assert said in told(result)
    assert "('<tool>', '<end>')" in told(result)
    written = tensors(tmp_path / "model")
    base = tensors(world.models / "base")
    assert {key: one.shape for key, one in written.items()} == {
        key: one.shape for key, one in base.items()
    }

    found = strict_json(run("check", f"{name}.yaml", "--json").stdout)
    assert any(said in note for note in found["notes"])
    residencies = []
    for residency in ("host", "device"):
        study = f"{name}-{residency}"
        shutil.copy(f"{name}.yaml", f"{study}.yaml")
        result = run("search", f"{study}.yaml", "--trials", 4, "--residency", residency)
        assert result.exit_code == 0, result.stderr
        assert "failed" not in result.stderr
        residencies.append(trials(world.study(study)))
    assert residencies[0] == residencies[1], "where models are held decides no score"
    states = [trial[3] for trial in residencies[0]]
    assert set(states[:4]) <= {"complete", "pruned"}
    assert set(states[4:]) <= {"waiting"}


def test_a_second_stage_in_the_union_of_the_vocabularies(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(world, "wizardmath-neural-chat.yaml", tokenizer_source="union")
    shutil.copy("wizardmath-neural-chat.yaml", "union.yaml")
    result = run("search", "union.yaml", "--trials", 6)
    assert result.exit_code == 0, result.stderr
    assert "failed" not in result.stderr
    assert "tokenizer_source: union adds 2 tokens ('<tool>', '<end>')" in told(result)
    assert run("export", "union", "--trial", 5, "-o", tmp_path / "best.yaml").exit_code == 0
    result = run("merge", tmp_path / "best.yaml", tmp_path / "model")
    assert result.exit_code == 0, result.stderr
    written = tensors(tmp_path / "model")
    assert written["model.embed_tokens.weight"].shape[0] == 74
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == 74

    from evomerge import api
    from evomerge.search.pool import Job

    live: list[Any] = []
    load = Checkpoint.load_model

    def remembered(self: Checkpoint, **options: Any) -> Any:
        live.append(load(self, **options))
        return live[-1]

    monkeypatch.setattr(Checkpoint, "load_model", remembered)
    evaluator = api.check("union.yaml").plan()
    found = {
        trial.label or trial.number: trial.recipe or "" for trial in api.load_study("union").trials
    }
    evaluator.run(Job(5, found[5]))
    same_bits(live[0].state_dict(), written, sorted(written))
    # A model that only the first stage merges, as it is, in the vocabulary of the second.
    evaluator.run(Job(1, found["only WizardMath-7B-V1.1"]))
    alone = tensors(world.models / "add")
    rows = {
        name: tensor[: len(alone.get(name, tensor))]
        for name, tensor in live[0].state_dict().items()
    }
    same_bits(rows, {name: one.to(torch.bfloat16) for name, one in alone.items()}, sorted(alone))


def test_a_first_stage_of_a_larger_vocabulary(world: World) -> None:
    """The base and each of the models are baselines in the vocabulary of the stages."""
    documents = list(yaml.safe_load_all((SPACES / "wizardmath-neural-chat.yaml").read_text()))
    documents[0] |= {"models": [HERMES]}
    own = {key: SPACE[key] for key in ("include_path", "tasks", "holdout", "search")}
    documents[1] |= {"models": ["wizardmath-dare", "aaditya/Llama3-OpenBioLLM-8B"], **own}
    world.write("first.yaml", yaml.safe_dump_all(documents, sort_keys=False))
    result = run("search", "first.yaml", "--trials", 4)
    assert result.exit_code == 0, result.stderr
    assert "failed" not in result.stderr
    assert "rows 72 … 73 are left out" in told(result)
    found = {trial[2]: trial[7] for trial in trials(world.study("first"))}
    assert list(found) == [
        *("base", "uniform", "only Hermes-2-Pro-Llama-3-8B", "only Llama3-OpenBioLLM-8B")
    ]
    for label, model in (
        ("only Llama3-OpenBioLLM-8B", "most"),
        ("only Hermes-2-Pro-Llama-3-8B", "add"),
    ):
        space = world.space(model, models=[f"quickstart/models/{model}"], dtype="bfloat16")
        assert run("search", space, "--trials", 2).exit_code == 0
        alone = {trial[2]: trial[7] for trial in trials(world.study(model))}
        assert found[label] == alone[f"only {model}"]
