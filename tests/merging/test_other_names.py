"""Models whose stored names differ only by how transformers renames and joins tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from evomerge.checkpoints import Checkpoint, compare
from evomerge.errors import CheckpointError, RecipeError
from evomerge.merging import MergeEngine, write_merge
from tests.merging.kinds import logits, write_kind
from tests.merging.worlds import Family, bits, recipe_of, rewrite, same_bits, stored

Tensors = dict[str, torch.Tensor]


def _live_names(folder: Path) -> Tensors:
    """A model's tensors under the names of the loaded model, as mergekit 0.1.5 writes them."""
    model = Checkpoint.open(str(folder)).load_model()
    tied = {id(model.get_output_embeddings().weight)} & {id(model.get_input_embeddings().weight)}
    return {
        name: tensor.detach()
        for name, tensor in model.named_parameters()
        if not (id(tensor) in tied and "head" in name)
    }


def _bare(folder: Path) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in stored(folder).items()}


def _old(folder: Path) -> Tensors:
    swaps = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    found = {}
    for name, tensor in stored(folder).items():
        for new, old in swaps.items():
            name = name.replace(new, old)
        found[name] = tensor
    return found


STORED: dict[str, tuple[str, Callable[[Path], Tensors]]] = {
    "experts joined": ("mixtral", _live_names),
    "experts joined, other names": ("qwen3_moe", _live_names),
    "experts turned": ("qwen3_vl_moe", lambda folder: _turned(stored(folder))),
    "prefixes moved": ("llava", _live_names),
    "prefixes moved, tied": ("gemma3_vision", _live_names),
    "without a prefix": ("gpt2", _bare),
    "of the time of TensorFlow": ("bert", _old),
}


