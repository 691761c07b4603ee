"""What of each merge method a search space can vary.

The recipe room has the whole table; a space only needs to know which keys make sense, so that it
can refuse the others before anything is loaded. ``tests/space`` holds the two tables together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from evomerge.documents import near, shown

EPSILON = 0.15
"""DELLA's half-width where a space names none (mergekit 0.1.5's default)."""

PARAMETERS = ("weight", "density", "epsilon", "lambda")
"""Parameters that can be genes, in the order of a genome."""


@dataclass(frozen=True)
class Method:
    """A merge method, as far as a space is concerned.

    Args:
        needs_base: it adds task vectors to a base model.
        sparsifies: it reads ``density`` and ``rescale``.
        draws_masks: its result depends on ``mask_seed``.
        widens: it reads ``epsilon`` (DELLA).
    """

    needs_base: bool
    sparsifies: bool = False
    draws_masks: bool = False
    widens: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The genome's keys that change this method's result."""
        names = ["weight", "normalize"]
        names += ["lambda"] if self.needs_base else []
        names += ["density", "rescale"] if self.sparsifies else []
        names += ["epsilon"] if self.widens else []
        return tuple(names)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "linear": Method(needs_base=False),
        "task_arithmetic": Method(needs_base=True),
        "ties": Method(needs_base=True, sparsifies=True),
        "dare_linear": Method(needs_base=True, sparsifies=True, draws_masks=True),
        "dare_ties": Method(needs_base=True, sparsifies=True, draws_masks=True),
        "della": Method(needs_base=True, sparsifies=True, draws_masks=True, widens=True),
        "della_linear": Method(needs_base=True, sparsifies=True, draws_masks=True, widens=True),
    }
)
"""Every method that a search space may name."""


def method_problem(value: Any) -> str | None:
    """What is wrong with a merge method's name, or None."""
    have = ", ".join(METHODS)
    if isinstance(value, list | tuple):
        return f"{shown(value)} is refused: write one method; searching several comes later"
    if not isinstance(value, str) or value not in METHODS:
        guess = near(value, METHODS) if isinstance(value, str) else ""
        return f"{shown(value)} is refused: {guess}allowed: {have}"
    return None
