"""Faults of several steps, gathered to be raised together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from evomerge.errors import Fault, InputError


class Faults:
    """Gathers faults of several steps, so that they are raised together."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._error: type[InputError] = InputError

    def gather(self, step: Any, *arguments: Any) -> Any:
        """The step's result; None if it found faults, which are kept."""
        try:
            return step(*arguments)
        except InputError as problem:
            self.add(problem.faults, type(problem))
            return None

    def add(self, faults: Iterable[Fault], error: type[InputError]) -> None:
        """Keep faults, each once; ``error`` is what they are raised as if all are of one kind."""
        before = len(self.faults)
        self.faults.extend(fault for fault in faults if fault not in self.faults)
        if len(self.faults) > before:
            self._error = error if before == 0 or self._error is error else InputError

    def check(self) -> None:
        """Raise what was kept, if anything was.

        Raises:
            InputError: its subclass if all is of one kind.
        """
        if self.faults:
            raise self._error(self.faults)
