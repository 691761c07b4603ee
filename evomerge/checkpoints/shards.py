"""Safetensors files written tensor by tensor, so that no more than a few are held in memory.

The format: eight bytes (little endian) with the length of a JSON header, the header, the data. The
header stands before the data but is known after it; room is kept for it and filled up with the
spaces that the format allows.

A thread writes while the next tensor is made, and has the disk begin with what is written, so that
the sync at the end has little left to wait for.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evomerge.checkpoints.behind import Behind, begin_sync, write_at
from evomerge.checkpoints.dtypes import STORED_NAMES

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_LEAD = b'{"__metadata__":{"format":"pt"}'
_ALIGNMENT = 8
_PENDING = 1 << 28  # bytes that may wait for the disk; one tensor may exceed it
_STRETCH = 1 << 25  # bytes after which the disk is asked to begin


class ShardWriter:
    """Writes tensors, in the order in which they come, into files of limited size.

    Files hold one type each, because a tensor must start at a multiple of its element's size.

    Args:
        folder: an existing, empty folder.
        max_shard_bytes: no file's tensors exceed it, unless one tensor alone does.
        header_room: bytes kept for each header; a file that fills it up is closed.
        durable: bring the files down to the disk; without it a power cut may leave holes.
    """

    def __init__(
        self, folder: Path, max_shard_bytes: int, header_room: int, *, durable: bool = True
    ) -> None:
        self._folder = folder
        self._max_bytes = max_shard_bytes
        self._durable = durable
        self._room = -(-max(header_room, 512) // _ALIGNMENT) * _ALIGNMENT
        self._shards: list[_Shard] = []
        self._open: dict[torch.dtype, _Shard] = {}
        self._behind = Behind(_PENDING)
        self.nbytes = 0
        self.elements = 0
        self.elements_by_dtype: dict[torch.dtype, int] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Have one tensor written; it must keep its values until it is.

        Raises:
            OSError: the file system refuses this one or an earlier one.
            ValueError: the tensor's type has no name in the format.
        """
        if tensor.dtype not in STORED_NAMES:
            raise ValueError(f"{name}: {tensor.dtype} cannot be stored in safetensors")
        data = tensor.detach().to("cpu").contiguous()
        size = data.numel() * data.itemsize
        shard = self._open.get(tensor.dtype)
        if shard is None or not shard.has_room(name, data, size, self._max_bytes):
            shard = self._next(tensor.dtype, _entry_size(name, data))
        offset = shard.enter(name, data, size)
        self._behind.run(shard.write, data, offset, size=size)
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
            self._behind.run(shard.close)
        self._behind.wait()
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
        """Close the files as they are; after it nothing is written any more."""
        self._behind.stop()
        for shard in self._shards:
            shard.drop()
        self._open.clear()

    def _next(self, dtype: torch.dtype, entry_size: int) -> _Shard:
        full = self._open.pop(dtype, None)
        if full is not None:
            self._behind.run(full.close)
        path = self._folder / f"unfinished-{len(self._shards) + 1:05d}"
        room = max(self._room, -(-(entry_size + 512) // _ALIGNMENT) * _ALIGNMENT)
        shard = _Shard(path, os.open(path, _NEW, 0o666), room, self._durable)
        self._shards.append(shard)
        self._open[dtype] = shard
        return shard


@dataclass
class _Shard:
    path: Path
    file: int | None
    room: int
    durable: bool
    entries: dict[str, str] = field(default_factory=dict)
    header_size: int = len(_LEAD) + 1
    size: int = 0
    begun: int = 0

    def has_room(self, name: str, data: torch.Tensor, size: int, max_bytes: int) -> bool:
        fits = self.header_size + _entry_size(name, data) <= self.room
        return fits and self.size + size <= max_bytes

    def enter(self, name: str, data: torch.Tensor, size: int) -> int:
        """Keep a place for a tensor; gives its offset among the data."""
        offset = self.size
        entry = {
            "dtype": STORED_NAMES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [offset, offset + size],
        }
        self.entries[name] = f",{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}"
        self.header_size += len(self.entries[name].encode())
        self.size += size
        return offset

    def write(self, data: torch.Tensor, offset: int) -> None:
        file = self._descriptor()
        if data.numel():
            content = data.reshape(-1).view(torch.uint8).numpy().data
            end = write_at(file, content, 8 + self.room + offset)
            if self.durable and end - self.begun >= _STRETCH:
                begin_sync(file, self.begun, end - self.begun)
                self.begun = end

    def close(self) -> None:
        """Write the header, without which the file is none; bring all of it down to the disk."""
        header = _LEAD + "".join(self.entries.values()).encode() + b"}"
        lead = struct.pack("<Q", self.room) + header.ljust(self.room)
        file = self._descriptor()
        write_at(file, memoryview(lead), 0)
        if self.durable:
            os.fsync(file)
        self.drop()

    def drop(self) -> None:
        if self.file is not None:
            file, self.file = self.file, None
            os.close(file)

    def _descriptor(self) -> int:
        if self.file is None:
            raise ValueError(f"{self.path} is closed")
        return self.file


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
