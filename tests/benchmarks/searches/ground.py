"""What a competitor searches on, and what it leaves behind: the same for models and for formulas.

One unit of cost is an item that is scored. A full trial scores all search items of one candidate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from optuna.distributions import FloatDistribution


class Folded(Protocol):
    """mergekit-evolve's genome: unbounded numbers, folded into a recipe."""

    @property
    def start(self) -> np.ndarray:
        """Where its optimizer begins, shape ``[numbers]``."""
        ...

    def recipe(self, numbers: np.ndarray) -> str:
        """The recipe that they stand for."""
        ...


@dataclass(frozen=True)
class Judged:
    """A recipe on the held-out items.

    Args:
        held_out: its fitness there.
        baseline: what it was compared with: the best baseline on the search items.
        baseline_held_out: that one's fitness there.
        difference, low, high: held-out difference to it with its 95 % interval, paired item by
            item.
    """

    held_out: float
    baseline: str
    baseline_held_out: float
    difference: float
    low: float
    high: float


class Scored(Protocol):
    """What a search sees of one problem with one seed's items."""

    @property
    def genes(self) -> Mapping[str, FloatDistribution]:
        """The genome and its bounds."""
        ...

    @property
    def items(self) -> int:
        """How many search items there are: the cost of a full trial."""
        ...

    @property
    def folded(self) -> Folded:
        """The genome that mergekit-evolve would search instead."""
        ...

    def recipe(self, genome: Mapping[str, float]) -> str:
        """What a genome stands for."""
        ...

    def fitness(self, recipe: str) -> float:
        """On the search items, to be maximised; NaN where the recipe cannot be scored."""
        ...


class Ground(Scored, Protocol):
    """The same with held-out items and something to compare with."""

    def judge(self, recipe: str) -> Judged:
        """On the held-out items, which no competitor sees."""
        ...

    def baselines(self) -> Mapping[str, str]:
        """What nobody searched for: name → recipe."""
        ...


@dataclass(frozen=True)
class Step:
    """One scored candidate of a search.

    Args:
        recipe: the candidate.
        fitness: on the search items; NaN if it failed.
        items: scored so far, this one's included.
        seconds: since the search began.
    """

    recipe: str
    fitness: float
    items: int
    seconds: float


class Trace:
    """The steps of a search that scores every candidate in full."""

    def __init__(self, ground: Scored) -> None:
        self._ground, self._began = ground, time.perf_counter()
        self.steps: list[Step] = []

    def score(self, recipe: str) -> float:
        """Score a candidate and note it."""
        fitness = self._ground.fitness(recipe)
        items = (len(self.steps) + 1) * self._ground.items
        self.steps.append(Step(recipe, fitness, items, time.perf_counter() - self._began))
        return fitness


def shipped(steps: Sequence[Step], items: int) -> Step | None:
    """What a search that stopped after so many items would ship: the fittest, the earlier of two.

    Its ``items`` and ``seconds`` are those of the last step within the limit. None where nothing
    was scored.
    """
    within = [step for step in steps if step.items <= items]
    fit = [step for step in within if not math.isnan(step.fitness)]
    if not fit:
        return None
    best = max(fit, key=lambda step: step.fitness)  # the first of those that are equal
    return Step(best.recipe, best.fitness, within[-1].items, within[-1].seconds)
