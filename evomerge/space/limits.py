"""Floors of tasks: what a task's metric has to keep to."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from evomerge.documents import shown

BASE_MODEL, BEST_MODEL = "base", "best"
"""What a limit may be relative to: the base model, the best fine-tuned model in that task."""

_FORM = re.compile(r"(base|best)(?:\s*([+-])\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))?")
_ALLOWED = "a number; base or best (the best fine-tuned model in this task), with + or - a number"


@dataclass(frozen=True)
class Limit:
    """A value that a metric has to reach, or must not go beyond.

    Args:
        offset: the limit itself, or what is added to the model's value; in the metric's unit.
        of: ``base`` or ``best``; None is an absolute limit.
    """

    offset: float
    of: str | None = None

    @classmethod
    def parse(cls, value: Any) -> Limit:
        """``0.5``, ``base``, ``base - 0.02``, ``best + 0.01``.

        Raises:
            ValueError: it is nothing of that.
        """
        if isinstance(value, cls):
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and math.isfinite(value):
            return cls(float(value))
        found = _FORM.fullmatch(value.strip()) if isinstance(value, str) else None
        offset = 0.0 if found is None else float(f"{found[2] or ''}{found[3] or 0}")
        if found is None or not math.isfinite(offset):
            raise ValueError(f"{shown(value)} is refused: allowed: {_ALLOWED}, such as base - 0.02")
        return cls(offset, found[1])

    def as_data(self) -> float | str:
        """As it is written in YAML; ``parse`` reads it back to the same limit."""
        if self.of is None:
            return self.offset
        if self.offset == 0:
            return self.of
        return f"{self.of} {'-' if self.offset < 0 else '+'} {abs(self.offset)!r}"

    def __str__(self) -> str:
        data = self.as_data()
        return data if isinstance(data, str) else f"{data:g}"


LimitSetting = Annotated[
    Limit, PlainValidator(Limit.parse), PlainSerializer(lambda limit: limit.as_data())
]
