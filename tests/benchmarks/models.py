"""Random bfloat16 models that both programs take for real ones."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.benchmarks.shapes import BYTES, Shape

SPREAD, CHANGE = 0.02, 0.001
"""Standard deviations of the base's weights, and of what fine-tuning adds to them."""

_SHARD = 4 << 30


@dataclass(frozen=True)
class Family:
    """The folders of a base model and of the models fine-tuned from it."""

    shape: Shape
    base: Path
    tuned: tuple[Path, ...]

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.base, *self.tuned)

    @property
    def weight_files(self) -> list[Path]:
        """Every file with weights."""
        return [file for folder in self.all for file in sorted(folder.glob("*.safetensors"))]


def ensure_family(folder: Path, shape: Shape, count: int, seed: int = 0) -> Family:
    """Models of a shape, made if an earlier run has not left them in the folder.

    Args:
        folder: where models are kept; outside the repository.
        shape: theirs.
        count: how many fine-tuned ones.
        seed: of the weights.
    """
    key = f"llama-{shape.label.replace(',', '-').replace('=', '')}-seed{seed}"
    paths = [folder / key / name for name in ("base", *(f"tuned{i}" for i in range(count)))]
    for number, path in enumerate(paths):
        if not path.exists():
            _write_model(path, shape, number, seed)
    return Family(shape, paths[0], tuple(paths[1:]))


def empty_model(shape: Shape, device: torch.device) -> LlamaForCausalLM:
    """A live model in bfloat16 without particular weights, to merge into."""
    with torch.device("meta"):
        model = LlamaForCausalLM(shape.config()).to(torch.bfloat16)
    return model.to_empty(device=device).eval()


def _write_model(path: Path, shape: Shape, number: int, seed: int) -> None:
    """Model 0 is the base; renamed into place at the end, so that half a model is never found."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _write_weights(part, shape, number, seed)
    config = shape.config()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(part)
    _write_tokenizer(part, shape.vocabulary)
    part.rename(path)


def _write_weights(folder: Path, shape: Shape, number: int, seed: int) -> None:
    shards = list(_shards(shape))
    index = {}
    for position, names in enumerate(shards):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{position + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _tensor(name, size, number, seed) for name, size in names.items()}
        save_file(tensors, folder / file, {"format": "pt"})
        index.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        content = {"metadata": {"total_size": shape.nbytes}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _shards(shape: Shape) -> Iterator[dict[str, torch.Size]]:
    with torch.device("meta"):
        sizes = {name: t.shape for name, t in LlamaForCausalLM(shape.config()).named_parameters()}
    shard: dict[str, torch.Size] = {}
    for name, size in sizes.items():
        if shard and BYTES * (size.numel() + sum(s.numel() for s in shard.values())) > _SHARD:
            yield shard
            shard = {}
        shard[name] = size
    yield shard


def _tensor(name: str, size: torch.Size, number: int, seed: int) -> torch.Tensor:
    """One tensor of a model; each has numbers of its own, whatever is made before it."""
    weights = _normal(name, size, 0, seed).mul_(SPREAD).to(torch.bfloat16)
    if number == 0:
        return weights
    change = _normal(name, size, number, seed).mul_(CHANGE)
    return change.add_(weights).to(torch.bfloat16)


def _normal(name: str, size: torch.Size, number: int, seed: int) -> torch.Tensor:
    key = zlib.crc32(f"{seed}/{number}/{name}".encode())
    return torch.randn(size, generator=torch.Generator().manual_seed(key))


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    words = ["<s>", "</s>", "<unk>", *(f"w{number}" for number in range(vocabulary - 3))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
