"""Ascent along slopes: the start of a search, where the fitness has a slope.

Every trial of the ascent scores the point where it stands, and takes a leg of a climb from there
(``climbing``), at whose end the next one begins. There may be several tops. Where the first climb
is after a few legs not surely ahead of the best baseline, a second one is tried from another place,
and the fitter goes on first. When a climb is over, its last steps' mean is scored; after both
CMA-ES goes on from the fitter mean with small steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.search.climbing import STEP, Place, genome_at
from evomerge.search.cmaes import Replay, Solution
from evomerge.search.cmaes_sampler import CmaEsSampler
from evomerge.search.legs import CLIMB, SURE, Climb, breaks, promise, succeeds
from evomerge.search.seeded import (
    BASELINE,
    CLIMBED,
    ERROR,
    ESTIMATE,
    KIND,
    LEG,
    WALK,
    GeneSampler,
    arrival,
    minimised,
)
from evomerge.space.genes import chooses_method

CLIMBS = 2

APART = 0.2
"""Baselines lie apart that differ by so much of a gene's range in some gene."""

SIGMA = 0.05
"""CMA-ES's first standard deviation after the ascent, as a share of a gene's range."""


_PLAIN = "plain"
"""Marks what CMA-ES drew while slopes were asked for in vain: from the middle, with large steps."""


