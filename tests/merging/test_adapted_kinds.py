"""``base+lora`` of models whose tensors are renamed or joined while they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError
from evomerge.merging import MergeEngine
from evomerge.recipe import Recipe
from tests.merging.kinds import logits, write_kind
from tests.merging.worlds import Family


def adapt(family: Family, folder: Path, **options: Any) -> torch.Tensor:
    """Write an adapter with random numbers for a base model; what peft's model then says."""
    base = Checkpoint.open(str(family.base)).load_model()
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, **options))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("mixtral", {"target_modules": ["q_proj", "v_proj"]}),
        ("llava", {"target_modules": ["q_proj", "linear_1", "fc1"]}),
        ("gemma3_vision", {"target_modules": ["q_proj", "down_proj"]}),
    ],
)
def test_an_adapted_model_is_merged(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    family = write_kind(kind, tmp_path)
    wanted = adapt(family, tmp_path / "lora", **options)
    name = f"{family.base}+{tmp_path / 'lora'}"
    engine = MergeEngine(str(family.base), [name])
    live = engine.like.load_model()
    plain = logits(live)
    recipe = Recipe.from_yaml(
        f"{{merge_method: task_arithmetic, base_model: {family.base}, "
        f"models: [{{model: {name}, parameters: {{weight: 1.0}}}}]}}"
    )
    engine.merge_into(live, recipe)
    assert torch.allclose(logits(live), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-3)


def test_an_adapter_of_a_part_of_a_stored_tensor_is_refused(tmp_path: Path) -> None:
    family = write_kind("nomic_bert", tmp_path)
    adapt(family, tmp_path / "lora", target_modules=["q_proj", "o_proj"])
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(f"{family.base}+{tmp_path / 'lora'}")
    told = str(caught.value)
    assert "layers.0.self_attn.q_proj.weight, which is stored in another cut" in told
    assert "merge_and_unload" in told
    assert "o_proj" not in told


def test_an_adapter_of_joined_experts_is_refused(tmp_path: Path) -> None:
    family = write_kind("mixtral", tmp_path)
    experts = ["mlp.experts.gate_up_proj"]
    adapt(family, tmp_path / "lora", target_modules=["q_proj"], target_parameters=experts)
    with pytest.raises(CheckpointError, match=r"target_parameters: .*merge_and_unload"):
        Checkpoint.open(f"{family.base}+{tmp_path / 'lora'}")
