"""Tiny Llama checkpoints on disk, for the comparison with mergekit's planner."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.recipe import Layout

NUM_LAYERS = 4


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Folders of four models with four layers each."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    for name in ("base", "code", "maths", "prose"):
        model.save_pretrained(folder / name)
    return tuple(str(folder / name) for name in ("base", "code", "maths", "prose"))


@pytest.fixture(scope="session")
def tiny_layout(tiny_models: tuple[str, ...]) -> Layout:
    """The layout of ``tiny_models``."""
    from safetensors import safe_open

    tensors: dict[str, int | None] = {}
    with safe_open(Path(tiny_models[0]) / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            parts = name.split(".")
            tensors[name] = int(parts[2]) if parts[1] == "layers" else None
    return Layout(tensors, frozenset({"model.norm.weight", "lm_head.weight"}), NUM_LAYERS)
