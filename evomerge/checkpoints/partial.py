"""A folder that is not there until it is whole."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed processes stay until somebody deletes them.
    fcntl = None  # type: ignore[assignment]

_MARK = ".unfinished"


@dataclass
class PartialFolder:
    """A hidden folder beside its target, on the same file system, locked while it is written.

    Args:
        path: the hidden folder.
        lock: its open descriptor, which holds the lock; None before it is made, and where there are
            no such locks.
    """

    path: Path
    lock: int | None

    @classmethod
    def beside(cls, target: Path) -> PartialFolder:
        """One that is still to be made; whatever goes wrong from then on, ``remove`` mends."""
        return cls(target.parent / f".{target.name}.{secrets.token_hex(4)}{_MARK}", None)

    def make(self, target: Path) -> None:
        """Make it, after removing what killed processes left for the same target.

        Raises:
            OSError: the file system refuses.
        """
        for left in target.parent.glob(f".{_escaped(target.name)}.*{_MARK}"):
            _remove_if_left(left)
        self.path.mkdir()
        self.lock = _locked(self.path)

    def become(self, target: Path) -> None:
        """Take the target's name, in one step; the target may be an empty folder.

        Raises:
            OSError: the file system refuses, or the target holds something.
        """
        if os.name == "nt" and target.is_dir():
            target.rmdir()
        os.rename(self.path, target)
        sync_folder(target.parent)
        self._unlock()

    def remove(self) -> None:
        """Delete it with all that it holds; a failure to do so hides no other error."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names down to the disk."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        # Some network file systems sync files but no folders.
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_if_left(path: Path) -> None:
    """Remove an unfinished folder whose writer is gone: a writer's lock ends with it."""
    descriptor = _locked(path)
    if descriptor is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
