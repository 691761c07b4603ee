"""Tensors that are stored but are no weights of their own: tied copies and rebuilt buffers."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)

_HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "lm_head.decoder.weight",
    "cls.predictions.decoder.weight",
)

# The output head's bias has an entry per token as well.
_HEAD_BIASES = (
    "lm_head.bias",
    "embed_out.bias",
    "cls.predictions.bias",
    "lm_head.decoder.bias",
    "cls.predictions.decoder.bias",
)

# These biases are one parameter with two names, whatever the configuration says.
_BIASES = {
    "lm_head.decoder.bias": "lm_head.bias",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

_REBUILT = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.masked_bias|attention\.masked_bias)$")
_MASKS = re.compile(r"(^|\.)(attn\.bias|attention\.bias)$")
_POSITIONS = re.compile(r"(^|\.)position_ids$")


def input_embedding(names: Collection[str]) -> str | None:
    """The tensor that holds a row per token; None where that cannot be told."""
    found = [name for name in names if _ends(name, _EMBEDDINGS)]
    return found[0] if len(found) == 1 else None


def is_head(name: str) -> bool:
    """Whether a tensor is an output head's, which is the input embedding in some models."""
    return _ends(name, _HEADS)


def token_tensors(names: Collection[str]) -> tuple[str, ...]:
    """The tensors with a row (or an entry) per token: embeddings, output head, its bias."""
    embedding = input_embedding(names)
    return tuple(name for name in names if name == embedding or _ends(name, _HEADS + _HEAD_BIASES))


def tied_to(name: str, names: Collection[str], tied_head: bool) -> str | None:
    """The stored tensor that ``name`` is another name of, if any.

    Args:
        name: a tensor, stored or not.
        names: what is stored.
        tied_head: whether the output head is the input embedding (``tie_word_embeddings``).
    """
    if name in _BIASES:
        return _BIASES[name] if _BIASES[name] in names else None
    if tied_head and _ends(name, _HEADS):
        return input_embedding(names)
    return None


def may_be_tied(name: str) -> bool:
    """Whether a tensor is of the kind that has a second name in some models."""
    return name in _BIASES or _ends(name, _HEADS)


def is_rebuilt(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a stored tensor is a buffer that every model makes anew from its configuration.

    Older versions of transformers stored rotary frequencies, causal masks and position numbers.
    """
    if _REBUILT.search(name):
        return True
    if _MASKS.search(name):
        return len(shape) == 4 or dtype in (torch.bool, torch.uint8)
    return bool(_POSITIONS.search(name)) and not dtype.is_floating_point


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
