"""Safetensors files written tensor by tensor, so that no more than one is held in memory.

The format: eight bytes (little endian) with the length of a JSON header, the header, the data. The
header stands before the data but is known after it; room is kept for it and filled up with the
spaces that the format allows.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from evomerge.checkpoints.dtypes import STORED_NAMES

_LEAD = b'{"__metadata__":{"format":"pt"}'
_ALIGNMENT = 8


class ShardWriter:
    """Writes tensors, in the order in which they come, into files of limited size.

    Files hold one type each, because a tensor must start at a multiple of its element's size.

    Args:
        folder: an existing, empty folder.
        max_shard_bytes: no file's tensors exceed it, unless one tensor alone does.
        header_room: bytes kept for each header; a file that fills it up is closed.
    """

    def __init__(self, folder: Path, max_shard_bytes: int, header_room: int) -> None:
        self._folder = folder
        self._max_bytes = max_shard_bytes
        self._room = -(-max(header_room, 512) // _ALIGNMENT) * _ALIGNMENT
        self._shards: list[_Shard] = []
        self._open: dict[torch.dtype, _Shard] = {}
        self.nbytes = 0
        self.elements = 0
        self.elements_by_dtype: dict[torch.dtype, int] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor.

        Raises:
            OSError: the file system refuses.
            ValueError: the tensor's type has no name in the format.
        """
        if tensor.dtype not in STORED_NAMES:
            raise ValueError(f"{name}: {tensor.dtype} cannot be stored in safetensors")
        data = tensor.detach().to("cpu").contiguous()
        size = data.numel() * data.itemsize
        shard = self._open.get(tensor.dtype)
        if shard is None or not shard.has_room(name, data, size, self._max_bytes):
            shard = self._next(tensor.dtype, _entry_size(name, data))
        shard.write(name, data, size)
        self.nbytes += size
        self.elements += data.numel()
        self.elements_by_dtype[tensor.dtype] = (
            self.elements_by_dtype.get(tensor.dtype, 0) + data.numel()
        )

    def finish(self) -> tuple[str, ...]:
        """Complete the files and give them their names; with an index if there are several.

        Raises:
            OSError: the file system refuses.
        """
        for shard in self._open.values():
            shard.close()
        self._open.clear()
        count, names, where = len(self._shards), [], {}
        for number, shard in enumerate(self._shards, start=1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            name = "model.safetensors" if count == 1 else name
            os.rename(shard.path, self._folder / name)
            names.append(name)
            where.update(dict.fromkeys(shard.entries, name))
        if count > 1:
            metadata = {"total_parameters": self.elements, "total_size": self.nbytes}
            index = {"metadata": metadata, "weight_map": dict(sorted(where.items()))}
            text = json.dumps(index, indent=2) + "\n"
            write_synced(self._folder / "model.safetensors.index.json", text.encode())
        return tuple(names)

    def abandon(self) -> None:
        """Close the files as they are."""
        for shard in self._open.values():
            shard.file.close()
        self._open.clear()

    def _next(self, dtype: torch.dtype, entry_size: int) -> _Shard:
        full = self._open.pop(dtype, None)
        if full is not None:
            full.close()
        path = self._folder / f"unfinished-{len(self._shards) + 1:05d}"
        room = max(self._room, -(-(entry_size + 512) // _ALIGNMENT) * _ALIGNMENT)
        shard = _Shard(path, path.open("xb"), room)
        shard.file.write(b"\0" * (8 + room))
        self._shards.append(shard)
        self._open[dtype] = shard
        return shard


@dataclass
class _Shard:
    path: Path
    file: BinaryIO
    room: int
    entries: dict[str, str] = field(default_factory=dict)
    header_size: int = len(_LEAD) + 1
    size: int = 0

    def has_room(self, name: str, data: torch.Tensor, size: int, max_bytes: int) -> bool:
        fits = self.header_size + _entry_size(name, data) <= self.room
        return fits and self.size + size <= max_bytes

    def write(self, name: str, data: torch.Tensor, size: int) -> None:
        entry = {
            "dtype": STORED_NAMES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [self.size, self.size + size],
        }
        self.entries[name] = f",{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}"
        self.header_size += len(self.entries[name].encode())
        self.size += size
        if size:
            self.file.write(data.reshape(-1).view(torch.uint8).numpy().data)

    def close(self) -> None:
        header = _LEAD + "".join(self.entries.values()).encode() + b"}"
        self.file.seek(0)
        self.file.write(struct.pack("<Q", self.room) + header.ljust(self.room))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def entry_room(names_and_dims: dict[str, int]) -> int:
    """Room for a header with these tensors (name → number of dimensions)."""
    return len(_LEAD) + 1 + sum(_room_of(name, dims) for name, dims in names_and_dims.items())


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that must not exist, down to the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _entry_size(name: str, data: torch.Tensor) -> int:
    return _room_of(name, data.dim())


def _room_of(name: str, dims: int) -> int:
    # Punctuation and keys take 48 bytes, a type's name at most 7, a number at most 16 digits.
    return len(json.dumps(name)) + 55 + 16 * (dims + 2)
