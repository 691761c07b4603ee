"""Where each tensor of a model stands: in which layer, before the layers or after them.

Read from the tensors' names, not from a list of architectures: a layer's tensors have its number as
the first integer component of their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evomerge.checkpoints import Checkpoint
from evomerge.recipe import Layout

# What comes before the first layer: input embeddings of tokens, positions and types, their norm.
_FIRST = re.compile(
    r"(embed|wte|wpe|word_embeddings|position_embeddings|token_type)", re.IGNORECASE
)
_HEADS = re.compile(r"(embed_out|lm_head|cls\.|score|classifier)")


def layout_of(checkpoint: Checkpoint) -> Layout:
    """The layout of a stored model.

    Args:
        checkpoint: any causal or encoder model with one stack of layers.
    """
    return make_layout(checkpoint.names, checkpoint.num_layers)


def make_layout(names: Iterable[str], num_layers: int) -> Layout:
    """The layout of tensors of these names in a model with so many layers."""
    tensors = {name: _layer(name, num_layers) for name in names}
    outside = [name for name, layer in tensors.items() if layer is None]
    last = frozenset(name for name in outside if _HEADS.search(name) or not _FIRST.search(name))
    return Layout(tensors, last, num_layers)


def _layer(name: str, num_layers: int) -> int | None:
    for part in name.split("."):
        if part.isdecimal() and part == str(int(part)):
            return int(part) if int(part) < num_layers else None
    return None
