"""One driver per study, wherever the storage is.

The folder's lock keeps drivers on one machine's folder apart. A storage elsewhere may be reached
from other folders and machines, so a driver leaves its name and a sign of life in the study.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

from evomerge.errors import Fault, StudyError
from evomerge.search.storage import StudyStore

DRIVER = "driver"
BEAT = 15.0
"""Seconds between two signs of life."""

SILENCE = 90.0
"""Seconds of silence after which a driver on another machine counts as dead."""


class Ownership:
    """The claim of this process on a study.

    Args:
        store: the study.

    Raises:
        StudyError: another driver that shows signs of life has it.
    """

    def __init__(self, store: StudyStore) -> None:
        check_free(store)
        self._store = store
        self._last = 0.0
        self.beat()

    def beat(self) -> None:
        """Leave a sign of life, if the last one is old."""
        if time.monotonic() - self._last < BEAT:
            return
        sign = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        self._store.remember(**{DRIVER: sign})
        self._last = time.monotonic()

    def release(self) -> None:
        """Let another driver have the study."""
        # What went wrong with the storage was said already; the claim grows old by itself.
        with contextlib.suppress(StudyError):
            self._store.remember(**{DRIVER: None})


def check_free(store: StudyStore) -> None:
    """Refuse a study that another driver is searching.

    Raises:
        StudyError: names the driver.
    """
    holder = store.facts.get(DRIVER)
    if holder and _alive(holder):
        who = f"process {holder['process']} on {holder['host']}"
        problem = f"is being searched already, by {who}, in {store.url}"
        raise StudyError([Fault(f"study {store.name}", problem)])


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return time.time() - float(holder["time"]) < SILENCE
    if holder["process"] == os.getpid():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # Process numbers are used again: a silent holder is some other program by now.
    return time.time() - float(holder["time"]) < SILENCE
