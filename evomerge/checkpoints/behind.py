"""Writing behind the back of the work that makes what is written."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

_WRITE_OUT = 2  # Linux: SYNC_FILE_RANGE_WRITE


class Behind:
    """Runs calls in order in one thread; none any more after one has failed.

    Args:
        room: how many bytes may wait in all; with more, the next call waits too.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0
        self._problem: BaseException | None = None

    def run(self, call: Callable[..., None], *arguments: Any, size: int = 0) -> None:
        """Have a call made.

        Raises:
            BaseException: what an earlier call raised; the later ones are given up.
        """
        self._collect(lambda: self._waiting[0][0].done())
        self._collect(lambda: self._bytes > 0 and self._bytes + size > self._room)
        self._waiting.append((self._pool.submit(self._call, call, arguments), size))
        self._bytes += size

    def wait(self) -> None:
        """Until all is done.

        Raises:
            BaseException: what a call raised.
        """
        self._collect(lambda: True)

    def stop(self) -> None:
        """Give up what has not begun, wait for what has."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()

    def _collect(self, wanted: Callable[[], bool]) -> None:
        while self._problem is None and self._waiting and wanted():
            future, size = self._waiting.popleft()
            self._bytes -= size
            future.result()
        if self._problem is not None:
            raise self._problem

    def _call(self, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._problem is not None:
            return  # it would write behind a gap
        try:
            call(*arguments)
        except BaseException as problem:
            self._problem = problem


def write_at(file: int, content: memoryview, offset: int) -> int:
    """Write all of ``content`` at ``offset``; gives the offset behind it.

    Raises:
        OSError: the file system refuses.
    """
    while content:
        if hasattr(os, "pwrite"):
            count = os.pwrite(file, content, offset)
        else:
            os.lseek(file, offset, os.SEEK_SET)
            count = os.write(file, content)
        content, offset = content[count:], offset + count
    return offset


def begin_sync(file: int, offset: int, count: int) -> None:
    """Ask the disk to begin with a range, and do not wait for it; a hint that may do nothing."""
    call = _sync_file_range()
    if call is not None:
        call(file, offset, count, _WRITE_OUT)


@lru_cache(maxsize=1)
def _sync_file_range() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is None:
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    call.restype = ctypes.c_int
    made: Callable[..., int] = call
    return made
