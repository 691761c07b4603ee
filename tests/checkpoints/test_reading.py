"""A stored model is read as it is, in whatever form transformers wrote it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints import Checkpoint, Fingerprints
from evomerge.errors import CheckpointError
from tests.checkpoints.worlds import SIZE, edit_json, make, rewrite, save, stored

KINDS = ("llama", "tied", "qwen3", "gemma2", "mixtral", "gpt2", "bert", "bert-head")


@pytest.mark.parametrize("shard", ["5GB", "6KB"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_shapes_types_and_tensors_are_the_files(
    kind: str, shard: str, tmp_path: Path
) -> None:
    save(make(kind, dtype=torch.bfloat16), tmp_path, shard=shard, tokenizer=False)
    checkpoint = Checkpoint.open(str(tmp_path))
    expected = stored(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shard == "5GB"
    assert set(checkpoint.names) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
        assert torch.equal(checkpoint.tensor(name, check=True), tensor)
    assert checkpoint.torch_dtype == torch.bfloat16
    assert checkpoint.nbytes == sum(t.numel() * t.itemsize for t in expected.values())
    assert checkpoint.num_layers == 2
    assert checkpoint.vocab_size == SIZE


def test_names_are_in_natural_order(tmp_path: Path) -> None:
    save(make("llama", num_hidden_layers=11), tmp_path, tokenizer=False)
    names = [n for n in Checkpoint.open(str(tmp_path)).names if n.endswith("down_proj.weight")]
    assert [int(name.split(".")[2]) for name in names] == list(range(11))


def test_num_layers_without_a_configured_number_is_read_off_the_names(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=None)
    assert Checkpoint.open(str(folder)).num_layers == 2


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_files_are_read_too(zipped: bool, llama: Path, tmp_path: Path) -> None:
    state = stored(llama)
    half = len(state) // 2
    parts = {"a.bin": list(state)[:half], "b.bin": list(state)[half:]}
    where = {name: file for file, names in parts.items() for name in names}
    for file, names in parts.items():
        part = {name: state[name] for name in names}
        torch.save(part, tmp_path / file, _use_new_zipfile_serialization=zipped)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    checkpoint = Checkpoint.open(str(tmp_path))
    assert set(checkpoint.names) == set(state)
    for name, tensor in state.items():
        assert torch.equal(checkpoint.tensor(name), tensor)


class _Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [torch.save, pickle.dump])
def test_a_bin_file_that_would_run_code_is_refused(write: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        write({"weight": _Trap(folder / "trap")}, file)
    with pytest.raises(CheckpointError, match="more than tensors"):
        Checkpoint.open(str(folder))
    assert not (folder / "trap").exists()


def test_a_tensor_has_memory_of_its_own(folder: Path) -> None:
    checkpoint = Checkpoint.open(str(folder))
    name = "model.norm.weight"
    before = stored(folder)[name].clone()
    tensor = checkpoint.tensor(name)
    tensor.zero_()
    assert torch.equal(checkpoint.tensor(name), before)
    kept = checkpoint.tensor(name)
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\0" * (size - size // 2))
    assert torch.equal(kept, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite_are_refused_by_name(
    value: float, dtype: torch.dtype, folder: Path
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in stored(folder).items()}
    state["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    rewrite(folder, state)
    checkpoint = Checkpoint.open(str(folder))
    checkpoint.tensor("model.layers.1.mlp.up_proj.weight")
    checkpoint.tensor("model.norm.weight", check=True)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: 1 of 384 "):
        checkpoint.tensor("model.layers.1.mlp.up_proj.weight", check=True)


def test_scalars_empty_and_integer_tensors_are_read(folder: Path) -> None:
    odd = {"one": torch.tensor(3.0), "none": torch.zeros(0, 4), "ids": torch.arange(5)}
    rewrite(folder, stored(folder) | odd)
    checkpoint = Checkpoint.open(str(folder))
    for name, tensor in odd.items():
        assert torch.equal(checkpoint.tensor(name, check=True), tensor)
    assert checkpoint.dtype("ids") == torch.int64


def test_the_fingerprint_is_the_files_own(llama: Path, tmp_path: Path) -> None:
    whole = hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    assert Checkpoint.open(str(llama)).fingerprint() == whole
    save(make("llama"), tmp_path, shard="6KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    joined = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert Checkpoint.open(str(tmp_path)).fingerprint() == joined


@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_a_tied_head_is_stored_once_and_found_under_both_names(kind: str, tmp_path: Path) -> None:
    save(make(kind), tmp_path, tokenizer=False)
    embedding = "transformer.wte.weight" if kind == "gpt2" else "model.embed_tokens.weight"
    # Older configurations leave the default out.
    if kind == "gpt2":
        edit_json(tmp_path / "config.json", tie_word_embeddings=None)
    for doubled in (False, True):
        if doubled:
            state = stored(tmp_path)
            rewrite(tmp_path, state | {"lm_head.weight": state[embedding].clone()})
        checkpoint = Checkpoint.open(str(tmp_path))
        assert "lm_head.weight" not in checkpoint.names
        assert "lm_head.weight" in checkpoint
        assert checkpoint.shape("lm_head.weight") == checkpoint.shape(embedding)
        assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor(embedding))


def test_a_second_copy_that_differs_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    save(make("tied"), tmp_path, tokenizer=False)
    state = stored(tmp_path)
    rewrite(tmp_path, state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1})
    assert "lm_head.weight" in Checkpoint.open(str(tmp_path)).names


def test_an_untied_model_without_a_head_has_none(folder: Path) -> None:
    state = stored(folder)
    del state["lm_head.weight"]
    rewrite(folder, state)
    checkpoint = Checkpoint.open(str(folder))
    assert "lm_head.weight" not in checkpoint
    with pytest.raises(CheckpointError, match="has no tensor lm_head"):
        checkpoint.tensor("lm_head.weight")


def test_buffers_that_models_rebuild_are_left_out(folder: Path) -> None:
    rebuilt = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "embeddings.position_ids": torch.arange(4),
    }
    kept = {"h.0.attn.c_attn.bias": torch.ones(4)}
    names = set(stored(folder)) | set(kept)
    rewrite(folder, stored(folder) | rebuilt | kept)
    assert set(Checkpoint.open(str(folder)).names) == names


def test_sums_begun_early_are_the_files_own(llama: Path, folder: Path) -> None:
    wanted = [Checkpoint.open(str(one)) for one in (llama, folder)]
    with Fingerprints() as sums:
        for one in wanted:
            sums.begin(one.weight_files)
            sums.begin(one.weight_files)  # twice is once
        assert [sums.of(one.weight_files) for one in wanted] == [
            hashlib.sha256((one.folder / "model.safetensors").read_bytes()).hexdigest()
            for one in wanted
        ]


def test_sums_of_a_file_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with Fingerprints() as sums:
        sums.begin([tmp_path / "gone"])
        with pytest.raises(CheckpointError, match=r"gone: cannot be read: No such file"):
            sums.of([tmp_path / "gone"])


def test_sums_that_are_given_up_do_not_go_on(tmp_path: Path) -> None:
    """A file that would take for ever; the command that wanted its sum has failed."""
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(1 << 40)  # a hole, a quarter of an hour long
    before = threading.active_count()
    with Fingerprints() as sums:
        sums.begin([tmp_path / "endless"])
        assert threading.active_count() == before + 1
    deadline = time.monotonic() + 20
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_mapped_tensor_is_the_same_and_costs_no_copy(llama: Path) -> None:
    checkpoint = Checkpoint.open(str(llama))
    for name in checkpoint.names:
        mapped = checkpoint.tensor(name, check=True, mapped=True)
        assert torch.equal(mapped, checkpoint.tensor(name))
        assert mapped.data_ptr() == checkpoint.tensor(name, mapped=True).data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_finite_numbers_pass_though_their_sum_does_not(
    dtype: torch.dtype, folder: Path
) -> None:
    largest = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    tensors = stored(folder)
    name = "model.norm.weight"
    rewrite(folder, {**tensors, name: largest})
    checkpoint = Checkpoint.open(str(folder))
    assert torch.equal(checkpoint.tensor(name, check=True), largest)
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = largest.clone()
        broken[40] = bad
        rewrite(folder, {**tensors, name: broken})
        with pytest.raises(CheckpointError, match="1 of 64 elements are not finite"):
            Checkpoint.open(str(folder)).tensor(name, check=True)
