"""What the TIES paper's own code decides over all of a model's tensors at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.references import ModelReference


@dataclass(frozen=True)
class Whole:
    """Thresholds over the flattened models.

    Args:
        limits: of each model, the smallest magnitude that its trim keeps.
        sign: that of most elements' sums: −1, 1, or 0 where as many have either; it stands where a
            sum of task vectors is 0.
    """

    limits: Mapping[ModelReference, float]
    sign: int = 0
