"""Which files of a folder hold the weights; no tensor library is needed to know."""

from __future__ import annotations

import json
from pathlib import Path

from evomerge.checkpoints.folders import ADAPTER_CONFIG, is_weights
from evomerge.errors import CheckpointError, Fault


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weights of a model's folder: safetensors before ``.bin``, an index before a single file.

    Raises:
        CheckpointError: there are none, the index names a file that is not there, or it is not
            clear which of several files are meant.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index, single = folder / f"{stem}.index.json", folder / stem
        if index.is_file():
            return tuple(index.parent / name for name in sorted(set(read_index(index).values())))
        if single.is_file():
            return (single,)
    others = sorted(p for p in folder.iterdir() if is_weights(p.name))
    if len(others) == 1:
        return tuple(others)
    if others:
        names = ", ".join(path.name for path in others[:5])
        problem = f"holds {names}, but no index (model.safetensors.index.json) of them"
    else:
        problem = "holds no weights; model.safetensors or pytorch_model.bin is expected"
    raise CheckpointError([Fault(str(folder), problem)])


def adapter_file(folder: Path) -> Path:
    """The weights of an adapter's folder.

    Raises:
        CheckpointError: there are none.
    """
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    problem = "holds no adapter_model.safetensors"
    raise CheckpointError([Fault(str(folder), problem)])


def files_of(folder: Path, adapter_folder: Path | None) -> tuple[Path, ...]:
    """All that decides a model's tensors: its weights, an adapter's and its configuration.

    Raises:
        CheckpointError: as ``weight_files`` and ``adapter_file``.
    """
    own = weight_files(folder)
    if adapter_folder is None:
        return own
    return (*own, adapter_file(adapter_folder), adapter_folder / ADAPTER_CONFIG)


def local_files(path: str, lora: str | None) -> tuple[Path, ...] | None:
    """``files_of`` a model in local folders; None where it is none, or something is wrong."""
    folders = [Path(one).expanduser() for one in (path, *([lora] if lora else []))]
    try:
        if not all(folder.is_dir() for folder in folders):
            return None
        return files_of(folders[0].resolve(), folders[1].resolve() if lora else None)
    except (CheckpointError, OSError):
        return None


def find_index(folder: Path) -> Path | None:
    """The index of a folder's weight files, where that is what counts."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / f"{stem}.index.json").is_file():
            return folder / f"{stem}.index.json"
        if (folder / stem).is_file():
            return None
    return None


def read_index(index: Path) -> dict[str, str]:
    """Tensor → name of its file, every one of which is there.

    Raises:
        CheckpointError: it is no index, or names what is no file beside it.
    """
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError([Fault(str(index), "has no weight_map")])
    names = sorted(set(where.values()), key=str)
    strange = [n for n in names if not isinstance(n, str) or Path(n).name != n]
    missing = [n for n in names if n not in strange and not (index.parent / n).is_file()]
    faults = [Fault(str(index), f"names {n!r}, which is no file beside it") for n in strange]
    faults += [Fault(str(index.parent / n), "is missing; the index names it") for n in missing]
    if faults:
        raise CheckpointError(faults)
    return where


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        fault = Fault(str(path), f"cannot be read: {problem.strerror}")
        raise CheckpointError([fault]) from problem
    except ValueError as problem:
        raise CheckpointError([Fault(str(path), f"is not JSON: {problem}")]) from problem
    if not isinstance(data, dict):
        raise CheckpointError([Fault(str(path), "holds no JSON object")])
    return data
