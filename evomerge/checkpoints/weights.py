"""The weight files of one folder: one view on them, however they are split and stored."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from evomerge.checkpoints.dtypes import DTYPES
from evomerge.checkpoints.files import find_index, read_index, weight_files
from evomerge.errors import CheckpointError, Fault

_LFS = b"version https://git-lfs"


class Entry(NamedTuple):
    """Shape and type of a stored tensor, and the number of its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class _File(Protocol):
    def entries(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]: ...

    def view(self, name: str) -> torch.Tensor: ...


class WeightFiles:
    """Tensors by name over one or several weight files. Only headers are read at first.

    Args:
        files: safetensors or ``.bin`` files; no tensor stands in two of them.

    Raises:
        CheckpointError: a file cannot be read, or a tensor stands twice.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._open = tuple(_open(path) for path in self.files)
        self.entries: dict[str, Entry] = {}
        faults = []
        for number, file in enumerate(self._open):
            for name, (shape, dtype) in file.entries().items():
                if name in self.entries:
                    other = self.files[self.entries[name].file].name
                    faults.append(Fault(f"{self.files[number]}: {name}", f"stands in {other} too"))
                self.entries[name] = Entry(shape, dtype, number)
        if faults:
            raise CheckpointError(faults)

    def view(self, name: str) -> torch.Tensor:
        """The tensor, mapped from its file where it can be: read it, but do not keep or change it.

        A mapped tensor shows what happens to its file later; whoever keeps one clones it.
        """
        return self._open[self.entries[name].file].view(name)

    def path(self, name: str) -> Path:
        """The file that a tensor stands in."""
        return self.files[self.entries[name].file]


def find_weights(folder: Path) -> WeightFiles:
    """The weights of a model's folder: safetensors before ``.bin``, an index before a single file.

    Raises:
        CheckpointError: there are none, the index names a file or a tensor that is not there, or
            it is not clear which of several files are meant.
    """
    weights = WeightFiles(weight_files(folder))
    index = find_index(folder)
    if index is not None:
        where = read_index(index)
        absent = [tensor for tensor in where if tensor not in weights.entries]
        if absent:
            faults = [Fault(str(index), f"{t}: is not in {where[t]}") for t in absent[:10]]
            raise CheckpointError(faults)
    return weights


def commonest_float(entries: Iterable[Entry]) -> torch.dtype:
    """The floating type of most elements; float32 if there is none."""
    counts: Counter[torch.dtype] = Counter()
    for entry in entries:
        if entry.dtype.is_floating_point:
            counts[entry.dtype] += entry.numel
    return counts.most_common(1)[0][0] if counts else torch.float32


def _open(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                problem = "is a Git LFS pointer, not the file itself; run git lfs pull"
                raise CheckpointError([Fault(str(path), problem)])
        return _Safetensors(path) if path.suffix == ".safetensors" else _Pickle(path)
    except OSError as problem:
        fault = Fault(str(path), f"cannot be read: {problem.strerror or problem}")
        raise CheckpointError([fault]) from problem


class _Safetensors:
    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(str(path), framework="pt", device="cpu")
        except SafetensorError as problem:
            fault = Fault(str(path), f"is damaged or incomplete: {problem}")
            raise CheckpointError([fault]) from problem
        self._path = path

    def entries(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        found, faults = {}, []
        for name in self._file.keys():  # noqa: SIM118 (no mapping, only keys())
            header = self._file.get_slice(name)
            stored = header.get_dtype()
            if stored not in DTYPES:
                faults.append(Fault(f"{self._path}: {name}", f"has the unknown type {stored}"))
                continue
            found[name] = (tuple(header.get_shape()), DTYPES[stored])
        if faults:
            raise CheckpointError(faults)
        return found

    def view(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


class _Pickle:
    """A ``.bin`` file, through torch's loader that builds tensors and nothing else."""

    def __init__(self, path: Path) -> None:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        try:
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except UnpicklingError as problem:
            why = "holds more than tensors, or is damaged; loading it could run code, so it is not"
            fault = Fault(str(path), f"{why} (convert it to safetensors)")
            raise CheckpointError([fault]) from problem
        except (RuntimeError, EOFError, ValueError) as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            fault = Fault(str(path), f"is damaged or incomplete: {reason}")
            raise CheckpointError([fault]) from problem
        named = isinstance(data, dict) and all(isinstance(v, torch.Tensor) for v in data.values())
        if not named:
            raise CheckpointError([Fault(str(path), "is no mapping of names to tensors")])
        self._tensors: dict[str, torch.Tensor] = data

    def entries(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {name: (tuple(t.shape), t.dtype) for name, t in self._tensors.items()}

    def view(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()
