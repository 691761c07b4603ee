"""The climb along slopes: Adam on blocks of items, a leg of several steps at a time.

A step needs no more than the slope's direction, so each one is taken on a small block of items
(Robbins and Monro 1951), and the mean of the last steps stands for them (Polyak and Juditsky
1992). Genes have unlike scales and unlike effects, so each is stepped by its own slopes' size
(Adam: Kingma and Ba, arXiv 1412.6980, algorithm 1), in shares of its range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

STEP, HALVED = 0.1, 20
"""Of a gene whose slopes agree, as a share of its range: the first; after so many, half of it."""

_FIRST, _SECOND = 0.8, 0.95
"""What is kept of the moments at each slope (β1, β2): shorter than Adam's own 0.9 and 0.999, as the
whole climb is some dozens of slopes."""

FEWEST, MOST = 4, 16
"""Steps of a leg; between them one for each :data:`BLOCK` search items."""

BLOCK = 100

SLOPE_COST = 3
"""What a slope counts beside the scores of the same items: a pass forward, and one backward, which
takes about as long as two forward."""


@dataclass(frozen=True)
class Place:
    """Where a climb stands.

    Args:
        point: ``[genes]`` in shares of their ranges, each in [0, 1].
        first, second: ``[genes]`` the moments of the slopes per share (m, v).
        steps: that were taken to come here.
    """

    point: np.ndarray
    first: np.ndarray
    second: np.ndarray
    steps: int = 0

    @classmethod
    def start(cls, point: np.ndarray) -> Place:
        """The foot of a climb."""
        return cls(point, np.zeros_like(point), np.zeros_like(point))

    @classmethod
    def between(cls, places: Sequence[Place]) -> Place:
        """The mean of several, as far as the one that is furthest."""
        arrays = [[one.point, one.first, one.second] for one in places]
        point, first, second = np.mean(arrays, axis=0)
        return cls(point, first, second, max(one.steps for one in places))

    def stepped(self, slope: np.ndarray) -> Place:
        """The next place.

        Args:
            slope: ``[genes]`` here, of what is to rise, per share of the genes' ranges.
        """
        steps = self.steps + 1
        first = _FIRST * self.first + (1 - _FIRST) * slope
        second = _SECOND * self.second + (1 - _SECOND) * slope**2
        mean, scale = first / (1 - _FIRST**steps), np.sqrt(second / (1 - _SECOND**steps))
        # A gene that changes nothing stays where it is.
        way = np.divide(mean, scale, out=np.zeros_like(mean), where=scale > 0)
        length = STEP / (1 + self.steps / HALVED)
        return Place(np.clip(self.point + length * way, 0.0, 1.0), first, second, steps)

    def to_json(self) -> dict[str, Any]:
        return {
            "point": self.point.tolist(),
            "first": self.first.tolist(),
            "second": self.second.tolist(),
            "steps": self.steps,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Place:
        """The inverse of :meth:`to_json`."""
        point, first, second = (np.array(data[name]) for name in ("point", "first", "second"))
        return cls(point, first, second, int(data["steps"]))


@dataclass(frozen=True)
class Walk:
    """What came of a leg.

    Args:
        end: where it ended.
        mean: ``[genes]`` of the points to which its steps led, in shares of the ranges.
        smooth: the mean of the smooth fitness on its blocks, each where the step began.
        steps: how many.
    """

    end: Place
    mean: np.ndarray
    smooth: float
    steps: int

    @property
    def depth(self) -> float:
        """How many such legs, one after the other, lead to its end."""
        return self.end.steps / self.steps

    def to_json(self) -> dict[str, Any]:
        mean, end = self.mean.tolist(), self.end.to_json()
        return {"end": end, "mean": mean, "smooth": self.smooth, "steps": self.steps}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Walk:
        """The inverse of :meth:`to_json`."""
        mean = np.array(data["mean"], dtype=float)
        end = Place.from_json(data["end"])
        return cls(end, mean, float(data["smooth"]), int(data["steps"]))


class Slope(Protocol):
    """The smooth fitness on a block of items and its slope."""

    @property
    def value(self) -> float: ...

    @property
    def genes(self) -> Mapping[str, float]:
        """Gene → per unit of the gene; one that is absent has none."""
        ...


class Ground(Protocol):
    """What slopes are taken on."""

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """Gene → its bounds."""
        ...

    @property
    def blocks(self) -> int:
        """How many blocks of items there are."""
        ...

    def at(self, genome: Mapping[str, float], block: int) -> Slope:
        """The slope at a genome on a block."""
        ...


def steps_of_leg(items: int) -> int:
    """How many steps a leg has where a trial scores so many items.

    All its blocks together hold as many items as a trial scores.
    """
    return min(max(items // BLOCK, FEWEST), MOST)


def walk(ground: Ground, place: Place, steps: int, seed: Sequence[int]) -> Walk:
    """A leg from a place.

    Args:
        ground: of the slopes.
        place: where it begins.
        steps: how many; each on another block, as long as there are others.
        seed: of the choice of blocks.

    Raises:
        TrialError: a slope cannot be had.
    """
    low, high = np.array(list(ground.ranges.values())).T
    draw = np.random.default_rng(seed)
    order = [
        int(n) for _ in range(0, steps, ground.blocks) for n in draw.permutation(ground.blocks)
    ]
    points, values = [], []
    for block in order[:steps]:
        slope = ground.at(genome_at(ground.ranges, place.point), block)
        per_share = [slope.genes.get(name, 0.0) for name in ground.ranges] * (high - low)
        place = place.stepped(per_share)
        points.append(place.point)
        values.append(slope.value)
    return Walk(place, np.mean(points, axis=0), float(np.mean(values)), steps)


def genome_at(ranges: Mapping[str, tuple[float, float]], point: np.ndarray) -> dict[str, float]:
    """The genes' values at a point that is given in shares of their ranges."""
    return {
        # Rounding: 0.3 + 0.6 · 1 is above 0.9, which would be outside of the gene's bounds.
        name: float(np.clip(low + (high - low) * share, low, high))
        for (name, (low, high)), share in zip(ranges.items(), point, strict=True)
    }
