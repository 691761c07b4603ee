"""How much of a difference between two trials may be noise, by what a study keeps of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def noise_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """The standard error of the difference of two fitnesses, as if unpaired.

    That is a bound for the paired difference, and needs no item scores. Tasks weigh alike here.

    Args:
        one, other: task → metric → [value, standard error].

    Returns:
        None where no standard error is known.
    """
    errors = [error for scores in (one, other) for error in _errors(scores)]
    if not errors:
        return None
    return math.sqrt(sum(error**2 for error in errors)) / max(len(other), 1)


def _errors(scores: Mapping[str, Any]) -> list[float]:
    """The largest standard error of each task's metrics."""
    found = []
    for metrics in scores.values():
        errors = [error for _, error in metrics.values() if error is not None]
        found += [max(errors)] if errors else []
    return found
