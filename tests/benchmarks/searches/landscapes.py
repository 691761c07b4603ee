"""Problems by formula: what the items of a search say is noisy as models' answers are, p is known.

Item i of a candidate x is right iff z(x) + σ·g_i(x) > b_i. The difficulty b_i ~ N(0, 1) is the same
for all candidates; g_i(x) = A_i cos(w_i·x) + B_i sin(w_i·x) with A_i, B_i ~ N(0, 1) is N(0, 1) at
every x and alike at neighbours (a random Fourier feature of a Gaussian kernel, Rahimi and Recht
2007). With z = Φ⁻¹(p)·√(1 + σ²) an item is right with probability p(x) over the draw of items: the
expected accuracy is p(x) exactly, candidates share most of their answers, and the fittest of many
on one set of items owes a part of that to luck.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
from optuna.distributions import FloatDistribution
from scipy.stats import norm, ortho_group

FLOOR, TOP = 0.3, 0.7
"""p far from every optimum, and at the best one."""

SIGMA = 0.5
"""σ: how much of an item hangs on the candidate besides its quality."""

LENGTH = 0.2
"""Root mean square distance per gene at which two candidates' g correlate by exp(-1/2)."""

ITEMS = 400

REACH = 0.17
"""Root mean square distance per gene of the optimum from the middle."""

Quality = Callable[[np.ndarray], np.ndarray]


class Landscape:
    """One landscape with one seed's optimum and search items, on genes in [0, 1].

    Args:
        kind: one of :data:`KINDS`.
        genes: how many.
        seed: of the optimum and the items.
        items: search items.
    """

    def __init__(self, kind: str, genes: int, seed: int, items: int = ITEMS) -> None:
        shape, draw = (np.random.default_rng((seed, list(KINDS).index(kind), n)) for n in (0, 1))
        self._names = [f"gene_{number}" for number in range(genes)]
        self._quality = KINDS[kind](shape, genes)
        self.items = items
        self._difficulty = draw.standard_normal(items)
        self._a, self._b = draw.standard_normal((2, items))
        self._w = draw.standard_normal((items, genes)) / (LENGTH * np.sqrt(genes))

    def truth(self, x: np.ndarray) -> np.ndarray:
        """p: expected accuracy on items never seen, shape ``[…]`` of ``[…, genes]``."""
        return FLOOR + (TOP - FLOOR) * self._quality(x)

    def right(self, x: np.ndarray) -> np.ndarray:
        """Which search items are answered right, shape ``[…, items]`` of ``[…, genes]``."""
        z = norm.ppf(self.truth(x)) * np.sqrt(1 + SIGMA**2)
        phase = x @ self._w.T
        g = self._a * np.cos(phase) + self._b * np.sin(phase)
        return z[..., None] + SIGMA * g > self._difficulty

    @cached_property
    def genes(self) -> Mapping[str, FloatDistribution]:
        return {name: FloatDistribution(0.0, 1.0) for name in self._names}

    @property
    def folded(self) -> Unfolded:
        return Unfolded(len(self._names))

    def recipe(self, genome: Mapping[str, float]) -> str:
        return json.dumps([genome[name] for name in self._names])

    def fitness(self, recipe: str) -> float:
        """Accuracy on the search items."""
        return float(self.right(np.array(json.loads(recipe))).mean())


class Unfolded:
    """The genome of mergekit-evolve's optimizer: from the middle, without bounds."""

    def __init__(self, genes: int) -> None:
        self.start = np.full(genes, 0.5)

    def recipe(self, numbers: np.ndarray) -> str:
        return json.dumps([float(number) for number in numbers])


def sphere(rng: np.random.Generator, genes: int) -> Quality:
    """Falls off alike in all directions."""
    optimum = _optimum(rng, genes)
    return lambda x: _peak(((x - optimum) ** 2).mean(-1), 0.15)


def ridge(rng: np.random.Generator, genes: int) -> Quality:
    """Rotated; curvatures from 1 to 100."""
    optimum = _optimum(rng, genes)
    axes = ortho_group.rvs(genes, random_state=rng)
    curvature = np.geomspace(1, 100, genes)
    curvature /= curvature.mean()
    return lambda x: _peak((((x - optimum) @ axes) ** 2 * curvature).mean(-1), 0.15)


def two_basins(rng: np.random.Generator, genes: int) -> Quality:
    """A wide basin, and opposite of it a narrower one that is better by a third."""
    optimum = _optimum(rng, genes)

    def quality(x: np.ndarray) -> np.ndarray:
        narrow = _peak(((x - optimum) ** 2).mean(-1), 0.15)
        wide = _peak(((x - (1 - optimum)) ** 2).mean(-1), 0.25)
        return np.maximum(narrow, 0.75 * wide)

    return quality


def layered(rng: np.random.Generator, genes: int) -> Quality:
    """Four models in each layer group: a part that all groups share, a part of each group's own.

    The groups weigh unequally, the heaviest eight times as much as the lightest.
    """
    models = 4
    groups = genes // models
    whole, own = _optimum(rng, models), _optimum(rng, genes).reshape(groups, models)
    optimum = (0.5 + ((whole - 0.5) + (own - 0.5)) / np.sqrt(2)).ravel()
    weights = np.repeat(rng.permutation(np.geomspace(1, 8, groups)), models)
    weights /= weights.mean()
    return lambda x: _peak(((x - optimum) ** 2 * weights).mean(-1), 0.15)


KINDS: Mapping[str, Callable[[np.random.Generator, int], Quality]] = {
    "sphere": sphere,
    "ridge": ridge,
    "two basins": two_basins,
    "layered": layered,
}


def _optimum(rng: np.random.Generator, genes: int) -> np.ndarray:
    """In a random direction, equally far from the middle for every seed (but for the bounds)."""
    direction = rng.standard_normal(genes)
    direction *= REACH / np.sqrt((direction**2).mean())
    return np.clip(0.5 + direction, 0.0, 1.0)


def _peak(distance: np.ndarray, width: float) -> np.ndarray:
    """1 at the optimum; ``distance`` is a mean square."""
    return np.exp(-distance / (2 * width**2))
