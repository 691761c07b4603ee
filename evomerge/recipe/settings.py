"""Parameter settings: one value, a gradient over layers, or either behind a filter.

mergekit's forms: ``0.5``; ``[0.0, 0.5, 1.0]`` (a gradient); ``{filter: mlp, value: …}``; or a list
of the latter, of which the first whose filter is part of the tensor's name holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.documents import KeyPath
from evomerge.recipe.ledger import Ledger, shown
from evomerge.recipe.methods import PER_MODEL, SHARED, SWITCHES

Value = bool | int | float

_TRUE = ("true", "yes", "on", "y", "t", "1")
_FALSE = ("false", "no", "off", "n", "f", "0")


@dataclass(frozen=True)
class Case:
    """Values for the tensors that a filter picks.

    Args:
        values: one value for all layers, or a gradient's knots, evenly spaced over the layers.
        filter: a part of a tensor's name, or None for every tensor.
    """

    values: tuple[Value, ...]
    filter: str | None

    def picks(self, tensor: str) -> bool:
        """Whether a tensor takes this case's values."""
        return self.filter is None or self.filter in tensor

    def at(self, t: float) -> Value:
        """The value at depth ``t`` in [0, 1]: numbers are interpolated, switches are stepped."""
        position = t * (len(self.values) - 1)
        low = int(position)
        if isinstance(self.values[0], bool):
            return self.values[low]
        high = min(low + 1, len(self.values) - 1)
        share = position - low
        return (1 - share) * float(self.values[low]) + share * float(self.values[high])


Setting = tuple[Case, ...]


@dataclass(frozen=True)
class Parameters:
    """The parameters of one level: of the recipe, a module, a slice or a model.

    Args:
        settings: parameter name → its cases, in the order of their precedence.
        places: parameter name → where it stands, for messages.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def at(self, name: str, tensor: str, t: float) -> Value | None:
        """A parameter's value for a tensor at depth ``t``; None if this level does not say."""
        for case in self.settings.get(name, ()):
            if case.picks(tensor):
                return case.at(t)
        return None

    @property
    def filtered(self) -> bool:
        """Whether some value holds for some tensors only."""
        cases = (case for setting in self.settings.values() for case in setting)
        return any(case.filter is not None for case in cases)

    def place(self, name: str) -> str:
        """Where a parameter stands, for messages."""
        return self.places.get(name, name)


def lookup(
    levels: Iterable[Parameters], name: str, tensor: str, t: float
) -> tuple[Value | None, str]:
    """A parameter's value and place at the first level that has one; (None, "") if none has.

    A level whose filters pick no part of the tensor's name leaves it to the next.
    """
    for level in levels:
        value = level.at(name, tensor, t)
        if value is not None:
            return value, level.place(name)
    return None, ""


def read_parameters(data: Any, path: KeyPath, ledger: Ledger) -> Parameters:
    """The ``parameters:`` of one level; ``data`` is None where there are none."""
    if data is None:
        return Parameters()
    settings: dict[str, Setting] = {}
    places: dict[str, str] = {}
    for name, value in ledger.mapping(data, path, (*PER_MODEL, *SHARED)).items():
        # A setting that is at fault stays, without cases, so as not to be called missing too.
        settings[name] = _read_setting(name, value, (*path, name), ledger)
        places[name] = ledger.place((*path, name))
    return Parameters(settings, places)


def _read_setting(name: str, data: Any, path: KeyPath, ledger: Ledger) -> Setting:
    if isinstance(data, Mapping):
        return _read_case(name, data, path, ledger)
    if not (isinstance(data, list | tuple) and any(isinstance(item, Mapping) for item in data)):
        values = _read_values(name, data, path, ledger)
        return (Case(values, None),) if values else ()
    cases: Setting = ()
    for index, item in enumerate(data):
        if cases and cases[-1].filter is None:
            ledger.note_at(
                ledger.place((*path, index)),
                "has no effect: the entry before it, which has no filter, picks every tensor",
            )
        cases += _read_case(name, item, (*path, index), ledger)
    return _live(cases)


def _live(cases: Setting) -> Setting:
    """The cases up to the first that picks everything; the ones behind it can never hold."""
    for index, case in enumerate(cases):
        if case.filter is None:
            return cases[: index + 1]
    return cases


def _read_case(name: str, data: Any, path: KeyPath, ledger: Ledger) -> Setting:
    found = ledger.mapping(data, path, ("filter", "value"))
    pattern = found.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        ledger.fault((*path, "filter"), f"{shown(pattern)} is refused: a string is expected")
        return ()
    if "value" not in found:
        if isinstance(data, Mapping):
            ledger.fault((*path, "value"), "is missing and required")
        return ()
    values = _read_values(name, found["value"], (*path, "value"), ledger)
    return (Case(values, None if pattern in (None, "*", "") else pattern),) if values else ()


def _read_values(name: str, data: Any, path: KeyPath, ledger: Ledger) -> tuple[Value, ...]:
    read = _read_switch if name in SWITCHES else _read_number
    if not isinstance(data, list | tuple):
        value = read(data, path, ledger)
        return () if value is None else (value,)
    if not data:
        ledger.fault(path, "[] is refused: a gradient has at least one value")
    values = [read(item, (*path, index), ledger) for index, item in enumerate(data)]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else ()


def _read_number(data: Any, path: KeyPath, ledger: Ledger) -> Value | None:
    """A finite number; ``"1e-3"`` is one, because PyYAML reads ``1e-3`` as a string."""
    value: Value | None = None
    if isinstance(data, str):
        try:
            value = float(data)
        except ValueError:
            value = None
    elif isinstance(data, int | float) and not isinstance(data, bool):
        value = data
    try:
        if value is not None and math.isfinite(float(value)):
            return value
    except OverflowError:
        pass
    ledger.fault(path, f"{shown(data)} is refused: a finite number is expected")
    return None


def _read_switch(data: Any, path: KeyPath, ledger: Ledger) -> Value | None:
    if isinstance(data, bool | int | float) and data in (0, 1):
        return bool(data)
    if isinstance(data, str) and data.lower() in (*_TRUE, *_FALSE):
        return data.lower() in _TRUE
    ledger.fault(path, f"{shown(data)} is refused: true or false is expected")
    return None
