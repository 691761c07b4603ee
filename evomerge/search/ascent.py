"""Ascent along slopes: the start of a search, where the fitness has a slope.

Every trial of the ascent scores the point where it stands, and takes a leg of the climb from there
(``climbing``), at whose end the next one begins. When the climb is over, its last steps' mean is
scored, and CMA-ES goes on from there with small steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.search.climbing import STEP, STEPS, Place, Walk, genome_at
from evomerge.search.cmaes import Replay, Solution
from evomerge.search.sampler import CmaEsSampler
from evomerge.search.seeded import BASELINE, CLIMBED, KIND, LEG, TOLD, WALK, GeneSampler

LEGS = 30
"""A climb has so many legs at most, however few steps each has led on: workers climb side by side,
and some may fail."""

LAST = 8
"""The mean of the legs that hold the last so many steps stands for the climb."""

SIGMA = 0.05
"""CMA-ES's first standard deviation after the ascent, as a share of a gene's range."""


@dataclass(frozen=True)
class _Climb:
    """What the trials of a study say of the climb.

    Args:
        walks: of the legs that are finished, in the order of arrival.
        begun: how many legs were.
        running: how many of them are not finished.
    """

    walks: list[Walk]
    begun: int
    running: int

    @property
    def flat(self) -> bool:
        """Whether slopes were asked for in vain."""
        return self.begun > self.running and not self.walks

    @property
    def over(self) -> bool:
        """Whether no further leg is begun."""
        return self.begun >= LEGS or any(one.end.steps >= STEPS for one in self.walks)

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
    """Climbs along slopes from the best baseline, then hands over to CMA-ES.

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
        self._seed, self._fallback = seed, start
        self._replay = Replay(
            self._low, self._high, sigma=min(sigma, SIGMA), seed=seed, population=population
        )

    def sample_relative(
        self, study: Any, trial: Any, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        climb = _climb(study)
        if climb.flat:
            return self._plain.sample_relative(study, trial, search_space)
        if not climb.over:
            return genome_at(self._ranges, self._foot(study, climb, trial.number).point)
        top, drawn = self._after(study)
        if top is None:
            return self.mean(study) or genome_at(self._ranges, self._start(study))
        point = self._replay.ask(self._values(top.params), drawn, trial.number)
        return dict(zip(self._ranges, point.tolist(), strict=True))

    def facts(self, study: Any, number: int) -> dict[str, Any]:
        """Of a trial that was just drawn: its leg, or that it is the climb's mean."""
        climb = _climb(study)
        if climb.flat:
            return {}
        if not climb.over:
            return {LEG: self._foot(study, climb, number).to_json()}
        return {CLIMBED: True} if self._after(study)[0] is None else {}

    def mean(self, study: Any) -> dict[str, float] | None:
        """Of the last steps of the climb; CMA-ES's, once it has taken over."""
        climb = _climb(study)
        if climb.flat:
            return self._plain.mean(study)
        top, drawn = self._after(study)
        if top is not None:
            mean = self._replay.mean(self._values(top.params), drawn)
            return dict(zip(self._ranges, mean.tolist(), strict=True))
        return None if climb.mean is None else genome_at(self._ranges, climb.mean)

    def foresees(self, study: Any) -> bool:
        """Each leg changes where the next one begins."""
        return _climb(study).flat and self._plain.foresees(study)

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return self._plain.sample_independent(study, trial, name, distribution)

    def _foot(self, study: Any, climb: _Climb, number: int) -> Place:
        """Where the leg of a trial begins."""
        if climb.walks:
            return climb.place
        start = self._start(study)
        if climb.running:  # until the first leg is finished, others begin about the start
            draw = np.random.default_rng(np.random.SeedSequence((self._seed, number)))
            start = np.clip(start + STEP * draw.standard_normal(len(start)), 0.0, 1.0)
        return Place.start(start)

    def _start(self, study: Any) -> np.ndarray:
        """The best baseline in the genome, in shares of the ranges."""
        known = [one for one in self._scored(study) if one.user_attrs.get(KIND) == BASELINE]
        best = min(known, key=lambda one: (-one.values[0], one.number), default=None)
        genome = self._fallback if best is None else best.params
        share: np.ndarray = (self._values(genome) - self._low) / (self._high - self._low)
        return np.clip(share, 0.0, 1.0)

    def _after(self, study: Any) -> tuple[Any | None, list[Solution]]:
        """The trial of the climb's mean, and what CMA-ES drew after it, in the order of arrival."""
        trials = study.get_trials(deepcopy=False)
        top = next((one for one in trials if one.user_attrs.get(CLIMBED)), None)
        own = [
            one
            for one in self._scored(study)
            if top is not None and one.number > top.number and LEG not in one.user_attrs
        ]
        return top, [(self._values(one.params), -float(one.values[0])) for one in own]

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


def _climb(study: Any) -> _Climb:
    legs = [one for one in study.get_trials(deepcopy=False) if LEG in one.user_attrs]
    finished = [one for one in legs if one.state.is_finished()]
    walked = sorted((one for one in finished if WALK in one.user_attrs), key=_arrival)
    walks = [Walk.from_json(one.user_attrs[WALK]) for one in walked]
    return _Climb(walks, len(legs), len(legs) - len(finished))


def _arrival(trial: Any) -> tuple[int, int]:
    return int(trial.user_attrs.get(TOLD, trial.number)), trial.number
