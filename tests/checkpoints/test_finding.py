"""Models are found in folders and on the hub; what cannot be used says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError
from evomerge.references import ModelReference
from tests.checkpoints.hub import SHA, serve
from tests.checkpoints.test_adapters import adapt
from tests.checkpoints.worlds import edit_json, logits, make, save


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, list[str]]]:
    """A hub with the model ``owner/name``, and the list of the files that were fetched from it."""
    folder = save(make("llama"), tmp_path / "name", shard="6KB")
    (folder / "original").mkdir()
    for name in ("README.md", "consolidated.safetensors", "original/params.json", "code.py"):
        (folder / name).write_bytes(b"{}")
    with serve({"owner/name": folder}) as (address, fetched):
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        _point(monkeypatch, address)
        yield folder, fetched


def _point(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "ENDPOINT", address)
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refused(reference: str | ModelReference) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(reference)
    return str(caught.value)


def test_a_hub_model_is_fetched_without_what_is_not_needed(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fetched = hub
    checkpoint = Checkpoint.open("owner/name")
    assert torch.equal(logits(checkpoint.load_model()), logits(make("llama")))
    assert checkpoint.tokenizer()("w1")["input_ids"] == [5]
    weights = {path.name for path in folder.glob("model-*")} | {"model.safetensors.index.json"}
    assert weights < set(fetched)
    assert not {"README.md", "consolidated.safetensors", "original/params.json"} & set(fetched)
    assert "code.py" not in fetched

    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    again = Checkpoint.open(f"owner/name@{SHA}")
    assert again.fingerprint() == Checkpoint.open("owner/name").fingerprint()


def test_code_is_fetched_where_it_is_trusted(hub: tuple[Path, list[str]]) -> None:
    Checkpoint.open("owner/name", trust_remote_code=True)
    assert "code.py" in hub[1]


def test_bin_files_are_fetched_only_where_there_are_no_safetensors(
    hub: tuple[Path, list[str]],
) -> None:
    folder, fetched = hub
    state = make("llama").state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    Checkpoint.open("owner/name")
    assert "pytorch_model.bin" not in fetched
    shutil.rmtree(hub_constants.HF_HUB_CACHE)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    assert set(Checkpoint.open("owner/name").names) <= set(state)
    assert "pytorch_model.bin" in fetched


def test_names_that_the_hub_does_not_know_are_refused(hub: tuple[Path, list[str]]) -> None:
    assert refused("owner/nobody") == (
        "owner/nobody: is neither a folder nor a model on the hub that you may read"
    )
    assert refused("owner/name@v9") == "owner/name@v9: the hub has no such revision"


def test_without_the_hub_only_the_cache_counts(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "off limits (HF_HUB_OFFLINE is set)" in refused("owner/name")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    _point(monkeypatch, "http://127.0.0.1:9")
    assert "the hub cannot be reached" in refused("owner/name")


def test_an_interrupted_download_is_noticed(
    hub: tuple[Path, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open("owner/name")
    next(checkpoint.folder.glob("model-00002*")).unlink()
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert "is missing; the index names it" in refused("owner/name")


def test_paths_that_are_no_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no such folder" in refused(str(tmp_path / "nowhere"))
    assert "there is no such folder" in refused("./nowhere")
    assert "is a file" in refused(str(folder / "config.json"))
    assert "has no revision 'main'" in refused(f"{folder}@main")
    assert "path[@revision]" in refused("")
    assert "has no config.json; a folder that" in refused(str(tmp_path))


def test_home_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert Checkpoint.open("~/model").folder == folder.resolve()


def test_an_adapter_alone_says_how_to_name_it(tmp_path: Path) -> None:
    adapt(make("llama"), tmp_path, target_modules=["q_proj"])
    assert f"is an adapter, not a model; name it after its base: base+{tmp_path}" in refused(
        str(tmp_path)
    )


def test_quantised_models_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    assert "is quantised (gptq)" in refused(str(folder))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 4000])
def test_damaged_weights_are_refused(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors: is damaged or incomplete" in refused(str(folder))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin: " in refused(str(folder))


def test_a_truncated_file_is_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    assert "is damaged or incomplete" in refused(str(folder))


def test_a_pointer_of_git_lfs_is_named_as_such(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (folder / "model.safetensors").write_text(text)
    assert "run git lfs pull" in refused(str(folder))


def test_folders_without_weights_or_with_too_many(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder / "other.safetensors")
    assert "lm_head.weight" in Checkpoint.open(str(folder)).names
    shutil.copy(folder / "other.safetensors", folder / "third.safetensors")
    assert "holds other.safetensors, third.safetensors, but no index" in refused(str(folder))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert "holds no weights" in refused(str(folder))


def test_every_fault_of_an_index_is_told(tmp_path: Path) -> None:
    save(make("llama"), tmp_path, shard="6KB")
    index = tmp_path / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    (tmp_path / where["lm_head.weight"]).unlink()
    index.write_text(json.dumps({"weight_map": where | {"x": "../x.safetensors"}}))
    message = refused(str(tmp_path))
    assert "is missing; the index names it" in message
    assert "'../x.safetensors', which is no file beside it" in message


def test_an_index_that_names_absent_or_double_tensors_is_refused(tmp_path: Path) -> None:
    save(make("llama"), tmp_path, shard="6KB")
    index = tmp_path / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": where | {"ghost": where["lm_head.weight"]}}))
    assert "ghost: is not in model-" in refused(str(tmp_path))
    shutil.copy(tmp_path / where["model.norm.weight"], tmp_path / "copy.safetensors")
    where["model.norm.weight"] = "copy.safetensors"
    index.write_text(json.dumps({"weight_map": where}))
    assert "model.norm.weight: stands in copy.safetensors too" in refused(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_configuration_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json: " in refused(str(folder))