class AscentSampler(GeneSampler):
    """Climbs along slopes from the best baselines, then hands over to CMA-ES.

    Where no slope can be had, CMA-ES begins after two tries, as it would have without an ascent.
    The state is a function of the study's trials.

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
            mean = climb.mean if climb.over else None
            point = self._foot(study, climb, trial.number).point if mean is None else mean
            return genome_at(self._ranges, point)
        top, drawn = self._after(study)
        point = self._replay.ask(top, drawn, trial.number)
        return dict(zip(self._ranges, point.tolist(), strict=True))

    def climbs(self, study: Any) -> bool:
        climb = self._climb(study)
        if climb is None or climb.flat or (climb.over and climb.walks):
            return False
        legs = [one for one in study.get_trials(deepcopy=False) if LEG in one.user_attrs]
        # Where one was scored and no slope could be had, the next one will hardly cost any.
        walked = any(WALK in one.user_attrs for one in legs)
        return walked or not any(one.values for one in legs)

    def facts(self, study: Any, number: int) -> dict[str, Any]:
        """Of a trial that was just drawn: its leg, or which climb's mean it is."""
        climb = self._climb(study)
        if climb is None:
            return {}
        if climb.flat:
            return {_PLAIN: True}
        if climb.over and climb.walks:
            return {CLIMBED: climb.number}
        return {LEG: {CLIMB: climb.number, **self._foot(study, climb, number).to_json()}}

    def mean(self, study: Any) -> dict[str, float] | None:
        """Where the most promising climb stands whose mean was not drawn yet: that lags behind.
        CMA-ES's, once it has taken over."""
        climb = self._climb(study)
        if climb is not None and climb.flat:
            return self._plain.mean(study)
        if climb is not None:
            climbs = sorted(self._climbs(study), key=promise)
            known = [one for one in climbs if one.walks and one.top is None]
            return genome_at(self._ranges, known[0].place.point) if known else None
        mean = self._replay.mean(*self._after(study))
        return dict(zip(self._ranges, mean.tolist(), strict=True))

    def foresees(self, study: Any) -> bool:
        """Each leg changes where the next one begins."""
        climb = self._climb(study)
        return climb is not None and climb.flat and self._plain.foresees(study)

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return self._plain.sample_independent(study, trial, name, distribution)

    def _climb(self, study: Any) -> Climb | None:
        """The one that is going on, or fails; None when all are over and their means drawn."""
        climbs = self._climbs(study)
        if climbs[0].flat:
            return climbs[0]
        if climbs[0].top is None and succeeds(climbs[0], self._best_baseline(study)):
            return climbs[0]
        starts = len(self._starts(study))
        going = [
            one
            for one in climbs
            if one.top is None and not one.flat and (one.begun or one.number < starts)
        ]
        scouts = [one for one in going if not one.over and one.scouted is None]
        return next(iter(scouts or sorted(going, key=promise)), None)

    def _best_baseline(self, study: Any) -> Any:
        known = [one for one in study.get_trials(deepcopy=False) if one.values]
        baselines = [one for one in known if one.user_attrs.get(KIND) == BASELINE]
        return min(baselines, key=_fitness, default=None)

    def _climbs(self, study: Any) -> list[Climb]:
        trials = study.get_trials(deepcopy=False)
        return [Climb.of(number, trials) for number in range(CLIMBS)]

    def _foot(self, study: Any, climb: Climb, number: int) -> Place:
        """Where the leg of a trial begins."""
        if climb.walks:
            return climb.place
        start = self._starts(study)[climb.number]
        if climb.running:  # until the first leg is finished, others begin about the start
            draw = np.random.default_rng(np.random.SeedSequence((self._seed, number)))
            start = np.clip(start + STEP * draw.standard_normal(len(start)), 0.0, 1.0)
        return Place.start(start)

    def _starts(self, study: Any) -> list[np.ndarray]:
        """Where climbs begin, in shares: half way between the best baseline in the genome and the
        best of those that lie apart from it; then at the best itself (a guess, where what stopped
        it has no genome). By the best's methods: nothing lies between two methods, and no slope
        leads from one to another.

        A model alone is a bad start where signs are elected: the others are outvoted everywhere.
        """
        known = [one for one in self._scored(study) if one.user_attrs.get(KIND) == BASELINE]
        known.sort(key=_fitness)
        best = self._shares(known[0].params if known else self._fallback)
        places = [np.where(self._sloping, self._shares(one.params), best) for one in known]
        apart = [
            (one, place)
            for one, place in zip(known, places, strict=True)
            if float(np.abs(place - best).max(initial=0.0)) >= APART
        ]
        return [(best + _foremost(apart)) / 2, best] if apart else [best]

    def _shares(self, genome: Mapping[str, float]) -> np.ndarray:
        """A genome in shares of the genes' ranges."""
        return np.clip((self._values(genome) - self._low) / (self._high - self._low), 0.0, 1.0)

    def _after(self, study: Any) -> tuple[np.ndarray, list[Solution]]:
        """The fitter of the climbs' means, and what CMA-ES drew from it, in the order of arrival.

        Where both break floors, or none could be scored, it is the best of all that was known.
        """
        scored = self._scored(study)
        tops = [one for one in scored if CLIMBED in one.user_attrs]
        best = min(tops, key=_fitness, default=None)
        if best is None or breaks(best):
            before = [one for one in scored if one.user_attrs.get(KIND) == BASELINE]
            before += [one for one in scored if LEG in one.user_attrs]
            best = min([*tops, *before], key=_fitness, default=None)
        if best is None:
            top = self._low + (self._high - self._low) * self._starts(study)[0]
        else:
            top = self._values(best.params)
        own = [
            one
            for one in scored
            if one.user_attrs.get(KIND) != BASELINE
            and not {LEG, CLIMBED, _PLAIN} & one.user_attrs.keys()
        ]
        return top, [(self._values(one.params), minimised(one)) for one in own]

    def _scored(self, study: Any) -> list[Any]:
        """The trials that have a genome and a fitness, in the order of arrival."""
        done = [
            one
            for one in study.get_trials(deepcopy=False)
            if one.values and self._ranges.keys() <= one.params.keys()
        ]
        return sorted(done, key=arrival)

    def _values(self, genome: Mapping[str, float]) -> np.ndarray:
        return np.array([genome[name] for name in self._ranges])


def _foremost(ranked: Sequence[tuple[Any, np.ndarray]]) -> np.ndarray:
    """The first one's place; where its fitness is a guess, as it was stopped early, and not ahead
    of the first that was scored whole by two of that one's standard errors, that one's."""
    trial, place = ranked[0]
    if ESTIMATE not in trial.user_attrs:
        return place
    for whole, other in ranked:
        if ESTIMATE not in whole.user_attrs:
            error = whole.user_attrs.get(ERROR)
            ahead = minimised(whole) - minimised(trial)
            return place if error is not None and ahead > SURE * error else other
    return place


def _fitness(trial: Any) -> tuple[float, int]:
    """Sorts trials, the best first."""
    return minimised(trial), trial.number
