"""Candidates of a search: recipes of one method, no two alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import yaml

from evomerge.recipe import METHODS
from tests.benchmarks.models import Family

Draw = Callable[[random.Random], Any]


def _gradient(low: float, high: float) -> Draw:
    """A value at the first and at the last layer: no two layers are alike either."""
    return lambda chance: [round(chance.uniform(low, high), 4) for _ in range(2)]


_PER_MODEL: dict[str, Draw] = {
    "weight": _gradient(0.2, 1.0),
    # With epsilon at most 0.2, every keep probability is within (0, 1).
    "density": _gradient(0.25, 0.75),
    "epsilon": _gradient(0.05, 0.2),
    "gamma": _gradient(0.005, 0.05),
}
_TOP: dict[str, Draw] = {
    "lambda": _gradient(0.7, 1.3),
    "t": _gradient(0.1, 0.9),
    "select_topk": _gradient(0.2, 0.8),
}
_PAIRS = {"slerp": 1, "nuslerp": 2}
"""Methods that take just so many models beside the base."""


def models_of(method: str, family: Family) -> int:
    """How many fine-tuned models a method's recipe reads."""
    return min(_PAIRS.get(method, len(family.tuned)), len(family.tuned))


def reads_base(method: str) -> bool:
    """Whether a method's recipe reads the base model."""
    return METHODS[method].needs_base


def candidate(family: Family, method: str, number: int, dtype: str = "float32") -> str:
    """A recipe that both programs read, its coefficients drawn by its number.

    Args:
        family: the models.
        method: a key of ``METHODS``.
        number: the candidate's, from 0.
        dtype: of mergekit's arithmetic (ours is float32); the result is bfloat16.
    """
    chance = random.Random(f"{method}/{number}")
    read = METHODS[method].parameters
    models = []
    for path in family.tuned[: models_of(method, family)]:
        own = {key: draw(chance) for key, draw in _PER_MODEL.items() if key in read}
        models.append({"model": str(path), **({"parameters": own} if own else {})})
    data: dict[str, Any] = {"merge_method": method, "models": models}
    if reads_base(method):
        data["base_model"] = str(family.base)
    top = {key: draw(chance) for key, draw in _TOP.items() if key in read}
    if top:
        data["parameters"] = top
    return yaml.safe_dump({**data, "dtype": dtype, "out_dtype": "bfloat16"}, sort_keys=False)
