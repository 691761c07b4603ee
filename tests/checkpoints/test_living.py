"""A stored model comes alive: the right class, its weights, memory of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError
from tests.checkpoints.test_reading import KINDS
from tests.checkpoints.worlds import edit_json, logits, make, rewrite, save, stored


@pytest.mark.parametrize("kind", KINDS)
def test_the_live_model_answers_as_the_saved_one(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    save(model, tmp_path, shard="6KB", tokenizer=False)
    live = Checkpoint.open(str(tmp_path)).load_model()
    assert type(live) is type(model)
    assert not live.training
    assert not any(parameter.requires_grad for parameter in live.parameters())
    assert torch.equal(logits(live), logits(model))


def test_dtype_and_device_are_those_asked_for(llama: Path) -> None:
    live = Checkpoint.open(str(llama)).load_model(dtype=torch.bfloat16, device="cpu")
    assert {parameter.dtype for parameter in live.parameters()} == {torch.bfloat16}


def test_parameters_do_not_depend_on_the_files_any_more(folder: Path) -> None:
    live = Checkpoint.open(str(folder)).load_model()
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * size)
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_tied_parameters_stay_one(tmp_path: Path) -> None:
    save(make("tied"), tmp_path, tokenizer=False)
    live = Checkpoint.open(str(tmp_path)).load_model()
    assert live.lm_head.weight is live.model.embed_tokens.weight


def test_a_model_that_lacks_weights_is_refused_not_filled_with_noise(folder: Path) -> None:
    state = stored(folder)
    del state["model.layers.1.mlp.up_proj.weight"]
    rewrite(folder, state)
    with pytest.raises(CheckpointError, match=r"no weights for model\.layers\.1\.mlp\.up_proj"):
        Checkpoint.open(str(folder)).load_model()


def test_without_named_architectures_a_causal_model_is_built(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=None)
    live = Checkpoint.open(str(folder)).load_model()
    assert type(live).__name__ == "LlamaForCausalLM"


def test_a_model_that_needs_its_own_code_is_refused_without_trust(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        model_type="strange",
        auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    )
    checkpoint = Checkpoint.open(str(folder))
    with pytest.raises(CheckpointError, match="Python code of its own"):
        checkpoint.load_model()


def test_its_own_code_runs_when_it_is_trusted(folder: Path) -> None:
    (folder / "code_of_mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'strange'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n    ours = True\n"
    )
    edit_json(
        folder / "config.json",
        model_type="strange",
        architectures=["M"],
        auto_map={"AutoConfig": "code_of_mine.C", "AutoModelForCausalLM": "code_of_mine.M"},
    )
    live = Checkpoint.open(str(folder), trust_remote_code=True).load_model()
    assert live.ours
    assert torch.equal(logits(live), logits(make("llama")))


def test_the_tokenizer_is_the_folders(llama: Path) -> None:
    tokenizer = Checkpoint.open(str(llama)).tokenizer()
    assert tokenizer("w1 w2")["input_ids"] == [5, 6]
    assert tokenizer.chat_template


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    save(make("llama"), tmp_path, tokenizer=False)
    with pytest.raises(CheckpointError, match="tokenizer: transformers cannot load it"):
        Checkpoint.open(str(tmp_path)).tokenizer()


def test_the_configuration_is_transformers(llama: Path) -> None:
    assert Checkpoint.open(str(llama)).model_config().num_hidden_layers == 2
