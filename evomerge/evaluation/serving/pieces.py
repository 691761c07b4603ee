"""Streams of named tensors, cut into pieces of bounded size that other processes can map."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PIECE_BYTES = 1 << 28
"""A piece holds so many bytes at most, or a single tensor that is larger."""

_ALIGNMENT = 64
_MEMORY = Path("/dev/shm")

Named = tuple[str, torch.Tensor]


def pieces(tensors: Iterable[Named], most: int = PIECE_BYTES) -> Iterator[list[Named]]:
    """The tensors in their order, several at a time.

    Args:
        tensors: names and values; taken one by one, as they are made.
        most: bytes of a piece.
    """
    piece: list[Named] = []
    held = 0
    for name, tensor in tensors:
        if piece and held + tensor.nbytes > most:
            yield piece
            piece, held = [], 0
        piece.append((name, tensor))
        held += tensor.nbytes
    if piece:
        yield piece


@contextmanager
def shared(piece: Iterable[Named]) -> Iterator[dict[str, Any]]:
    """A file in memory with the tensors, for the time of the context.

    Whoever maps it meanwhile keeps what he mapped. Gives its ``path`` and ``size``, and as
    ``tensors`` of each name, type, shape and first byte: plain data, to be sent.
    """
    named = list(piece)
    starts, end = [], 0
    for _, tensor in named:
        starts.append(end)
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    size = max(end, 1)
    handle, path = tempfile.mkstemp(prefix="evomerge-", dir=_folder(size))
    os.close(handle)
    try:
        held = torch.from_file(path, True, size, dtype=torch.uint8)
        for (_, tensor), start in zip(named, starts, strict=True):
            place = held[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor)
        told = [
            (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start)
            for (name, tensor), start in zip(named, starts, strict=True)
        ]
        yield {"path": path, "size": size, "tensors": told}
    finally:
        os.unlink(path)


def _folder(size: int) -> Path:
    """Memory where there is enough of it (a container may have little), else a disk's cache."""
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2 * size:
        return _MEMORY
    return Path(tempfile.gettempdir())
