"""Shapes of Llama models to merge: presets, or any."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields, replace

from transformers import LlamaConfig

BYTES = 2
"""Of a bfloat16 number."""


@dataclass(frozen=True)
class Shape:
    """A Llama without tied embeddings.

    Args:
        layers: how many layers.
        width: of the hidden states.
        intermediate: of the feed-forward layers.
        heads: of the attention; they divide the width.
        kv_heads: of its keys and values; they divide the heads.
        vocabulary: tokens.
    """

    layers: int
    width: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """How many numbers a model has."""
        narrow = self.width * self.kv_heads // self.heads
        attention = 2 * self.width**2 + 2 * self.width * narrow
        layer = attention + 3 * self.width * self.intermediate + 2 * self.width
        return self.layers * layer + 2 * self.vocabulary * self.width + self.width

    @property
    def nbytes(self) -> int:
        """Size of a bfloat16 model."""
        return BYTES * self.parameters

    @property
    def label(self) -> str:
        """As ``parse_shape`` reads it."""
        return ",".join(f"{key}={value}" for key, value in asdict(self).items())

    def one_layer(self) -> Shape:
        """The same tensors' shapes in a model as small as can be."""
        return replace(self, layers=1, vocabulary=min(self.vocabulary, 512))

    def config(self) -> LlamaConfig:
        """The configuration of such a model."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            dtype="bfloat16",
        )


PRESETS = {
    "tiny": Shape(2, 64, 96, 4, 2, 256),
    # GaLore's llama_350m (arXiv 2403.03507): the usual Llama of that size.
    "350m": Shape(24, 1024, 2736, 16, 16, 32000),
    # Meta-Llama-3-8B.
    "8b": Shape(32, 4096, 14336, 32, 8, 128256),
}


def parse_shape(text: str) -> Shape:
    """A preset's name, or ``layers=…,width=…`` with what differs from ``350m``.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    if text in PRESETS:
        return PRESETS[text]
    keys = {field.name for field in fields(Shape)}
    changes = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in keys or not value.isdigit() or int(value) < 1:
            allowed = f"a preset ({', '.join(PRESETS)}) or key=number of {', '.join(sorted(keys))}"
            raise argparse.ArgumentTypeError(f"{part!r} in shape {text!r}; allowed: {allowed}")
        changes[key] = int(value)
    shape = replace(PRESETS["350m"], **changes)
    if shape.width % shape.heads or shape.heads % shape.kv_heads:
        problem = "the heads must divide the width, and kv_heads the heads"
        raise argparse.ArgumentTypeError(f"shape {shape.label}: {problem}")
    return shape
