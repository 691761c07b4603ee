"""What a climb climbed, beside what is searched for: the smooth fitness stands for the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evomerge.search.climbing import Walk
from evomerge.search.records import TrialRecord

FEWEST = 5
"""Legs below which a correlation says nothing."""


@dataclass(frozen=True)
class Agreement:
    """The smooth fitness and the fitness along the legs of the climb that ended the fittest.

    Args:
        legs: how many.
        smooth: the smooth fitness on the first leg's items, and on the last's.
        fitness: where the first and the last leg began, on the search items.
        correlation: of both over the legs, by ranks (Spearman's), in [−1, 1]; None where it says
            nothing.
    """

    legs: int
    smooth: tuple[float, float]
    fitness: tuple[float, float]
    correlation: float | None

    @property
    def disagree(self) -> bool:
        """Whether one falls where the other rises, beyond chance: the correlation's 95 % interval
        by Fisher's transform, with Fieller's variance for ranks (1.06 / (n − 3))."""
        if self.correlation is None:
            return False
        bound = min(max(self.correlation, -1 + 1e-12), 1 - 1e-12)
        return math.atanh(bound) < -1.96 * math.sqrt(1.06 / (self.legs - 3))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def agreement(trials: Sequence[TrialRecord]) -> Agreement | None:
    """Of the fittest climb with at least two legs that a study's trials walked; None without."""
    climbs: dict[int, list[tuple[float, float]]] = {}
    rank: dict[int, tuple[float, float]] = {}
    for trial in trials:
        if trial.leg is not None and trial.walk is not None and trial.fitness is not None:
            number = int(trial.leg["climb"])
            pair = Walk.from_json(trial.walk).smooth, float(trial.fitness)
            climbs.setdefault(number, []).append(pair)
            rank[number] = -trial.violation, float(trial.fitness)
    known = [number for number, legs in climbs.items() if len(legs) > 1]
    if not known:
        return None
    best = climbs[max(known, key=lambda number: rank[number])]
    (smooth, fitness), last = best[0], best[-1]
    return Agreement(len(best), (smooth, last[0]), (fitness, last[1]), _by_ranks(best))


def _by_ranks(pairs: Sequence[tuple[float, float]]) -> float | None:
    import pandas

    ranks = pandas.DataFrame(pairs).rank()
    if len(pairs) < FEWEST or (ranks.nunique() < 2).any():
        return None
    return float(ranks[0].corr(ranks[1]))
