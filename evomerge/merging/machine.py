"""A machine's memory: what is free of it, of a container and of accelerators, and its reuse."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

_UNLIMITED = 1 << 60
"""cgroups of version 1 say a number of this order where there is no limit."""

_MALLOPT = {-1: 64 << 20, -3: 32 << 20}
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes; no larger one is allowed of the latter.

A smaller one would make all blocks above it come from the system each time.
"""

_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that new data may take: what is available, within the container's limit.

    Pages of files that can be dropped count as free.

    Args:
        root: of the file system that holds ``proc`` and ``sys`` (for tests).

    Returns:
        A very large number where the system does not tell.
    """
    available = _UNLIMITED
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except OSError:
        return available
    for limit in (_cgroup_two(root), _cgroup_one(root)):
        if limit is not None:
            available = min(available, max(limit, 0))
    return available


@lru_cache(maxsize=1)
def reuse_freed_memory() -> None:
    """Have this process use again what it freed a moment ago; for good, up to 64 MB per thread.

    A pass on a CPU needs a few megabytes for each piece, again and again. Left alone, glibc may
    give them back to the system each time, whose empty pages then cost several times the pass's
    arithmetic. What the environment says of malloc is left as it is, and so is another C library.
    """
    if any(os.environ.get(name) for name in _USERS_OWN):
        return
    with suppress(OSError, AttributeError, TypeError):  # TypeError: Windows, which names no library
        for option, value in _MALLOPT.items():
            ctypes.CDLL(None).mallopt(option, value)


def free_device_memory(devices: list[torch.device]) -> tuple[int, ...]:
    """Bytes free on each of the accelerators."""
    return tuple(torch.cuda.mem_get_info(device)[0] for device in devices)


def total_device_memory() -> tuple[int, ...]:
    """Bytes of each accelerator that this process sees; touches none of them."""
    count = torch.cuda.device_count()
    return tuple(torch.cuda.get_device_properties(one).total_memory for one in range(count))


def _cgroup_two(root: Path) -> int | None:
    """The tightest of the limits on the process's group and those above it, less what is used."""
    base = root / "sys/fs/cgroup"
    try:
        own = (root / "proc/self/cgroup").read_text().split("::", 1)[1].splitlines()[0]
    except (OSError, IndexError):
        own = "/"
    folder, left = base / own.lstrip("/"), []
    while folder.is_relative_to(base):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            cached = _stat(folder / "memory.stat", "inactive_file")
            left.append(limit - max(used - cached, 0))
        folder = folder.parent
    return min(left) if left else None


def _cgroup_one(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup/memory"
    limit = _number(folder / "memory.limit_in_bytes")
    used = _number(folder / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= _UNLIMITED:
        return None
    return limit - max(used - _stat(folder / "memory.stat", "total_inactive_file"), 0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _stat(path: Path, key: str) -> int:
    try:
        found = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(words[1]) for words in found if words and words[0] == key), 0)