def _turned(tensors: Tensors) -> Tensors:
    return {
        name: tensor.transpose(1, 2) if ".experts." in name else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("way", STORED)
@pytest.mark.parametrize("which", ["base", "tuned"])
def test_models_are_merged_whatever_the_names(way: str, which: str, tmp_path: Path) -> None:
    kind, change = STORED[way]
    plain = write_kind(kind, tmp_path / "plain")
    mixed = write_kind(kind, tmp_path / "mixed")
    changed = mixed.base if which == "base" else mixed.tuned[1]
    names = set(stored(changed))
    rewrite(changed, change(changed))
    assert which == "base" or way == "experts turned" or set(stored(changed)) != names
    assert compare([Checkpoint.open(str(path)) for path in mixed.all]) == []
    # Without trimming and masks it does not matter in which cut tensors are merged.
    made = []
    for family in (plain, mixed):
        recipe = recipe_of(family, "ties", (0.5, [0.2, 0.9]), density=1.0)
        engine = MergeEngine(str(family.base), [str(path) for path in family.tuned])
        live: Any = engine.like.load_model()
        engine.merge_into(live, recipe)
        out = tmp_path / f"out {family.base.parent.name}"
        write_merge([recipe], out)
        again = type(live).from_pretrained(out)
        same_bits(dict(live.named_parameters()), dict(again.named_parameters()))
        assert set(stored(out)) == set(stored(family.base))
        made.append(live)
    for name, parameter in made[0].named_parameters():
        assert torch.equal(bits(parameter), bits(dict(made[1].named_parameters())[name])), name
    assert torch.equal(logits(made[0]), logits(made[1]))


def test_names_that_do_not_correspond_are_refused(tmp_path: Path) -> None:
    family = write_kind("mixtral", tmp_path)
    tensors = _live_names(family.tuned[0])
    tensors["model.layers.0.mlp.experts.down_up"] = tensors.pop(
        "model.layers.0.mlp.experts.down_proj"
    )
    rewrite(family.tuned[0], tensors)
    faults = compare([Checkpoint.open(str(path)) for path in family.all])
    told = " ".join(str(fault) for fault in faults)
    assert "lacks model.layers.0.block_sparse_moe.experts.0.w2.weight" in told
    assert "has model.layers.0.mlp.experts.down_up" in told
    assert "layers.1" not in told


def test_a_nan_in_a_joined_tensor_is_told_with_its_file(tmp_path: Path) -> None:
    family = write_kind("mixtral", tmp_path)
    tensors = _live_names(family.tuned[0])
    tensors["model.layers.1.mlp.experts.gate_up_proj"][2, 0, 0] = torch.nan
    rewrite(family.tuned[0], tensors)
    with pytest.raises(CheckpointError, match=r"experts\.2\.w1\.weight.*1 NaN.*safetensors"):
        MergeEngine(str(family.base), [str(path) for path in family.tuned])


# What the engine writes to.


def _engine(family: Family) -> MergeEngine:
    return MergeEngine(str(family.base), [str(path) for path in family.tuned])


def test_a_list_of_conversions_that_is_not_what_loading_does_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import conversion_mapping

    family = write_kind("mixtral", tmp_path)
    real = conversion_mapping.get_model_conversion_mapping

    def exchanged(model: hf.PreTrainedModel) -> list[object]:
        given = []
        for one in real(model):
            if len(one.source_patterns) == 2 and hasattr(one, "operations"):
                given.append(
                    type(one)(one.source_patterns[::-1], one.target_patterns, one.operations)
                )
            else:
                given.append(one)
        return given

    # Loading keeps the real list: what we are told is not what it does.
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", exchanged)
    with pytest.raises(CheckpointError, match=r"experts\.0\.w1\.weight.* elsewhere"):
        Checkpoint.open(str(family.base)).load_model()


def test_a_live_model_with_fewer_experts_is_refused(tmp_path: Path) -> None:
    family = write_kind("mixtral", tmp_path)
    config = Checkpoint.open(str(family.base)).model_config()
    config.num_local_experts = 2
    live = hf.MixtralForCausalLM(config)
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    with pytest.raises(RecipeError) as caught:
        _engine(family).merge_into(live, recipe_of(family, "ties"))
    told = str(caught.value)
    assert "experts.2.w1.weight would become part of model.layers.0.mlp.experts.gate_up_p" in told
    assert "in the shape [3, 48, 16], which is [2, 48, 16] there" in told
    assert "model.layers.1.mlp.gate.weight" not in told or "gate.weight is [3, 16]" in told
    same_bits(dict(live.state_dict()), before)


def test_a_turned_parameter_has_no_places(tmp_path: Path) -> None:
    family = write_kind("mixtral", tmp_path)
    engine = _engine(family)
    live = engine.like.load_model()
    experts = live.model.layers[1].mlp.experts
    experts.down_proj.data = experts.down_proj.data.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(RecipeError, match=r"layers\.1\.mlp\.experts\.down_proj.* not contiguous"):
        engine.merge_into(live, recipe_of(family, "ties"))


def test_a_model_that_the_caller_made_is_merged_into(tmp_path: Path) -> None:
    family = write_kind("qwen3_moe", tmp_path)
    engine = _engine(family)
    recipe = recipe_of(family, "dare_ties")
    ours = engine.like.load_model()
    theirs = hf.Qwen3MoeForCausalLM(engine.like.model_config())
    engine.merge_into(ours, recipe)
    engine.merge_into(theirs, recipe)
    same_bits(dict(theirs.named_parameters()), dict(ours.named_parameters()))


def test_what_a_model_is_known_to_do_without_is_merged_for_the_file_alone(tmp_path: Path) -> None:
    family = write_kind("deepseek", tmp_path)
    # DeepSeek's file holds a 62nd layer that predicts further tokens, and transformers skips.
    extra = "model.layers.61.eh_proj.weight"
    for number, path in enumerate(family.all):
        rewrite(path, {**stored(path), extra: torch.full((4, 4), float(number))})
    engine = _engine(family)
    live: Any = engine.like.load_model()
    recipe = recipe_of(family, "task_arithmetic", (0.5, 0.25))
    engine.merge_into(live, recipe)
    write_merge([recipe], tmp_path / "out")
    again = type(live).from_pretrained(tmp_path / "out")
    same_bits(dict(live.named_parameters()), dict(again.named_parameters()))
    assert torch.equal(stored(tmp_path / "out")[extra], torch.full((4, 4), 0.5 + 0.25 * 2))
    assert engine.layout.tensors[extra] is None
    strange = "model.strange.weight"
    for path in family.all:
        rewrite(path, {**stored(path), strange: torch.zeros(4)})
    engine = _engine(family)
    with pytest.raises(RecipeError, match=rf"live DeepseekV3ForCausalLM has no tensor {strange}"):
        engine.merge_into(live, recipe)


@pytest.mark.parametrize("way", ["in several files", "as .bin"])
def test_experts_in_other_files(way: str, tmp_path: Path) -> None:
    plain = write_kind("mixtral", tmp_path / "plain")
    other = write_kind("mixtral", tmp_path / "other")
    for path in other.all:
        tensors = stored(path)
        (path / "model.safetensors").unlink()
        if way == "as .bin":
            torch.save(tensors, path / "pytorch_model.bin")
        else:
            # Neighbouring tensors, and so the experts of a layer, lie in different files.
            index = {name: f"part-{n % 3}.safetensors" for n, name in enumerate(tensors)}
            for file in set(index.values()):
                own = {name: one for name, one in tensors.items() if index[name] == file}
                save_file(own, path / file, {"format": "pt"})
            text = json.dumps({"metadata": {}, "weight_map": index})
            (path / "model.safetensors.index.json").write_text(text)
    lives = []
    for family in (plain, other):
        engine = _engine(family)
        lives.append(engine.like.load_model())
        engine.merge_into(lives[-1], recipe_of(family, "dare_ties"))
    same_bits(dict(lives[1].named_parameters()), dict(lives[0].named_parameters()))
