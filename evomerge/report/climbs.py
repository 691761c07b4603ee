"""What a climb climbed, beside what is searched for: the smooth fitness stands for the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evomerge.search.climbing import Walk
from evomerge.search.records import TrialRecord

FEWEST = 5
"""Legs below which a correlation says nothing."""


@dataclass(frozen=True)
class Agreement:
    """The smooth fitness and the fitness along the climbs' legs.

    Args:
        legs: how many.
        smooth: the smooth fitness on the first leg's items, and on the last's of that climb which
            ended the fittest.
        fitness: where that climb's first and last leg began, on the search items.
        correlation: of both over all legs, by ranks (Spearman's), in [−1, 1]; None where it says
            nothing.
    """

    legs: int
    smooth: tuple[float, float]
    fitness: tuple[float, float]
    correlation: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def agreement(trials: Sequence[TrialRecord]) -> Agreement | None:
    """Of the legs that a study's trials walked; None where fewer than two did."""
    climbs: dict[int, list[tuple[float, float]]] = {}
    for trial in trials:
        if trial.leg is not None and trial.walk is not None and trial.fitness is not None:
            number = int(trial.leg["climb"])
            pair = Walk.from_json(trial.walk).smooth, float(trial.fitness)
            climbs.setdefault(number, []).append(pair)
    pairs = [pair for legs in climbs.values() for pair in legs]
    if len(pairs) < 2:
        return None
    best = max(climbs.values(), key=lambda legs: legs[-1][1])
    (smooth, fitness), last = best[0], best[-1]
    return Agreement(len(pairs), (smooth, last[0]), (fitness, last[1]), _by_ranks(pairs))


def _by_ranks(pairs: Sequence[tuple[float, float]]) -> float | None:
    import pandas

    ranks = pandas.DataFrame(pairs).rank()
    if len(pairs) < FEWEST or (ranks.nunique() < 2).any():
        return None
    return float(ranks[0].corr(ranks[1]))
