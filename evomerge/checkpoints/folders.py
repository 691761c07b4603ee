"""Where a model lies: a local folder, or a snapshot of the hub's in the local cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from evomerge.errors import CheckpointError, Fault
from evomerge.references import ModelReference

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What belongs to a model besides its weights and its configuration."""

_PATIENCE = 15.0
"""Seconds until the hub counts as out of reach."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_OTHER_WEIGHTS = re.compile(r"(adapter_model|consolidated|training_args|optimizer|scheduler)")


def parsed(reference: ModelReference | str) -> ModelReference:
    """A model's name, read.

    Raises:
        CheckpointError: it is none.
    """
    try:
        return ModelReference.parse(reference)
    except ValueError as problem:
        raise CheckpointError([Fault(repr(reference), str(problem))]) from problem


def locate(path: str, revision: str | None, *, trust_remote_code: bool = False) -> Path:
    """The folder of a model or an adapter, downloaded if need be.

    Args:
        path: a folder, or a name on the hub.
        revision: of the hub's repository.
        trust_remote_code: whether the repository's Python files are fetched too.

    Raises:
        CheckpointError: it is neither a folder nor a name that the hub, or its cache, knows.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            problem = f"is a folder, which has no revision {revision!r}; leave the @… away"
            raise CheckpointError([Fault(path, problem)])
        return folder.resolve()
    if folder.exists():
        raise CheckpointError([Fault(path, "is a file; name the folder that holds the model")])
    if not _HUB_NAME.fullmatch(path):
        problem = "there is no such folder, and a name on the hub has the form owner/name"
        raise CheckpointError([Fault(path, problem)])
    return _snapshot(path, revision, trust_remote_code)


def is_weights(name: str) -> bool:
    """Whether a file name is one of a model's weights in a form that is read here."""
    return name.endswith((".safetensors", ".bin")) and not _OTHER_WEIGHTS.match(name)


def wanted(files: Iterable[str], *, trust_remote_code: bool = False) -> list[str]:
    """The files of a repository that are worth downloading.

    Safetensors are preferred: ``.bin`` files are left out where there are any safetensors.
    """
    names = sorted(files)
    top = [name for name in names if "/" not in name]
    small = (CONFIG, ADAPTER_CONFIG, *COMPANIONS, *(["*.py"] if trust_remote_code else []))
    chosen = [n for n in names if any(_matches(n, pattern) for pattern in small)]
    for weights in (_safetensors(top), _pickles(top)):
        if weights:
            return chosen + weights
    return chosen


def _matches(name: str, pattern: str) -> bool:
    path = PurePosixPath(name)
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)


def _safetensors(top: list[str]) -> list[str]:
    found = [n for n in top if n.endswith((".safetensors", ".safetensors.index.json"))]
    return [name for name in found if not name.startswith("consolidated")]


def _pickles(top: list[str]) -> list[str]:
    prefixes = ("pytorch_model", "adapter_model")
    return [n for n in top if n.startswith(prefixes) and n.endswith((".bin", ".bin.index.json"))]


def _snapshot(name: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import HTTPError

    listed = _listing(name, revision)
    try:
        if listed is None:
            # Only part of a repository is ever fetched; to ask for all of it would find it missing.
            known = [n for n in (CONFIG, ADAPTER_CONFIG, *COMPANIONS) if "*" not in n]
            cached = snapshot_download(
                name, revision=revision, allow_patterns=known, local_files_only=True
            )
            return Path(cached)
        patterns = wanted(listed, trust_remote_code=trust_remote_code)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HTTPError, OSError, ValueError) as problem:
        if is_offline_mode():
            why = "not in the hub's local cache, and the hub is off limits (HF_HUB_OFFLINE is set)"
        elif listed is None:
            why = "not in the hub's local cache, and the hub cannot be reached"
        else:
            why = f"its download from the hub failed: {_first_line(problem)}"
        raise CheckpointError([Fault(_label(name, revision), f"is no folder; {why}")]) from problem


def _listing(name: str, revision: str | None) -> list[str] | None:
    """The files of a repository; None where the hub cannot be asked."""
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if is_offline_mode():
        return None
    label = _label(name, revision)
    try:
        info = HfApi().model_info(name, revision=revision, timeout=_PATIENCE)
        return [file.rfilename for file in info.siblings or []]
    except GatedRepoError as problem:
        why = "its owner must grant access: ask for it on the hub and log in (hf auth login)"
        raise CheckpointError([Fault(label, why)]) from problem
    except RepositoryNotFoundError as problem:
        why = "is neither a folder nor a model on the hub that you may read"
        raise CheckpointError([Fault(label, why)]) from problem
    except RevisionNotFoundError as problem:
        raise CheckpointError([Fault(label, "the hub has no such revision")]) from problem
    except HFValidationError as problem:
        raise CheckpointError([Fault(label, _first_line(problem))]) from problem
    except (HTTPError, OSError):
        return None


def _label(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__
