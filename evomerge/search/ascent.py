"""Ascent along slopes: the start of a search, where the fitness has a slope.

Every trial of the ascent scores the point where it stands, and takes a leg of the climb from there
(``climbing``), at whose end the next one begins. When a climb is over, its last steps' mean is
scored. A second climb begins elsewhere, as there may be several tops; then CMA-ES goes on from the
fitter mean with small steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.search.climbing import STEP, Place, Walk, genome_at
from evomerge.search.cmaes import Replay, Solution
from evomerge.search.sampler import CmaEsSampler
from evomerge.search.seeded import (
    BASELINE,
    CLIMBED,
    KIND,
    LEG,
    TOLD,
    WALK,
    GeneSampler,
    minimised,
)
from evomerge.space.genes import chooses_method

CLIMBS = 2

DEPTH = 10
"""A climb is so many legs, one after the other."""

LEGS = 40
"""A climb has so many legs at most: workers climb side by side, and some may fail."""

LAST = 8
"""The mean of the legs that hold the last so many steps stands for a climb."""

APART = 0.2
"""Baselines lie apart that differ by so much of a gene's range in some gene."""

VAIN = 2
"""After so many legs in a row that came to nothing, no further one is begun: the first may have
failed by chance."""

ASTRAY = 4
"""After so many legs in a row that begin where floors are broken, a climb is over."""

SIGMA = 0.05
"""CMA-ES's first standard deviation after the ascent, as a share of a gene's range."""

_CLIMB = "climb"
"""Which climb a leg belongs to, from 0."""


@dataclass(frozen=True)
class _Climb:
    """What the trials of a study say of a climb.

    Args:
        number: which one, from 0.
        walks: of the legs that are finished, in the order of arrival.
        begun: how many legs were.
        running: how many of them are not finished.
        vain: how many of the last finished ones, one after the other, came to nothing.
        top: the trial of its mean, once that was drawn.
        strayed: whether it has left the floors behind, which slopes do not know.
    """

    number: int
    walks: list[Walk]
    begun: int
    running: int
    vain: int
    top: Any
    strayed: bool

    @classmethod
    def of(cls, number: int, trials: Sequence[Any]) -> _Climb:
        legs = [one for one in trials if one.user_attrs.get(LEG, {}).get(_CLIMB) == number]
        finished = [one for one in legs if one.state.is_finished()]
        walked = sorted((one for one in finished if WALK in one.user_attrs), key=_arrival)
        walks = [Walk.from_json(one.user_attrs[WALK]) for one in walked]
        last = walked[-1].number if walked else -1
        vain = sum(WALK not in one.user_attrs for one in finished if one.number > last)
        top = next((one for one in trials if one.user_attrs.get(CLIMBED) == number), None)
        running = len(legs) - len(finished)
        return cls(number, walks, len(legs), running, vain, top, _strayed(trials, finished))

    @property
    def flat(self) -> bool:
        """Whether slopes were asked for in vain."""
        return self.vain >= VAIN and not self.walks

    @property
    def over(self) -> bool:
        """Whether no further leg is begun."""
        deep = any(one.depth >= DEPTH for one in self.walks)
        return deep or self.begun >= LEGS or self.vain >= VAIN or self.strayed

    @property
    def place(self) -> Place:
        """Where the next leg begins: at the mean of the last ends, as many as there are workers."""
        return Place.between([one.end for one in self.walks[-1 - self.running :]])

    @property
    def mean(self) -> np.ndarray | None:
        """``[genes]`` of the last steps, in shares of the ranges; None before the first."""
        last: list[np.ndarray] = []
        steps = 0
        for one in reversed(self.walks):
            if steps < LAST:
                last.append(one.mean)
                steps += one.steps
        return np.mean(last, axis=0) if last else None


