"""What no merge can beat: reading its inputs once and writing its result once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from tests.benchmarks.shapes import BYTES

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAST, _MOST = 1 << 28, 1 << 30
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """How long an action takes, on the device's own clock."""
    if device.type == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        before.record()
        action()
        after.record()
        torch.cuda.synchronize(device)
        return before.elapsed_time(after) / 1000
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def bytes_moved(parameters: int, models_read: int) -> int:
    """Bytes of ``models_read`` bfloat16 models read once and of one written once."""
    return BYTES * parameters * (models_read + 1)


def limit_seconds(parameters: int, models_read: int, bandwidth: float) -> float:
    """The least seconds of a merge at a bandwidth in bytes per second, read or written."""
    return bytes_moved(parameters, models_read) / bandwidth


class CopyBandwidth:
    """Bytes per second that a copy of bfloat16 numbers reads and writes, with all threads.

    The buffers are larger than the caches (at most 1 GiB each: a virtual machine reports the whole
    socket's cache, which it does not have).

    Args:
        device: whose memory.
        nbytes: of each buffer, instead.
    """

    def __init__(self, device: torch.device, nbytes: int | None = None) -> None:
        self._device = device
        count = (nbytes or buffer_bytes(_cache_bytes())) // BYTES
        self._source = torch.ones(count, dtype=torch.bfloat16, device=device)
        self._target = torch.zeros(count, dtype=torch.bfloat16, device=device)
        self.measured: list[float] = []

    def measure(self) -> None:
        """One more copy."""
        took = seconds_of(lambda: self._target.copy_(self._source), self._device)
        self.measured.append(2 * BYTES * self._source.numel() / took)

    def median(self, since: int = 0) -> float:
        """The median of the copies measured, from the ``since``-th on."""
        return median(self.measured[since:])


def buffer_bytes(cache: int) -> int:
    """How large a buffer is that a cache of that many bytes does not hold, within bounds."""
    return min(max(2 * cache, _LEAST), _MOST)


def _cache_bytes() -> int:
    """The largest cache that the machine reports; 0 if it reports none."""
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    return max(
        (int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size[-1:] in _UNITS), default=0
    )
