"""Tensors that have to be computed before they can be mapped, computed once for a machine.

What is stored as it is used is mapped from its own file, and the system keeps one copy of that for
all processes. An adapter's sum is nowhere stored: the first process that needs it writes it to a
scratch file, under a lock, and all of them map that. Every user holds a shared lock; the last one
removes the file, and the next one to come removes what killed processes left.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from evomerge.checkpoints.shards import ShardWriter, entry_room
from evomerge.checkpoints.weights import WeightFiles
from evomerge.errors import CheckpointError, Fault

try:
    import fcntl
except ImportError:  # Windows: every process computes for itself.
    fcntl = None  # type: ignore[assignment]

CAN_SHARE = fcntl is not None
"""Whether this system has the locks that sharing needs."""

_PAUSE = 0.01  # seconds until it is tried again
_WHOLE = 1 << 62  # no limit to a file's size


class Shared:
    """Computed tensors, mapped from a scratch file that all processes of a user share.

    Args:
        files: what they are computed from; where one changes, the scratch file is another one.
        names: of the tensors.
        compute: makes one of them; called in one process only.
        how: what else decides their values.

    Raises:
        CheckpointError: there is no room for the scratch file.
    """

    def __init__(
        self,
        files: Iterable[Path],
        names: Iterable[str],
        compute: Callable[[str], torch.Tensor],
        how: str = "",
    ) -> None:
        self.names = tuple(names)
        root = scratch_folder()
        self._folder = root / _key(files, self.names, how)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if hasattr(os, "getuid") and root.stat().st_uid != os.getuid():
                raise OSError("it belongs to another user")
            sweep()
            self._lock = self._enter(compute)
        except OSError as problem:
            where = f"{root} (TMPDIR names another place)"
            fault = Fault(where, f"cannot hold the shared tensors: {problem.strerror or problem}")
            raise CheckpointError([fault]) from problem
        self._weights = WeightFiles(sorted(self._folder.glob("*.safetensors")))
        # At the latest when the process ends; a killed one gives the lock back.
        self._finish = weakref.finalize(self, _remove_if_unused, self._lock, self._folder)

    def view(self, name: str) -> torch.Tensor:
        """A tensor, mapped: not to be written to."""
        return self._weights.view(name)

    def close(self) -> None:
        """Use it no longer; the last one who does removes the file."""
        self._finish()

    def _enter(self, compute: Callable[[str], torch.Tensor]) -> int:
        """The shared lock of a file that is there."""
        while True:
            # Waits while somebody builds it; users hold this kind of lock for long.
            lock = _locked(self._folder, fcntl.LOCK_SH)
            if lock is not None and self._folder.is_dir():
                return lock
            if lock is not None:
                os.close(lock)
            lock = _locked(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock is None:
                time.sleep(_PAUSE)
                continue
            try:
                if not self._folder.is_dir():
                    self._build(compute)
                # Not in one step: who removes unused files may come between, then once more.
                fcntl.flock(lock, fcntl.LOCK_SH)
            except BaseException:
                _remove_if_unused(lock, self._folder)
                raise
            if self._folder.is_dir() and _is_current(lock, self._folder):
                return lock
            os.close(lock)

    def _build(self, compute: Callable[[str], torch.Tensor]) -> None:
        partial = self._folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        # Four dimensions are more than an adapter's tensors have.
        room = entry_room(dict.fromkeys(self.names, 4))
        writer = ShardWriter(partial, _WHOLE, room, durable=False)
        try:
            for name in self.names:
                writer.add(name, compute(name))
            writer.finish()
            os.rename(partial, self._folder)
        finally:
            writer.abandon()
            shutil.rmtree(partial, ignore_errors=True)


def scratch_folder() -> Path:
    """Where the scratch files are: this user's, in the folder for temporary files."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"evomerge-{user}"


def sweep() -> None:
    """Remove the scratch files that no process uses: of workers that were killed."""
    if fcntl is None:
        return
    for path in scratch_folder().glob("*.lock"):
        try:
            lock = os.open(path, os.O_RDWR)
        except OSError:
            continue  # removed meanwhile
        _remove_if_unused(lock, path.with_suffix(""))


def _key(files: Iterable[Path], names: tuple[str, ...], how: str) -> str:
    stats = [(str(path), path.stat()) for path in files]
    found = [[path, one.st_ino, one.st_size, one.st_mtime_ns] for path, one in stats]
    return hashlib.sha256(json.dumps([found, names, how]).encode()).hexdigest()[:32]


def _locked(folder: Path, how: int) -> int | None:
    """The lock of a scratch folder; None if it was removed meanwhile, or others have it."""
    lock = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, how)
    except BlockingIOError:
        os.close(lock)
        return None
    if _is_current(lock, folder):
        return lock
    os.close(lock)
    return None


def _is_current(lock: int, folder: Path) -> bool:
    """Whether the lock is still the one that others would open: it is removed with its folder."""
    try:
        return os.fstat(lock).st_ino == folder.with_suffix(".lock").stat().st_ino
    except OSError:
        return False


def _remove_if_unused(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)  # others use it
        return
    if _is_current(lock, folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder.with_suffix(".partial"), ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
    os.close(lock)
