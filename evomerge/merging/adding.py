"""Merges that do nothing but add task vectors, each times a number: which are, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.recipe import METHODS
from evomerge.recipe.layout import TensorMerge

Term = tuple[str, int]
"""A merged tensor, and the place of one of its contributions."""


def coefficients(specs: Sequence[TensorMerge]) -> dict[Term, float] | None:
    """What each task vector is multiplied by; None where some tensor is more than such a sum.

    Args:
        specs: of a recipe's tensors.
    """
    if not all(_adds(spec) for spec in specs):
        return None
    return {
        (spec.name, place): part.weight * spec.lambda_
        for spec in specs
        for place, part in enumerate(spec.contributions)
    }


def _adds(spec: TensorMerge) -> bool:
    if not spec.contributions:
        return True
    plain = METHODS[spec.method].consensus_of(spec.variant) == "sum" and spec.base is not None
    whole = all(part.density >= 1 and part.trim >= 1 for part in spec.contributions)
    return plain and whole and not spec.normalize
