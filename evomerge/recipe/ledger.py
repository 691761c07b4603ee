"""Gathering what is wrong with a recipe, so that all of it is reported at once."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.documents import Document, KeyPath, key_name
from evomerge.errors import EvomergeWarning, Fault, RecipeError


class RecipeWarning(EvomergeWarning):
    """Something in a recipe has no effect; the merge goes on without it."""


class Ledger:
    """The faults and the notes of one recipe.

    Args:
        source: the document that is read (for lines), or a name to use in messages.
    """

    def __init__(self, source: Document | str) -> None:
        self._source = source
        self._faults: list[Fault] = []
        self._notes: list[Fault] = []

    @property
    def faults(self) -> list[Fault]:
        """What is wrong, from the top of the file to its end."""
        return sorted(self._faults, key=self._line)

    def _line(self, fault: Fault) -> int:
        if isinstance(self._source, str):
            return 0
        line, _, _ = fault.place.removeprefix(f"{self._source.file}:").partition(":")
        return int(line) if line.isdecimal() else 0

    def place(self, path: Iterable[str | int]) -> str:
        """Where a key stands, as messages say it."""
        if isinstance(self._source, Document):
            return self._source.place(path)
        name = key_name(path)
        return f"{self._source}: {name}" if name else self._source

    def fault(self, path: KeyPath, problem: str) -> None:
        """Something is wrong: the recipe will be refused."""
        self.fault_at(self.place(path), problem)

    def fault_at(self, place: str, problem: str) -> None:
        """Something is wrong at a place that is already in words; said once only."""
        fault = Fault(place, problem)
        if fault not in self._faults:
            self._faults.append(fault)

    def note_at(self, place: str, problem: str) -> None:
        """Something has no effect: a warning, once the recipe turns out to be sound."""
        note = Fault(place, problem)
        if note not in self._notes:
            self._notes.append(note)

    def finish(self) -> None:
        """Raise the faults if there are any, else warn of what has no effect.

        Raises:
            RecipeError: there are faults.
        """
        if self._faults:
            raise RecipeError(self.faults)
        for note in self._notes:
            warnings.warn(str(note), RecipeWarning, stacklevel=4)

    def mapping(self, data: Any, path: KeyPath, allowed: Iterable[str]) -> Mapping[str, Any]:
        """The keys of a mapping that are set (null is unset); faults for the unknown ones."""
        if not isinstance(data, Mapping):
            self.fault(path, f"{shown(data)} is refused: a mapping is expected")
            return {}
        names = tuple(allowed)
        for key in data:
            if key not in names:
                self.fault((*path, str(key)), unknown(str(key), names, "unknown key"))
        return {key: data[key] for key in data if key in names and data[key] is not None}

    def items(self, data: Any, path: KeyPath) -> list[Any]:
        """A list with something in it."""
        if isinstance(data, list | tuple) and data:
            return list(data)
        self.fault(path, f"{shown(data)} is refused: a list of at least one is expected")
        return []


def shown(value: Any) -> str:
    """A value in a message: short, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown(found: str, allowed: Iterable[str], what: str) -> str:
    """``unknown key; did you mean weight? Allowed: …``"""
    names = tuple(allowed)
    near = difflib.get_close_matches(found, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    return f"{what}{hint} allowed: {', '.join(names)}"
