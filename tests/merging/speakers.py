"""Small models that speak of different tokens: every row says which token of which model it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evomerge.recipe import Recipe
from tests.merging.worlds import llama, stored

SPECIAL = ("<s>", "</s>", "<unk>")
WORDS = (*SPECIAL, *(f"w{number}" for number in range(9)))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Speaker:
    """A model's folder, its tokens in the order of their rows, its tensors."""

    folder: Path
    tokens: tuple[str, ...]
    tensors: dict[str, torch.Tensor]

    def row(self, token: str, name: str = EMBEDDING) -> torch.Tensor:
        """The row of a token; a tied head is the embedding."""
        return self.tensors.get(name, self.tensors[EMBEDDING])[self.tokens.index(token)]


def speaker(
    folder: Path,
    words: Sequence[str] = WORDS,
    added: Sequence[str] = (),
    *,
    rows: int | None = None,
    seed: int = 0,
    template: str | None = None,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Speaker:
    """Write a model with a tokenizer of ``words`` and of ``added`` special tokens behind them.

    Args:
        rows: of embeddings and head, where they are not as many as tokens.
        template: its chat template.
        changes: of the configuration.
    """
    tokens = (*words, *added)
    numbers = {"bos_token_id": tokens.index("<s>"), "eos_token_id": tokens.index("</s>")}
    settings = {"vocab_size": rows or len(tokens), "num_hidden_layers": 1, **numbers, **changes}
    model = llama(**settings).to(dtype)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random).mul_(0.2))
    model.save_pretrained(folder)
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([word for word in (*SPECIAL, *added) if word in tokens])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return Speaker(folder, tokens, stored(folder))


def blend(
    *speakers: Speaker, method: str = "linear", base: Speaker | None = None, **top: Any
) -> Recipe:
    """A recipe with weights 0.5, 0.3, 0.2 …, everything kept."""
    return Recipe.from_yaml(blend_text(*speakers, method=method, base=base, **top))


def blend_text(
    *speakers: Speaker, method: str = "linear", base: Speaker | None = None, **top: Any
) -> str:
    listed = [
        {"model": str(one.folder), "parameters": {"weight": weight}}
        for one, weight in zip(speakers, (0.5, 0.3, 0.2), strict=False)
    ]
    data: dict[str, Any] = {"merge_method": method, "models": listed, "dtype": "float32"}
    if base is not None:
        data["base_model"] = str(base.folder)
    return yaml.safe_dump({**data, **top}, sort_keys=False)
