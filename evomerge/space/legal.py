"""What makes every genome's recipe one that can be merged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from evomerge.space.methods import EPSILON
from evomerge.space.settings import Range

if TYPE_CHECKING:
    from evomerge.space.stage import Stage

MARGIN = 1e-9
"""How far density ± epsilon stays inside (0, 1): more than what rounding can do to a gradient."""

_NOTHING, _NUDGE = 1e-12, 1e-6
"""A sum of weights that may be 0 once it is rounded, and what is more than that."""

Knots = list[float]
"""A value for each layer group."""

Components = dict[str | None, Knots]
"""Filter (None: the rest) → a value for each layer group."""

Table = dict[str, dict[str | None, Components]]
"""parameter → label (None: all models share it) → component → a value for each layer group."""


def legal_epsilons(stage: Stage, table: Table) -> dict[str | None, Components]:
    """DELLA's half-widths: shares of what the densities leave room for, or cut down to that.

    0 < density − epsilon and density + epsilon < 1 are linear in the two, so that what holds at
    the knots of a gradient holds between them.
    """
    wanted = table.get("epsilon", {})
    share = stage.genome.epsilon is not None and stage.genome.epsilon.share

    def legal(density: float, epsilon: float) -> float:
        room = min(density, 1.0 - density)
        return max(0.0, min(epsilon * room if share else epsilon, room - MARGIN))

    return {
        label: {
            part: [
                legal(density, epsilon)
                for density, epsilon in zip(
                    densities,
                    wanted[label][part] if label in wanted else [EPSILON] * len(densities),
                    strict=True,
                )
            ]
            for part, densities in components.items()
        }
        for label, components in table["density"].items()
    }


def legal_gammas(stage: Stage, table: Table) -> dict[str | None, Components]:
    """Breadcrumbs' outliers: shares of what is not kept, or as they are (the merge lets them shrink
    where they conflict with the density)."""
    gammas = table["gamma"]
    if stage.genome.gamma is None or not stage.genome.gamma.share:
        return gammas
    densities = table.get("density", {})
    return {
        label: {
            part: [
                gamma * (1.0 - density)
                for gamma, density in zip(
                    knots,
                    densities[label][part] if label in densities else [1.0] * len(knots),
                    strict=True,
                )
            ]
            for part, knots in components.items()
        }
        for label, components in gammas.items()
    }


def keep_sums_from_zero(
    stage: Stage, weights: dict[str | None, Components], num_layers: int
) -> None:
    """Change weights where a normalized blend would divide by nothing: models whose weights are
    searched have equal ones there.

    A sampler that keeps to its bounds often ends on them, so that all weights are 0 is no rarity.
    Where negative weights cancel out between the knots of a gradient, the first knot gives way.
    """
    setting = stage.genome.weight
    searched = [label for label in weights if isinstance(setting.of(str(label)), Range)]
    for part, first in next(iter(weights.values())).items():
        for group in range(len(first)):
            if is_nothing(components[part][group] for components in weights.values()):
                for label in searched:
                    weights[label][part][group] = 1.0
        columns = [components[part] for components in weights.values()]
        while searched and stage.genome.layers.smooth and _cancels(columns, num_layers):
            weights[searched[0]][part][0] += _NUDGE


def _cancels(columns: Sequence[Knots], num_layers: int) -> bool:
    """Whether interpolated weights sum to nothing at some layer."""
    depths = (layer / max(num_layers - 1, 1) for layer in range(num_layers))
    return any(is_nothing(_at(knots, depth) for knots in columns) for depth in depths)


def _at(knots: Knots, depth: float) -> float:
    position = depth * (len(knots) - 1)
    low = min(int(position), max(len(knots) - 2, 0))
    high = min(low + 1, len(knots) - 1)
    return knots[low] + (position - low) * (knots[high] - knots[low])


def is_nothing(values: Iterable[float]) -> bool:
    """Whether weights sum to 0, so that a normalized blend would divide by nothing."""
    return abs(math.fsum(values)) < _NOTHING
