"""Small models of one family, recipes about them, and mergekit to merge them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.recipe import METHODS as ALL
from evomerge.recipe import Recipe

WORDS = ("<s>", "</s>", "<unk>", *(f"w{number}" for number in range(27)))
NUM_LAYERS = 4
# The task-arithmetic family and linear; the others have tests of their own.
METHODS = {name: spec for name, spec in ALL.items() if spec.consensus in ("blend", "sum", "elect")}
RANDOM = tuple(name for name, spec in METHODS.items() if spec.draws_masks)
EXACT = tuple(name for name in METHODS if name not in RANDOM)


@dataclass(frozen=True)
class Family:
    """Folders of a base model and three fine-tuned ones."""

    base: Path
    tuned: tuple[Path, ...]

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.base, *self.tuned)


def llama(**changes: Any) -> LlamaForCausalLM:
    """A tiny Llama without particular weights."""
    config = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**{**config, **changes}))


def write_family(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Family:
    """Four models that differ from one another by small random numbers."""
    model = llama(**changes).to(dtype)
    random = torch.Generator().manual_seed(0)
    base = {
        name: torch.randn(tensor.shape, generator=random).mul_(0.2)
        for name, tensor in model.state_dict().items()
    }
    paths = [folder / name for name in ("base", "code", "maths", "prose")]
    for number, path in enumerate(paths):
        for name, tensor in model.state_dict().items():
            change = torch.randn(tensor.shape, generator=random).mul_(0.05)
            tensor.copy_(base[name] + change if number else base[name])
        model.save_pretrained(path)
        write_tokenizer(path)
    return Family(paths[0], tuple(paths[1:]))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of a word per number."""
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def recipe_text(
    family: Family,
    method: str,
    weights: Sequence[Any] = (0.5, 0.3, 0.4),
    *,
    density: Any = 0.5,
    **top: Any,
) -> str:
    """A recipe of all of a family's models; ``top`` are keys beside ``models``."""
    spec = METHODS[method]
    listed = []
    for path, weight in zip(family.tuned, weights, strict=False):
        parameters = {"weight": weight}
        if spec.sparsifies:
            parameters["density"] = density
        listed.append({"model": str(path), "parameters": parameters})
    data: dict[str, Any] = {"merge_method": method, "models": listed}
    if spec.needs_base:
        data["base_model"] = str(family.base)
    return yaml.safe_dump({**data, **top}, sort_keys=False)


def recipe_of(family: Family, method: str, *arguments: Any, **settings: Any) -> Recipe:
    """The same, read."""
    return Recipe.from_yaml(recipe_text(family, method, *arguments, **settings))


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files in a folder, read by safetensors itself."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def rewrite(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace a single-file model's tensors."""
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(content, folder / "model.safetensors", {"format": "pt"})


def config_of(folder: Path) -> dict[str, Any]:
    """A model's configuration file."""
    data: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return data


def run_mergekit(text: str, out: Path, seed: int | None = None) -> dict[str, torch.Tensor]:
    """What mergekit 0.1.5 makes of a recipe."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(
        quiet=True, copy_tokenizer=False, write_model_card=False, random_seed=seed
    )
    logging.disable(logging.WARNING)
    try:
        with torch.random.fork_rng():
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    finally:
        logging.disable(logging.NOTSET)
    return stored(out)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits, so that 0.0 and -0.0 differ."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def same_bits(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that differ in any bit, type, shape or name."""
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(bits(tensor), bits(theirs[name])), name
