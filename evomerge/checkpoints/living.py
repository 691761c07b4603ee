"""transformers' objects for a stored model: configuration, tokenizer, live model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.configuration import text_section
from evomerge.errors import CheckpointError, Fault


def load_config(folder: Path, place: str, trust_remote_code: bool) -> Any:
    """transformers' configuration object of the model in a folder."""
    from transformers import AutoConfig

    with _explained(f"{place}: config.json", trust_remote_code):
        return AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )


def load_tokenizer(folder: Path, place: str, trust_remote_code: bool) -> Any:
    """transformers' tokenizer from a folder."""
    from transformers import AutoTokenizer

    with _explained(f"{place}: tokenizer", trust_remote_code):
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )


def load_model(
    folder: Path, config: Any, place: str, trust_remote_code: bool, dtype: torch.dtype
) -> torch.nn.Module:
    """The model in a folder, on the CPU."""
    build = _model_class(config, trust_remote_code).from_pretrained
    return _load(
        lambda **options: build(folder, local_files_only=True, **options),
        config,
        place,
        trust_remote_code,
        dtype,
    )


def load_model_from(
    state: Mapping[str, torch.Tensor],
    folder: Path,
    config: Any,
    place: str,
    trust_remote_code: bool,
    dtype: torch.dtype,
) -> torch.nn.Module:
    """The model in a folder with the tensors of ``state`` (stored names), on the CPU."""
    from transformers import GenerationConfig

    build = _model_class(config, trust_remote_code).from_pretrained
    model: Any = _load(
        lambda **options: build(None, state_dict=dict(state), **options),
        config,
        place,
        trust_remote_code,
        dtype,
    )
    if (folder / "generation_config.json").is_file() and model.can_generate():
        with _explained(f"{place}: generation_config.json", trust_remote_code):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    live: torch.nn.Module = model
    return live


def empty_model(config: Any, place: str, trust_remote_code: bool) -> torch.nn.Module:
    """The model that a configuration describes, without values (on the meta device)."""
    kind = _model_class(config, trust_remote_code)
    options = {"trust_remote_code": True} if trust_remote_code else {}
    with _explained(place, trust_remote_code), torch.device("meta"):
        if hasattr(kind, "from_config"):
            model: torch.nn.Module = kind.from_config(config, **options)
        else:
            model = kind(config)
    return model


def resize(model: Any, height: int, values: Mapping[str, Any], place: str) -> torch.nn.Module:
    """A live model with another number of rows for tokens, the new ones without particular values.

    Args:
        model: one of transformers' models.
        height: how many rows embeddings and output head get.
        values: what its configuration says otherwise.
        place: names the model in messages.
    """
    with _explained(place, trust_remote_code=False), torch.random.fork_rng(devices=[]):
        # Numbers beyond the new rows would be refused as padding while it is resized.
        _configure(model, values)
        model.resize_token_embeddings(height, mean_resizing=False)
    model.requires_grad_(False)
    live: torch.nn.Module = model.eval()
    return live


def untie(model: Any) -> None:
    """Give a live model an output head of its own, equal to its embeddings."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _configure(model: Any, values: Mapping[str, Any]) -> None:
    text = model.config.get_text_config()
    for config in (model.config, text, getattr(model, "generation_config", None)):
        for key, value in values.items():
            if key.endswith("_token_id") and hasattr(config, key):
                setattr(config, key, value)


def has_tied_head(
    config: Mapping[str, Any], folder: Path, place: str, trust_remote_code: bool
) -> bool:
    """Whether a model's output head is its input embedding.

    Args:
        config: what ``config.json`` in the folder says.
        folder: the model's.
        place: names the model in messages.
        trust_remote_code: whether the model's own code may run.
    """
    for section in (config, text_section(config)):
        if "tie_word_embeddings" in section:
            return bool(section["tie_word_embeddings"])
    # Files leave out what is the default, and that differs between kinds of models.
    try:
        loaded = load_config(folder, place, trust_remote_code)
    except CheckpointError:
        # transformers does not know the model; then what is stored counts as it stands.
        return False
    return bool(getattr(loaded, "tie_word_embeddings", False))


def _load(
    build: Callable[..., Any],
    config: Any,
    place: str,
    trust_remote_code: bool,
    dtype: torch.dtype,
) -> torch.nn.Module:
    options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    with _explained(place, trust_remote_code), _without_progress():
        model, report = build(config=config, dtype=dtype, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills them with random numbers and a warning.
        problem = f"stores no weights for {', '.join(missing[:5])}"
        problem += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        what = f"{problem}, which a {type(model).__name__} needs"
        raise CheckpointError([Fault(place, what)])
    _own_memory(model)
    model.requires_grad_(False)
    live: torch.nn.Module = model.eval()
    return live


def _own_memory(model: torch.nn.Module) -> None:
    """Copy each tensor out of the mapped files that transformers leaves it in."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def _model_class(config: Any, trust_remote_code: bool) -> Any:
    """The class that the checkpoint was saved from; a causal model where it does not say."""
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel, AutoModelForCausalLM

    names = getattr(config, "architectures", None) or [None]
    custom = getattr(config, "auto_map", None) or {}
    if trust_remote_code:
        for auto, target in custom.items():
            if auto.startswith("AutoModel") and str(target).rpartition(".")[2] == names[0]:
                return getattr(transformers, auto, AutoModelForCausalLM)
    named = getattr(transformers, str(names[0]), None)
    if named is not None and hasattr(named, "from_pretrained"):
        return named
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if causal or custom else AutoModel


@contextmanager
def _explained(place: str, trust_remote_code: bool) -> Iterator[None]:
    """Turn what transformers raises about its input into one of our errors."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as problem:
        reason = _reason(problem)
        if not trust_remote_code and "trust_remote_code" in str(problem):
            reason = "needs Python code of its own; allow it with trust_remote_code if you trust it"
        raise CheckpointError([Fault(place, reason)]) from problem


def _reason(problem: Exception) -> str:
    text = re.sub(r"\s+", " ", str(problem)).strip()
    short = text if len(text) <= 300 else f"{text[:300]}…"
    return f"transformers cannot load it: {short or type(problem).__name__}"


@contextmanager
def _without_progress() -> Iterator[None]:
    # Every worker would draw a bar over the search's own display.
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
