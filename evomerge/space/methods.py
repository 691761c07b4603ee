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

PER_MODEL = ("weight", "density", "epsilon", "gamma", "trim")
"""Parameters that each fine-tuned model has its own values of."""

COMMON = ("lambda", "t", "select_topk")
"""Parameters that all models of a tensor share."""

PARAMETERS = (*PER_MODEL, *COMMON)
"""Parameters that can be genes, in the order of a genome."""

SWITCHES = ("normalize", "rescale", "nuslerp_flatten", "nuslerp_row_wise", "filter_wise")
"""Parameters that are true or false, and no genes."""

MERGEKIT, PAPER = "mergekit", "paper"

_SUM = ("weight", "normalize", "lambda")
_SPARSE = (*_SUM, "density", "rescale")


@dataclass(frozen=True)
class Method:
    """A merge method, as far as a space is concerned.

    Args:
        reads: the genome's keys that change this method's result.
        paper: those of the variant ``paper``; None where there is no such variant.
        base: a base model is ``required``, ``optional``, or ``blended``: one of the models.
        masks: the result depends on ``mask_seed``; of ``dare``, also on its ablations.
        least, most: how many models it merges, the base not counted; None is no limit.
    """

    reads: tuple[str, ...]
    paper: tuple[str, ...] | None = None
    base: str = "required"
    masks: str | None = None
    least: int = 0
    most: int | None = None

    @property
    def needs_base(self) -> bool:
        """Whether a base model is required."""
        return self.base == "required"

    @property
    def takes_base(self) -> bool:
        """Whether a base model, if there is one, is none of the models."""
        return self.base != "blended"

    @property
    def sparsifies(self) -> bool:
        """Whether it reads ``density``."""
        return "density" in self.reads

    @property
    def draws_masks(self) -> bool:
        """Whether its result depends on ``mask_seed``."""
        return self.masks is not None

    @property
    def widens(self) -> bool:
        """Whether it reads ``epsilon`` (DELLA)."""
        return "epsilon" in self.reads

    def reads_in(self, variant: str) -> tuple[str, ...]:
        """The keys that it reads in a variant, or in its only one."""
        return self.paper if variant == PAPER and self.paper is not None else self.reads

    def whole_in(self, variant: str) -> str | None:
        """The parameter of which a model has one value in all its tensors: TIES's own code trims
        the flattened model."""
        if self.reads_in(variant) == self.paper and "weight" not in self.paper:
            return "trim" if "trim" in self.paper else "density"
        return None


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "linear": Method(("weight", "normalize"), base="blended"),
        "task_arithmetic": Method(_SUM),
        "ties": Method(_SPARSE, ("lambda", "density")),
        "dare_linear": Method(_SPARSE, _SPARSE, masks="dare"),
        "dare_ties": Method(_SPARSE, ("lambda", "density", "rescale", "trim"), masks="dare"),
        "della": Method((*_SPARSE, "epsilon"), (*_SPARSE, "epsilon"), masks="della"),
        "della_linear": Method((*_SPARSE, "epsilon"), (*_SPARSE, "epsilon"), masks="della"),
        "breadcrumbs": Method((*_SPARSE, "gamma")),
        "breadcrumbs_ties": Method((*_SPARSE, "gamma")),
        "slerp": Method(("t",), least=1, most=1),
        "nuslerp": Method(
            ("weight", "nuslerp_flatten", "nuslerp_row_wise"), base="optional", least=2, most=2
        ),
        "model_stock": Method(("filter_wise",), least=2),
        "sce": Method(("select_topk",)),
    }
)
"""Every method that a search space may name."""


def method_problem(value: Any) -> str | None:
    """What is wrong with a merge method's name, or None."""
    have = ", ".join(METHODS)
    if not isinstance(value, str) or value not in METHODS:
        guess = near(value, METHODS) if isinstance(value, str) else ""
        return f"{shown(value)} is refused: {guess}allowed: {have}, or a list of them to search"
    return None


def names_of(methods: str | tuple[str, ...]) -> tuple[str, ...]:
    """The methods of a space that names one, or several to choose from."""
    return (methods,) if isinstance(methods, str) else methods


def field_of(key: str) -> str:
    """The field of a genome that YAML calls ``key``."""
    return "lambda_" if key == "lambda" else key
