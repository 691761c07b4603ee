"""SHA-256 of weight files, computed beside other work.

``hashlib`` lets other threads run while it works, so that a model card's sums need cost a command
nothing but an idle core. No sum outlives its process: a file that was changed without its size and
time showing it would keep its old name.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from evomerge.errors import CheckpointError, Fault

_BLOCK = 1 << 22  # what a processor's cache holds
_THREADS = 4  # more would only wait for the disk


class GivenUp(Exception):
    """A sum is not wanted any more."""


def sha256_of(files: Sequence[Path], stopped: threading.Event | None = None) -> str:
    """SHA-256 of the bytes of files, one after the other: 64 hexadecimal digits.

    Args:
        files: the files.
        stopped: looked at between two blocks.

    Raises:
        CheckpointError: a file cannot be read.
        GivenUp: ``stopped`` was set.
    """
    digest = hashlib.sha256()
    for path in files:
        for block in _blocks(path):
            if stopped is not None and stopped.is_set():
                raise GivenUp
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[memoryview]:
    """A file's bytes, each block to be used before the next is asked for."""
    room = memoryview(bytearray(_BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(room):
                yield room[:count]
    except OSError as problem:
        fault = Fault(str(path), f"cannot be read: {problem.strerror}")
        raise CheckpointError([fault]) from problem


class Fingerprints:
    """Sums that are computed in threads from when it is known that they will be wanted.

    A context: what is not finished at its end is given up. The threads yield to all others.
    """

    def __init__(self) -> None:
        self._tasks: dict[tuple[Path, ...], _Task] = {}
        self._slots = threading.BoundedSemaphore(min(_THREADS, os.cpu_count() or 1))
        self._stopped = threading.Event()

    def __enter__(self) -> Fingerprints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()

    def begin(self, files: Sequence[Path]) -> None:
        """Start on a model's files, unless that was done before."""
        key = tuple(files)
        if key not in self._tasks:
            self._tasks[key] = _Task(key, self._slots, self._stopped)

    def of(self, files: Sequence[Path]) -> str:
        """The sum of a model's files; waits for it.

        Raises:
            CheckpointError: a file cannot be read.
        """
        self.begin(files)
        return self._tasks[tuple(files)].result()


class _Task:
    def __init__(
        self, files: tuple[Path, ...], slots: threading.BoundedSemaphore, stopped: threading.Event
    ) -> None:
        self._sum: Future[str] = Future()
        # A daemon: a process that is asked to end does not wait for it.
        work = (files, slots, stopped)
        threading.Thread(target=self._run, args=work, daemon=True, name="fingerprint").start()

    def result(self) -> str:
        return self._sum.result()

    def _run(
        self, files: tuple[Path, ...], slots: threading.BoundedSemaphore, stopped: threading.Event
    ) -> None:
        _yield_to_others()
        with slots:
            try:
                self._sum.set_result(sha256_of(files, stopped))
            except BaseException as problem:
                self._sum.set_exception(problem)


def _yield_to_others() -> None:
    # On Linux priorities are of threads. Only what would be idle is to be used.
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            lower = os.getpriority(os.PRIO_PROCESS, thread) + 10
            os.setpriority(os.PRIO_PROCESS, thread, lower)
