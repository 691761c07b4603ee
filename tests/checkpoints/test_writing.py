"""What is written is a model like any other: transformers, safetensors and mergekit read it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.io import LazyTensorLoader, ShardedTensorIndex
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from evomerge.checkpoints import Checkpoint, write_model
from evomerge.errors import CheckpointError
from tests.checkpoints.test_reading import KINDS
from tests.checkpoints.worlds import edit_json, logits, make, rewrite, save, stored

Named = Iterator[tuple[str, torch.Tensor]]


def copied(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Named:
    for name in checkpoint.names:
        yield name, checkpoint.tensor(name).to(dtype or checkpoint.dtype(name))


@pytest.mark.parametrize("limit", [5_000_000_000, 6_000])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_is_written(kind: str, limit: int, tmp_path: Path) -> None:
    model = make(kind)
    like = Checkpoint.open(str(save(model, tmp_path / "in")))
    out = tmp_path / "out"
    written = write_model(out, copied(like), like=like, max_shard_bytes=limit)
    auto = {"bert": AutoModel, "bert-head": AutoModelForMaskedLM}.get(kind, AutoModelForCausalLM)
    loaded = auto.from_pretrained(out)
    assert torch.equal(logits(loaded), logits(model))
    assert AutoTokenizer.from_pretrained(out)("w3")["input_ids"][0] == 7
    again = Checkpoint.open(str(out))
    assert again.names == like.names
    assert (len(written.weight_files) > 1) == (limit == 6_000)
    assert written.nbytes == like.nbytes == again.nbytes
    assert written.parameters == sum(like.tensor(name).numel() for name in like.names)


@pytest.mark.parametrize("limit", [5_000_000_000, 6_000])
def test_mergekit_loads_what_is_written(limit: int, llama: Path, tmp_path: Path) -> None:
    like = Checkpoint.open(str(llama))
    write_model(tmp_path / "out", copied(like), like=like, max_shard_bytes=limit)
    index = ShardedTensorIndex.from_disk(str(tmp_path / "out"))
    loader = LazyTensorLoader(index)
    assert set(index.tensor_paths) == set(like.names)
    for name in like.names:
        assert torch.equal(loader.get_tensor(name), like.tensor(name))


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), min_size=1, max_size=40),
    limit=st.integers(1, 2000),
    prefix=st.sampled_from(["t", "ü", "x" * 90]),
    seed=st.integers(0, 9),
)
def test_tensors_of_any_type_and_shape_come_back(
    llama: Path,
    kinds: list[tuple[torch.dtype, tuple[int, ...]]],
    limit: int,
    prefix: str,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{prefix}.{number}": (torch.rand(shape, generator=generator) * 9).to(dtype)
        for number, (dtype, shape) in enumerate(kinds)
    }
    like = Checkpoint.open(str(llama))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        written = write_model(out, tensors.items(), like=like, max_shard_bytes=limit)
        found: dict[str, torch.Tensor] = {}
        for file in written.weight_files:
            part = load_file(out / file)
            sizes = [t.numel() * t.itemsize for t in part.values()]
            assert sum(sizes) <= limit or len(sizes) == 1
            found |= {name: tensor.clone() for name, tensor in part.items()}
        index = out / "model.safetensors.index.json"
        if len(written.weight_files) > 1:
            data = json.loads(index.read_text())
            assert set(data["weight_map"]) == set(tensors)
            assert data["metadata"]["total_size"] == written.nbytes
        else:
            assert not index.exists()
            assert written.weight_files == ("model.safetensors",)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_views_are_written_as_they_look(llama: Path, tmp_path: Path) -> None:
    like = Checkpoint.open(str(llama))
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"t": whole.T, "part": whole[1:3, ::2], "wide": torch.ones(1).expand(5)}
    write_model(tmp_path / "out", tensors.items(), like=like)
    found = stored(tmp_path / "out")
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_no_more_than_one_tensor_is_asked_for_at_a_time(llama: Path, tmp_path: Path) -> None:
    like = Checkpoint.open(str(llama))
    alive: list[Any] = []

    def tensors() -> Named:
        import weakref

        for number in range(20):
            tensor = torch.full((1000,), float(number))
            alive.append(weakref.ref(tensor))
            yield f"t{number}", tensor
            del tensor
            assert sum(reference() is not None for reference in alive) <= 1

    write_model(tmp_path / "out", tensors(), like=like, max_shard_bytes=100_000)


def test_the_files_that_belong_to_a_model_come_along(folder: Path, tmp_path: Path) -> None:
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool.jinja").write_text("{{ tool }}")
    (folder / "README.md").write_text("the old card")
    (folder / "optimizer.pt").write_text("large")
    (folder / "modeling.py").write_text("")
    like = Checkpoint.open(str(folder))
    files = {"README.md": "# The card ü", "evomerge_recipe.yaml": "merge_method: linear\n"}
    write_model(tmp_path / "out", copied(like), like=like, files=files)
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*")}
    assert names == {
        "README.md",
        "additional_chat_templates",
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "config.json",
        "evomerge_recipe.yaml",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (tmp_path / "out/README.md").read_text(encoding="utf-8") == "# The card ü"
    template = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert template == AutoTokenizer.from_pretrained(folder).chat_template


def test_files_of_the_caller_come_before_the_models(folder: Path, tmp_path: Path) -> None:
    like = Checkpoint.open(str(folder))
    files = {"chat_template.jinja": "{{ mine }}"}
    write_model(tmp_path / "out", copied(like), like=like, files=files)
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ mine }}"


def test_a_models_own_code_comes_along(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling.py").write_text("x = 1\n")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "modeling.C"})
    like = Checkpoint.open(str(folder))
    write_model(tmp_path / "out", copied(like), like=like)
    assert (tmp_path / "out/modeling.py").read_text() == "x = 1\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"dtype": None, "torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": None}, {"torch_dtype": "bfloat16"}),
        (
            {"dtype": "float32", "torch_dtype": "float32"},
            {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        ),
    ],
)
def test_the_configuration_says_the_written_type(
    before: dict[str, Any], after: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    edit_json(folder / "config.json", **before)
    like = Checkpoint.open(str(folder))
    write_model(tmp_path / "out", copied(like, torch.bfloat16), like=like)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {k: v for k, v in config.items() if k in ("dtype", "torch_dtype")} == after
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    rest = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}
    assert rest.items() <= like.config.items()


def test_the_type_may_be_given_and_reaches_inner_configurations(
    folder: Path, tmp_path: Path
) -> None:
    edit_json(folder / "config.json", vision_config={"dtype": "float32", "depth": 3})
    like = Checkpoint.open(str(folder))
    write_model(tmp_path / "out", copied(like), like=like, torch_dtype=torch.float16)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == "float16"
    assert config["vision_config"] == {"dtype": "float16", "depth": 3}


def stacked(like: Checkpoint, layers: list[int]) -> Named:
    for name in like.names:
        if ".layers." not in name:
            yield name, like.tensor(name)
    for new, old in enumerate(layers):
        part = f".layers.{old}."
        for name in like.names:
            if part in name:
                yield name.replace(part, f".layers.{new}."), like.tensor(name)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_stacked_layers_change_the_configuration(kind: str, tmp_path: Path) -> None:
    like = Checkpoint.open(str(save(make(kind), tmp_path / "in")))
    layers = [0, 1, 0]
    write_model(tmp_path / "out", stacked(like, layers), like=like, layers=layers)
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert len(loaded.model.layers) == 3
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    if kind == "gemma2":
        types = like.config["layer_types"]
        assert loaded.config.layer_types == [types[layer] for layer in layers]


def test_the_number_of_layers_alone_is_enough_where_they_are_alike(
    llama: Path, tmp_path: Path
) -> None:
    like = Checkpoint.open(str(llama))
    write_model(tmp_path / "out", stacked(like, [1]), like=like, num_layers=1)
    assert Checkpoint.open(str(tmp_path / "out")).num_layers == 1


def test_layers_that_differ_must_be_told(tmp_path: Path) -> None:
    like = Checkpoint.open(str(save(make("gemma2"), tmp_path / "in")))
    with pytest.raises(CheckpointError, match=r"layer_types: differs .* 3 layers are wanted"):
        write_model(tmp_path / "out", stacked(like, [0, 1, 0]), like=like, num_layers=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_an_adapted_model_is_written_whole(llama: Path, tmp_path: Path) -> None:
    from tests.checkpoints.test_adapters import adapt

    adapted = adapt(make("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    like = Checkpoint.open(f"{llama}+{tmp_path / 'adapter'}")
    write_model(tmp_path / "out", copied(like), like=like)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(adapted), rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "out/adapter_config.json").exists()


def test_integers_and_a_tied_head_survive(tmp_path: Path) -> None:
    folder = save(make("tied"), tmp_path / "in")
    rewrite(folder, stored(folder) | {"counter": torch.tensor(7)})
    like = Checkpoint.open(str(folder))
    write_model(tmp_path / "out", copied(like), like=like)
    found = stored(tmp_path / "out")
    assert found["counter"].item() == 7
    assert "lm_head.weight" not in found
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is True
