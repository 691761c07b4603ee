"""``base+lora`` of models whose tensors are renamed or joined while they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.joined import wrapped
from evomerge.errors import CheckpointError
from evomerge.merging import MergeEngine
from evomerge.recipe import Recipe
from tests.merging.kinds import logits, write_kind
from tests.merging.worlds import Family, rewrite

GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def adapted(family: Family, folder: Path, **options: Any) -> Any:
    """Write an adapter with random numbers for a base model; peft's model."""
    base = Checkpoint.open(str(family.base)).load_model()
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, **options))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def adapt(family: Family, folder: Path, **options: Any) -> torch.Tensor:
    """The same; what peft's model says."""
    return logits(adapted(family, folder, **options))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("mixtral", {"target_modules": ["q_proj", "v_proj"]}),
        ("llava", {"target_modules": ["q_proj", "linear_1", "fc1"]}),
        ("gemma3_vision", {"target_modules": ["q_proj", "down_proj"]}),
        (
            "mixtral",
            {
                "target_modules": ["q_proj"],
                "target_parameters": [GATE_UP, DOWN],
                "alpha_pattern": {"1.mlp.experts.down_proj": 7},
                "rank_pattern": {GATE_UP: 3},
            },
        ),
        ("mixtral", {"target_modules": [], "target_parameters": [DOWN], "use_rslora": True}),
        ("qwen3_moe", {"target_modules": [], "target_parameters": [GATE_UP, DOWN]}),
        ("qwen3_vl_moe", {"target_modules": ["q_proj"], "target_parameters": [DOWN, GATE_UP]}),
        (
            "gpt_oss",  # experts are stored in × out, in one stack
            {"target_modules": ["o_proj"], "target_parameters": [GATE_UP, DOWN, "router.weight"]},
        ),
        (
            "gpt_oss",  # a matrix is none of several experts'
            {"target_modules": [], "target_parameters": ["gate_up_proj_bias", DOWN]},
        ),
        ("one_expert", {"target_modules": [], "target_parameters": [DOWN]}),
        (
            "llava",  # stored under another prefix than PEFT's
            {
                "target_modules": ["q_proj"],
                "alpha_pattern": {"language_model.layers.1.self_attn.q_proj": 9},
            },
        ),
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


def test_an_adapter_of_experts_that_are_stored_in_one_stack(tmp_path: Path) -> None:
    family = write_kind("mixtral", tmp_path)
    adapt(family, tmp_path / "lora", target_modules=[], target_parameters=[GATE_UP, DOWN])
    apart = Checkpoint.open(f"{family.base}+{tmp_path / 'lora'}").load_model()
    loaded = Checkpoint.open(str(family.base)).load_model()
    rewrite(family.base, {name: one.detach() for name, one in loaded.named_parameters()})
    together = Checkpoint.open(f"{family.base}+{tmp_path / 'lora'}")
    assert f"model.layers.0.{DOWN}" in together.names
    live = together.load_model().state_dict()
    for name, tensor in apart.state_dict().items():
        assert torch.allclose(live[name], tensor, rtol=1e-6, atol=1e-6), name


def test_layers_within_a_module_of_which_a_parameter_is_adapted(tmp_path: Path) -> None:
    family, folder = write_kind("jamba", tmp_path), tmp_path / "lora"
    model = adapted(
        family,
        folder,
        target_modules=["out_proj", "q_proj"],
        target_parameters=["mamba.A_log", "experts.down_proj"],
    )
    factors = load_file(folder / "adapter_model.safetensors")
    merged = model.merge_and_unload().state_dict()
    found = Checkpoint.open(f"{family.base}+{folder}").load_model().state_dict()
    base = Checkpoint.open(str(family.base)).load_model().state_dict()
    for name, tensor in found.items():
        expected = merged.get(name)
        if expected is None:  # PEFT leaves the layers within as they are
            module = name.removesuffix(".weight").replace("mamba.", "mamba.base_layer.")
            a, b = (factors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
            expected = base[name] + 2 * b @ a
        assert torch.allclose(tensor, expected, rtol=1e-5, atol=1e-6), name
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, base[name])}
    assert {
        "model.layers.0.mamba.A_log",
        "model.layers.0.mamba.out_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.feed_forward.experts.down_proj",
    } <= changed


@pytest.mark.parametrize("head", [True, False])
def test_an_adapter_of_the_model_with_another_head(head: bool, tmp_path: Path) -> None:
    """PEFT's names have a prefix more, or one less, than those of the base."""
    family, folder = write_kind("mixtral", tmp_path), tmp_path / "lora"
    adapt(family, folder, target_modules=["q_proj"], target_parameters=[GATE_UP, DOWN])
    expected = Checkpoint.open(f"{family.base}+{folder}")
    file = folder / "adapter_model.safetensors"
    own = "base_model.model."
    before, after = (f"{own}model.", own) if head else (own, f"{own}wrapped.")
    save_file({name.replace(before, after, 1): one for name, one in load_file(file).items()}, file)
    found = Checkpoint.open(f"{family.base}+{folder}")
    assert found.names == expected.names
    for name in found.names:
        assert torch.equal(found.tensor(name), expected.tensor(name)), name


def test_a_layer_is_not_taken_for_an_adapted_one_that_is_called_alike() -> None:
    inner = "tower.proj.weight"
    assert wrapped({"f": "proj"}, [inner], [inner, "proj.weight"]) == {}
    assert wrapped({"f": "proj"}, [inner], [inner]) == {"f": inner}, "a prefix has gone"
    assert wrapped({"f": "model.tower.proj"}, [inner], [inner, "proj.weight"]) == {}, "which?"


def test_factors_that_fit_no_stack_are_refused(tmp_path: Path) -> None:
    """All at once: a factor is missing, one is of other experts, one of no parameter."""
    family, folder = write_kind("mixtral", tmp_path), tmp_path / "lora"
    adapt(family, folder, target_modules=[], target_parameters=[DOWN])
    factors = load_file(folder / "adapter_model.safetensors")
    of_layer = "base_model.model.model.layers.{}.mlp.experts.lora_{}.weight".format
    del factors[of_layer(0, "A")]
    factors[of_layer(1, "A")] = factors[of_layer(1, "A")][:4].clone()
    save_file(factors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(f"{family.base}+{folder}")
    told = str(caught.value)
    assert "layers.0.block_sparse_moe.experts.0.w2.weight: has B but not both A and B" in told
    fit = "B [16, 6] and A [4, 24] do not fit the parameter's [3, 16, 24]"
    assert f"layers.1.block_sparse_moe.experts.0.w2.weight: {fit}" in told
    assert "layers.2" not in told
    inner = of_layer(2, "A").replace("lora_A", "base_layer.lora_A")
    save_file({inner: factors[of_layer(2, "A")]}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"base_layer\.lora_A\.weight: belongs to .*experts"):
        Checkpoint.open(f"{family.base}+{folder}")
