"""Faults of many steps, said at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evomerge.errors import Fault, TaskError


class Faults:
    """Gathers what is wrong, so that it is said at once."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def add(self, place: str, problem: str) -> None:
        """Keep a fault."""
        self.found.append(Fault(place, problem))

    def attempt(self, step: Callable[[], Any], place: str = "") -> Any:
        """The step's result, or ``None`` and its faults kept, placed under ``place``."""
        try:
            return step()
        except TaskError as error:
            for fault in error.faults:
                self.add(f"{place}: {fault.place}" if place else fault.place, fault.problem)
            return None

    def check(self) -> None:
        """Raise what was found.

        Raises:
            TaskError: if anything was.
        """
        if self.found:
            raise TaskError(dict.fromkeys(self.found))
