"""``base+lora`` is what peft's ``merge_and_unload`` makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from evomerge.checkpoints import Checkpoint, write_model
from evomerge.errors import CheckpointError
from tests.checkpoints.worlds import SIZE, edit_json, logits, make, save, write_tokenizer

_LLAMA = ["q_proj", "down_proj"]
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": _LLAMA}),
    "rank stabilised": ("llama", {"target_modules": _LLAMA, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": _LLAMA,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 7, "down_proj": 3},
        },
    ),
    "all linear layers": ("qwen3", {"target_modules": "all-linear"}),
    "one layer": ("gemma2", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
    "embeddings that are tied": ("tied", {"target_modules": ["embed_tokens"]}),
    "whole modules": ("llama", {"target_modules": _LLAMA, "modules_to_save": ["lm_head", "norm"]}),
    "head": ("llama", {"target_modules": ["lm_head"]}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "biases": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
    "bias of B": ("bert", {"target_modules": ["query"], "lora_bias": True}),
    "magnitudes": ("llama", {"target_modules": _LLAMA, "use_dora": True}),
    "magnitudes transposed": (
        "gpt2",
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "encoder": ("bert", {"target_modules": ["query", "dense"]}),
}


def adapt(base: Any, folder: Path, **options: Any) -> Any:
    """Write an adapter with random numbers for a model; the model with it, merged by peft."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 6, **options})
    model = get_peft_model(base, config)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def merged_by_peft(base: Any, folder: Path) -> dict[str, torch.Tensor]:
    return PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_are_those_that_peft_merges(case: str, form: str, tmp_path: Path) -> None:
    kind, options = _CASES[case]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save(make(kind), base, tokenizer=False)
    adapt(make(kind), adapter, **options)
    if form == "bin":
        from safetensors.torch import load_file

        torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
        (adapter / "adapter_model.safetensors").unlink()
    expected = merged_by_peft(make(kind), adapter)
    plain = Checkpoint.open(str(base))
    checkpoint = Checkpoint.open(f"{base}+{adapter}")
    changed = 0
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name, check=True)
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
        changed += not torch.equal(tensor, plain.tensor(name))
    assert changed > 0
    assert checkpoint.fingerprint() != plain.fingerprint()


@pytest.mark.filterwarnings("ignore")
def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save(make("llama", dtype=torch.bfloat16), base, tokenizer=False)
    adapt(make("llama"), adapter, target_modules=_LLAMA)
    exact = merged_by_peft(make("llama", dtype=torch.bfloat16).float(), adapter)
    checkpoint = Checkpoint.open(f"{base}+{adapter}")
    for name in checkpoint.names:
        torch.testing.assert_close(
            checkpoint.tensor(name), exact[name].bfloat16(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("kind", ["llama", "tied", "mixtral"])
@pytest.mark.filterwarnings("ignore")
def test_the_live_model_has_the_adapters_weights(kind: str, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save(make(kind), base)
    adapted = adapt(make(kind), adapter, target_modules=["q_proj"])
    live = Checkpoint.open(f"{base}+{adapter}").load_model()
    torch.testing.assert_close(logits(live), logits(adapted), rtol=1e-5, atol=1e-5)
    assert live.generation_config.eos_token_id == 2


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_may_bring_more_tokens(tmp_path: Path) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    save(make("llama"), base)
    wider = make("llama")
    wider.resize_token_embeddings(SIZE + 3, mean_resizing=False)
    modules = ["embed_tokens", "lm_head"]
    adapted = adapt(wider, adapter, target_modules=["q_proj"], modules_to_save=modules)
    write_tokenizer(adapter, (*(f"t{n}" for n in range(SIZE)), "<unk>", "x", "y"), added=0)
    checkpoint = Checkpoint.open(f"{base}+{adapter}")
    assert checkpoint.vocab_size == SIZE + 3
    assert checkpoint.tokenizer().get_vocab()["y"] == SIZE + 2
    torch.testing.assert_close(logits(checkpoint.load_model()), logits(adapted))
    write_model(out, ((n, checkpoint.tensor(n)) for n in checkpoint.names), like=checkpoint)
    written = Checkpoint.open(str(out))
    assert written.config["vocab_size"] == SIZE + 3
    assert written.tokenizer().get_vocab()["y"] == SIZE + 2
    torch.testing.assert_close(logits(written.load_model()), logits(adapted))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: 'IA3' is not supported; LORA is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' changes the base"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: .* is not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices: .* is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(
    changes: dict[str, Any], message: str, llama: Path, tmp_path: Path
) -> None:
    adapt(make("llama"), tmp_path, target_modules=_LLAMA)
    edit_json(tmp_path / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(f"{llama}+{tmp_path}")


def test_an_adapter_of_another_model_is_refused(llama: Path, tmp_path: Path) -> None:
    adapt(make("gpt2"), tmp_path / "a", target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(CheckpointError, match=r"c_attn.*which the model does not have"):
        Checkpoint.open(f"{llama}+{tmp_path / 'a'}")
    adapt(make("llama", hidden_size=32), tmp_path / "b", target_modules=_LLAMA)
    with pytest.raises(CheckpointError, match=r"q_proj.*does not fit the model's \[16, 16\]"):
        Checkpoint.open(f"{llama}+{tmp_path / 'b'}")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_shared_head_alone_is_refused(tmp_path: Path) -> None:
    save(make("tied"), tmp_path / "base", tokenizer=False)
    adapt(make("llama"), tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(CheckpointError, match="shares with its embeddings"):
        Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
