"""Tiny models of several kinds, written by transformers as its users' models are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(60)))
SIZE = len(WORDS)

_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": SIZE,
    "max_position_embeddings": 64,
}


def make(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with random weights: ``llama``, ``tied`` (a Llama), ``gpt2``, ``bert`` …"""
    build = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**{**_LLAMA, **changes})),
        "tied": lambda: LlamaForCausalLM(
            LlamaConfig(**{**_LLAMA, "tie_word_embeddings": True, **changes})
        ),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**{**_LLAMA, "head_dim": 4, **changes})),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**{**_LLAMA, "head_dim": 4, **changes})),
        "mixtral": lambda: MixtralForCausalLM(
            MixtralConfig(**{**_LLAMA, "num_local_experts": 2, **changes})
        ),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(
                **{"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": SIZE, "n_positions": 64},
                **changes,
            )
        ),
        "bert": lambda: BertModel(_bert(**changes)),
        "bert-head": lambda: BertForMaskedLM(_bert(**changes)),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
    return model.to(dtype).eval()


def _bert(**changes: Any) -> BertConfig:
    size = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": SIZE,
        "max_position_embeddings": 64,
    }
    return BertConfig(**{**size, **changes})


def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS, added: int = 4) -> None:
    """A word-level tokenizer whose first ``added`` words are special tokens."""
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(words[:added]))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)


def save(model: Any, folder: Path, *, shard: str = "5GB", tokenizer: bool = True) -> Path:
    """Write a model and its tokenizer."""
    model.save_pretrained(folder, max_shard_size=shard)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files in a folder, read by safetensors itself."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def rewrite(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace a single-file model's tensors."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes a key."""
    data = json.loads(path.read_text())
    data |= changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def logits(model: Any) -> torch.Tensor:
    """What a model says of a fixed sentence."""
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        output = model(input_ids=ids)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state
