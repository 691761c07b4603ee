"""``config.json``: what is read from it, and what changes when a model is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.dtypes import name_of
from evomerge.checkpoints.files import read_json
from evomerge.checkpoints.folders import ADAPTER_CONFIG, CONFIG
from evomerge.errors import CheckpointError, Fault
from evomerge.references import ModelReference

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SECTIONS = ("text_config", "llm_config", "language_config")
# Lists with an entry per layer; transformers refuses a model whose list has another length.
_PER_LAYER = ("layer_types", "mlp_layer_types", "attention_layers", "no_rope_layers")
_DTYPE = ("dtype", "torch_dtype")


def read_config(folder: Path, model: ModelReference) -> dict[str, Any]:
    """A model's ``config.json``.

    Raises:
        CheckpointError: there is none, or the model is quantised.
    """
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            problem = f"is an adapter, not a model; name it after its base: base+{model.path}"
        else:
            problem = f"has no {CONFIG}; a folder that transformers' save_pretrained wrote has one"
        raise CheckpointError([Fault(str(folder), problem)])
    config = read_json(folder / CONFIG)
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "quantization_config")
        problem = f"is quantised ({method}); merge the model that it was made from"
        raise CheckpointError([Fault(str(model), problem)])
    return config


def counted_layers(config: Mapping[str, Any], names: Iterable[str]) -> int:
    """The number of layers by the configuration, else by the numbers in the tensors' names."""
    count = layer_count(config)
    if count is not None:
        return count
    numbers = [re.search(r"(?:^|\.)(\d+)\.", name) for name in names]
    return max((int(found[1]) + 1 for found in numbers if found), default=0)


def layer_count(config: Mapping[str, Any]) -> int | None:
    """The number of layers of the (text) model; None if the configuration does not say."""
    section = text_section(config)
    for key in _LAYERS:
        if isinstance(section.get(key), int):
            return int(section[key])
    return None


def text_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the text model: the whole, or what stands under ``text_config``."""
    if any(key in config for key in _LAYERS):
        return config
    for name in _SECTIONS:
        if isinstance(config.get(name), Mapping):
            return text_section(config[name])
    return config


def written_config(
    config: Mapping[str, Any],
    torch_dtype: torch.dtype,
    layers: Sequence[int] | int | None,
    place: str,
    values: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The configuration of a model that is made from one with another.

    Args:
        config: of the model that it is like.
        torch_dtype: of the written tensors.
        layers: the number of layers, or for each of them the layer whose settings it takes; None
            leaves them as they are.
        place: names the model in messages.
        values: further keys of the (text) model, such as ``vocab_size``.

    Raises:
        CheckpointError: layers have settings of their own, and it is not known which go where.
    """
    result = deepcopy(dict(config))
    _set_dtype(result, name_of(torch_dtype))
    if layers is not None:
        # text_section gives a part of `result` itself.
        _set_layers(text_section(result), layers, place)
    _set_values(result, values or {})
    return result


def _set_values(config: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Wherever a key stands, else with the text model."""
    section: Any = text_section(config)
    for key, value in values.items():
        if key in config:
            config[key] = value
        if key in section or key not in config:
            section[key] = value


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Both spellings where they stand: transformers 5 writes the first and reads both."""
    if not any(key in config for key in _DTYPE):
        config["torch_dtype"] = dtype
    _replace_dtype(config, dtype)


def _replace_dtype(config: dict[str, Any], dtype: str) -> None:
    for key, value in config.items():
        if key in _DTYPE:
            config[key] = dtype
        elif key.endswith("_config") and isinstance(value, dict):
            _replace_dtype(value, dtype)


def _set_layers(section: Any, layers: Sequence[int] | int, place: str) -> None:
    before = layer_count(section)
    count = layers if isinstance(layers, int) else len(layers)
    for key in _LAYERS:
        if isinstance(section.get(key), int):
            section[key] = count
    for key in _PER_LAYER:
        value = section.get(key)
        if not isinstance(value, list) or len(value) != before:
            continue
        if not isinstance(layers, int):
            section[key] = [value[layer] for layer in layers]
        elif len(set(map(str, value))) == 1:
            section[key] = value[:1] * count
        elif count != before:
            problem = f"differs from layer to layer, and {count} layers are wanted, not {before}"
            raise CheckpointError([Fault(f"{place}: {key}", problem)])
