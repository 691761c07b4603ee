"""Ascent along slopes: the start of a search, where the fitness has a slope.

Every trial of the ascent asks for the slope of the smooth fitness where it stands. Genes have
unlike scales and unlike effects, so each is stepped by its own slopes' size (Adam: Kingma and Ba,
arXiv 1412.6980, algorithm 1), in shares of its range. Whether steps are too long is told by the
smooth fitness, which hardly knows luck: right or wrong stands still while it rises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.search.cmaes import Replay, Solution
from evomerge.search.sampler import CmaEsSampler
from evomerge.search.seeded import (
    ASKS_SLOPE,
    BASELINE,
    KIND,
    SLOPE,
    SMOOTH,
    TOLD,
    GeneSampler,
    minimised,
)

STEP, SHORTEST = 0.1, 0.02
"""Of a gene whose slopes agree, as a share of its range: at first; and where the ascent is over."""

PATIENCE, GAIN = 4, 0.01
"""After so many slopes without a gain, steps are halved; a gain is more than this share of what was
climbed so far."""

ASTRAY = 2 * PATIENCE
"""After so many slopes in a row at points that break floors, the ascent is over."""

SIGMA = 0.05
"""CMA-ES's first standard deviation after the ascent, as a share of a gene's range."""

_FIRST, _SECOND = 0.8, 0.95
"""What is kept of the moments at each slope (β1, β2): shorter than Adam's own 0.9 and 0.999, as
the whole ascent is some twenty slopes, which have no noise of their own."""


@dataclass(frozen=True)
class Visit:
    """A point that was scored and whose slope is known.

    Args:
        point: ``[genes]`` in shares of the genes' ranges.
        fitness: its smooth fitness.
        slope: ``[genes]`` of the smooth fitness, per share.
    """

    point: np.ndarray
    fitness: float
    slope: np.ndarray


@dataclass(frozen=True)
class Heading:
    """Where the ascent stands, and where it goes.

    Args:
        point: ``[genes]`` in [0, 1]: where the next step begins.
        way: ``[genes]`` the step that is meant.
        step: the length that it is made of.
    """

    point: np.ndarray
    way: np.ndarray
    step: float

    @property
    def over(self) -> bool:
        """Whether it has stopped rising, however short the steps were."""
        return self.step < SHORTEST

    def beside(self, place: int) -> np.ndarray:
        """The point that the worker in this place tries.

        The first takes the step as it is meant; others, while its result is not in, a share of it
        between 0 and 2, no two the same one.
        """
        return np.clip(self.point + 2 * _radical_inverse(place + 1) * self.way, 0.0, 1.0)


def heading(start: np.ndarray, visits: Sequence[Visit]) -> Heading:
    """The ascent's state: a function of its start and of what was seen since, in that order.

    Args:
        start: ``[genes]`` in [0, 1].
        visits: in the order in which they became known.
    """
    point, step, best, low, waited = start, STEP, -np.inf, np.inf, 0
    first = second = np.zeros_like(start)
    top = start
    for visit in visits:
        point, waited = visit.point, waited + 1
        first = _FIRST * first + (1 - _FIRST) * visit.slope
        second = _SECOND * second + (1 - _SECOND) * visit.slope**2
        low = min(low, visit.fitness)
        if visit.fitness > best + GAIN * max(best - low, 0.0):
            best, top, waited = visit.fitness, visit.point, 0
        elif waited == PATIENCE:
            point, step, waited = top, step / 2, 0
    if not visits:
        return Heading(start, np.zeros_like(start), step)
    count = len(visits)
    mean, scale = first / (1 - _FIRST**count), np.sqrt(second / (1 - _SECOND**count))
    # A gene that changes nothing stays where it is.
    way = np.divide(mean, scale, out=np.zeros_like(mean), where=scale > 0)
    return Heading(point, step * way, step)


def _radical_inverse(number: int) -> float:
    """The binary digits of a number behind the point, in reverse: 1/2, 1/4, 3/4, 1/8, 5/8 …"""
    value, digit = 0.0, 0.5
    while number:
        value, number, digit = value + digit * (number & 1), number >> 1, digit / 2
    return value


@dataclass(frozen=True)
class _Seen:
    """What the finished trials of a study say.

    Args:
        start: ``[genes]`` the best baseline.
        best: ``[genes]`` the best point of baselines and ascent: where CMA-ES goes on.
        visits: of the ascent.
        drawn: solutions of CMA-ES after it, in the order of arrival.
        flat: whether a slope was asked for in vain.
        strayed: whether the ascent has left the floors behind, which slopes do not know.
        last: the largest number of a successful trial; -1 for none.
    """

    start: np.ndarray
    best: np.ndarray
    visits: list[Visit]
    drawn: list[Solution]
    flat: bool
    strayed: bool
    last: int


class AscentSampler(GeneSampler):
    """Climbs along slopes from the best baseline, then hands over to CMA-ES.

    The first trial asks for the slope at the best baseline. When nothing is gained, CMA-ES
    goes on from the best point with small steps, and so it does when the ascent has only broken
    floors for a while; where no slope can be had, it begins at once, as it would have without an
    ascent. The state is a function of the finished trials.

    Args:
        distributions, start, sigma, seed, population: as for :class:`CmaEsSampler`.
    """

    def __init__(
        self,
        distributions: Mapping[str, Any],
        start: Mapping[str, float],
        *,
        sigma: float,
        seed: int,
        population: int | None = None,
    ) -> None:
        super().__init__(distributions)
        self._plain = CmaEsSampler(
            distributions, start, sigma=sigma, seed=seed, population=population
        )
        self._names, self._seed = list(distributions), seed
        self._fallback = np.array([start[name] for name in self._names])
        self._low = np.array([one.low for one in distributions.values()])
        self._high = np.array([one.high for one in distributions.values()])
        self._replay = Replay(
            self._low, self._high, sigma=min(sigma, SIGMA), seed=seed, population=population
        )

    def sample_relative(
        self, study: Any, trial: Any, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        seen = self._look(study)
        if seen.flat:
            return self._plain.sample_relative(study, trial, search_space)
        way = heading(self._unit(seen.start), seen.visits)
        if way.over or seen.strayed:
            point = self._replay.ask(seen.best, seen.drawn, trial.number)
        else:
            point = self._scaled(self._next(way, seen, trial.number))
        return {name: float(value) for name, value in zip(self._names, point, strict=True)}

    def asks_slope(self, study: Any, number: int) -> bool:
        seen = self._look(study)
        return not seen.flat and not self._over(seen)

    def mean(self, study: Any) -> dict[str, float] | None:
        """CMA-ES's, once it has taken over."""
        seen = self._look(study)
        if seen.flat:
            return self._plain.mean(study)
        if not self._over(seen):
            return None
        mean = self._replay.mean(seen.best, seen.drawn)
        return {name: float(value) for name, value in zip(self._names, mean, strict=True)}

    def foresees(self, study: Any) -> bool:
        """Each slope changes the next step."""
        return self._look(study).flat and self._plain.foresees(study)

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return self._plain.sample_independent(study, trial, name, distribution)

    def _over(self, seen: _Seen) -> bool:
        return seen.strayed or heading(self._unit(seen.start), seen.visits).over

    def _next(self, way: Heading, seen: _Seen, number: int) -> np.ndarray:
        """The next point of the ascent, in [0, 1].

        Trials that are running or have failed stand between the last result and this one.
        """
        place = number - 1 - seen.last
        if seen.visits or place <= 0:
            return way.beside(max(place, 0))
        # Until the first slope is known, others look about the start.
        draw = np.random.default_rng(np.random.SeedSequence((self._seed, number)))
        return np.clip(way.point + STEP * draw.standard_normal(len(way.point)), 0.0, 1.0)

    def _look(self, study: Any) -> _Seen:
        done = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.values and all(name in trial.params for name in self._names)
        ]
        done.sort(key=lambda trial: (trial.user_attrs.get(TOLD, trial.number), trial.number))
        points = {t.number: np.array([t.params[name] for name in self._names]) for t in done}
        fixed = [t for t in done if t.user_attrs.get(KIND) == BASELINE]
        asked = [t for t in done if t.user_attrs.get(ASKS_SLOPE)]
        own = {t.number for t in (*fixed, *asked)}
        others = [t for t in done if t.number not in own]
        start, best = (_fittest(some, points, self._fallback) for some in (fixed, fixed + asked))
        visits = [
            Visit(self._unit(points[t.number]), t.user_attrs[SMOOTH], self._slope(t))
            for t in asked
            if SLOPE in t.user_attrs
        ]
        drawn = [(points[t.number], minimised(t)) for t in others]
        last = max((t.number for t in study.get_trials(deepcopy=False) if t.values), default=-1)
        flat, strayed = len(visits) < len(asked), _strayed(fixed, asked)
        return _Seen(start, best, visits, drawn, flat, strayed, last)

    def _slope(self, trial: Any) -> np.ndarray:
        """Per share of the genes' ranges."""
        slope = trial.user_attrs[SLOPE]
        per_unit = np.array([slope.get(name, 0.0) for name in self._names])
        return per_unit * (self._high - self._low)

    def _unit(self, point: np.ndarray) -> np.ndarray:
        return (point - self._low) / (self._high - self._low)

    def _scaled(self, unit: np.ndarray) -> np.ndarray:
        return np.clip(self._low + (self._high - self._low) * unit, self._low, self._high)


def _strayed(fixed: Sequence[Any], asked: Sequence[Any]) -> bool:
    """Whether so many visits in a row broke floors, none of them the best till then by what it
    lacks: a climb that only crosses such ground comes back sooner."""
    best, astray = min(map(minimised, fixed), default=np.inf), 0
    for trial in asked:
        value = minimised(trial)
        breaks = any(lack > 0 for lack in trial.constraints.values())
        astray = astray + 1 if breaks and value >= best else 0
        best = min(best, value)
        if astray >= ASTRAY:
            return True
    return False


def _fittest(
    trials: Sequence[Any], points: Mapping[int, np.ndarray], otherwise: np.ndarray
) -> np.ndarray:
    if not trials:
        return otherwise
    return points[min(trials, key=lambda one: (minimised(one), one.number)).number]