class AscentSampler(GeneSampler):
    """Climbs along slopes from the best baselines, then hands over to CMA-ES.

    Where no slope can be had, CMA-ES begins at once, as it would have without an ascent. The state
    is a function of the study's trials.

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
        self._ranges = {name: (one.low, one.high) for name, one in distributions.items()}
        self._low, self._high = np.array(list(self._ranges.values())).T
        self._sloping = np.array([not chooses_method(name) for name in self._ranges])
        self._seed, self._fallback = seed, start
        self._replay = Replay(
            self._low, self._high, sigma=min(sigma, SIGMA), seed=seed, population=population
        )

    def sample_relative(
        self, study: Any, trial: Any, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        climb = self._climb(study)
        if climb is not None and climb.flat:
            return self._plain.sample_relative(study, trial, search_space)
        if climb is not None:
            foot = self._foot(study, climb, trial.number)
            return genome_at(self._ranges, foot.point if isinstance(foot, Place) else foot)
        top, drawn = self._after(study)
        point = self._replay.ask(top, drawn, trial.number)
        return dict(zip(self._ranges, point.tolist(), strict=True))

    def facts(self, study: Any, number: int) -> dict[str, Any]:
        """Of a trial that was just drawn: its leg, or which climb's mean it is."""
        climb = self._climb(study)
        if climb is None or climb.flat:
            return {}
        foot = self._foot(study, climb, number)
        if isinstance(foot, Place):
            return {LEG: {_CLIMB: climb.number, **foot.to_json()}}
        return {CLIMBED: climb.number}

    def mean(self, study: Any) -> dict[str, float] | None:
        """Of the last steps of a climb that is not over; CMA-ES's, once it has taken over."""
        climb = self._climb(study)
        if climb is not None and climb.flat:
            return self._plain.mean(study)
        if climb is not None:
            return None if climb.mean is None else genome_at(self._ranges, climb.mean)
        mean = self._replay.mean(*self._after(study))
        return dict(zip(self._ranges, mean.tolist(), strict=True))

    def foresees(self, study: Any) -> bool:
        """Each leg changes where the next one begins."""
        climb = self._climb(study)
        return climb is not None and climb.flat and self._plain.foresees(study)

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return self._plain.sample_independent(study, trial, name, distribution)

    def _climb(self, study: Any) -> _Climb | None:
        """The one that is going on, or fails; None when all are over and their means drawn."""
        trials = study.get_trials(deepcopy=False)
        for number in range(CLIMBS):
            climb = _Climb.of(number, trials)
            if climb.flat and number > 0:
                return None
            if climb.top is None and (climb.begun or len(self._starts(study)) > number):
                return climb
        return None

    def _foot(self, study: Any, climb: _Climb, number: int) -> Place | np.ndarray:
        """Where the leg of a trial begins; of a climb that is over, its mean, to be scored."""
        if climb.over and climb.mean is not None:
            return climb.mean
        if climb.walks:
            return climb.place
        start = self._starts(study)[climb.number]
        if climb.running:  # until the first leg is finished, others begin about the start
            draw = np.random.default_rng(np.random.SeedSequence((self._seed, number)))
            start = np.clip(start + STEP * draw.standard_normal(len(start)), 0.0, 1.0)
        return Place.start(start)

    def _starts(self, study: Any) -> list[np.ndarray]:
        """Where climbs begin, in shares: half way between the best baseline in the genome and the
        best of those that lie apart from it; then at the best itself. By the best's methods:
        nothing lies between two methods, and no slope leads from one to another.

        A model alone is a bad start where signs are elected: the others are outvoted everywhere.
        """
        known = [one for one in self._scored(study) if one.user_attrs.get(KIND) == BASELINE]
        genomes = [one.params for one in sorted(known, key=_fitness)] or [self._fallback]
        points = [
            np.clip((self._values(one) - self._low) / (self._high - self._low), 0.0, 1.0)
            for one in genomes
        ]
        best = points[0]
        points = [np.where(self._sloping, one, best) for one in points]
        apart = [one for one in points if float(np.abs(one - best).max(initial=0.0)) >= APART]
        return [(best + apart[0]) / 2, best] if apart else [best]

    def _after(self, study: Any) -> tuple[np.ndarray, list[Solution]]:
        """The fitter of the climbs' means, and what CMA-ES drew, in the order of arrival.

        Where both break floors it is the best of all that was known by then.
        """
        scored = self._scored(study)
        tops = [one for one in scored if CLIMBED in one.user_attrs]
        best = min(tops, key=_fitness, default=None)
        if best is not None and _breaks(best):
            before = [one for one in scored if one.user_attrs.get(KIND) == BASELINE]
            before += [one for one in scored if LEG in one.user_attrs]
            best = min([*tops, *before], key=_fitness)
        if best is None:
            top = self._low + (self._high - self._low) * self._starts(study)[0]
        else:
            top = self._values(best.params)
        own = [
            one
            for one in scored
            if one.user_attrs.get(KIND) != BASELINE and not {LEG, CLIMBED} & one.user_attrs.keys()
        ]
        return top, [(self._values(one.params), minimised(one)) for one in own]

    def _scored(self, study: Any) -> list[Any]:
        """The trials that have a genome and a fitness, in the order of arrival."""
        done = [
            one
            for one in study.get_trials(deepcopy=False)
            if one.values and self._ranges.keys() <= one.params.keys()
        ]
        return sorted(done, key=_arrival)

    def _values(self, genome: Mapping[str, float]) -> np.ndarray:
        return np.array([genome[name] for name in self._ranges])


def _strayed(trials: Sequence[Any], legs: Sequence[Any]) -> bool:
    """Whether so many legs in a row began where floors are broken, none of them the best till then
    by what it lacks: a climb that only crosses such ground comes back sooner."""
    known = [one for one in trials if one.values and one.user_attrs.get(KIND) == BASELINE]
    best, astray = min(map(minimised, known), default=np.inf), 0
    for leg in sorted((one for one in legs if one.values), key=_arrival):
        value = minimised(leg)
        astray = astray + 1 if _breaks(leg) and value >= best else 0
        best = min(best, value)
        if astray >= ASTRAY:
            return True
    return False


def _breaks(trial: Any) -> bool:
    """Whether a trial breaks a floor."""
    return any(lack > 0 for lack in trial.constraints.values())


def _fitness(trial: Any) -> tuple[float, int]:
    """Sorts trials, the best first."""
    return minimised(trial), trial.number


def _arrival(trial: Any) -> tuple[int, int]:
    return int(trial.user_attrs.get(TOLD, trial.number)), trial.number
