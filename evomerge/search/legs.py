"""What the trials of a study say of its climbs, which are made of legs (``climbing``).

Nothing else remembers a climb: a study that is resumed goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.search.climbing import Place, Walk
from evomerge.search.seeded import BASELINE, CLIMBED, ERROR, KIND, LEG, WALK, arrival, minimised

DEPTH = 10
"""A climb is so many legs, one after the other."""

SCOUT = 3
"""Where the last of so many legs begins it shows whether a climb leads to a good place."""

SURE = 2.0
"""By so many standard errors a climb that does is ahead of the best baseline by then: as if they
were unpaired, which is about three of the paired difference."""

LEGS = 40
"""A climb has so many legs at most: workers climb side by side, and some may fail."""

LAST = 8
"""The mean of the legs that hold the last so many steps stands for a climb."""

VAIN = 2
"""After so many legs in a row that came to nothing, no further one is begun: the first may have
failed by chance."""

ASTRAY = 4
"""After so many legs in a row that begin where floors are broken, a climb is over."""

CLIMB = "climb"
"""Which climb a leg belongs to, from 0."""


@dataclass(frozen=True)
class Climb:
    """What the trials of a study say of a climb.

    Args:
        number: which one, from 0.
        walks: of the legs that are finished, in the order of arrival.
        begun: how many legs were.
        running: how many of them are not finished.
        vain: how many of the last finished ones, one after the other, came to nothing.
        scouted: the trial of the last of its first legs; None before.
        top: the trial of its mean, once that was drawn; another one where the first has failed.
        strayed: whether it has left the floors behind, which slopes do not know.
    """

    number: int
    walks: list[Walk]
    begun: int
    running: int
    vain: int
    scouted: Any
    top: Any
    strayed: bool

    @classmethod
    def of(cls, number: int, trials: Sequence[Any]) -> Climb:
        legs = [one for one in trials if one.user_attrs.get(LEG, {}).get(CLIMB) == number]
        finished = [one for one in legs if one.state.is_finished()]
        walked = sorted((one for one in finished if WALK in one.user_attrs), key=arrival)
        walks = [Walk.from_json(one.user_attrs[WALK]) for one in walked]
        last = max(map(arrival, walked), default=None)
        failed = [one for one in finished if WALK not in one.user_attrs]
        vain = sum(last is None or arrival(one) > last for one in failed)
        top = _top([one for one in trials if one.user_attrs.get(CLIMBED) == number])
        running = len(legs) - len(finished)
        deep = (one for one, way in zip(walked, walks, strict=True) if way.depth >= SCOUT)
        scouted = next(deep, None)
        astray = _strayed(trials, finished)
        return cls(number, walks, len(legs), running, vain, scouted, top, astray)

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


def _top(drawn: Sequence[Any]) -> Any:
    """The trial of a climb's mean: failed ones are tried again, but not without end."""
    alive = [one for one in drawn if one.state.name != "FAIL"]
    if alive or len(drawn) < VAIN:
        return next(iter(alive), None)
    return drawn[-1]


def succeeds(climb: Climb, best: Any) -> bool:
    """Whether a climb is surely ahead of the best baseline, a trial: the other one can wait."""
    trial = climb.scouted
    if trial is None or best is None or breaks(trial):
        return False
    errors = [one.user_attrs.get(ERROR) for one in (trial, best)]
    if None in errors:
        return False
    return minimised(best) - minimised(trial) > SURE * math.hypot(*errors)


def promise(climb: Climb) -> tuple[bool, float, int]:
    """Sorts climbs: first those that are over, whose means are to be scored, then the fitter."""
    known = climb.scouted is not None
    return not climb.over, minimised(climb.scouted) if known else np.inf, climb.number


def _strayed(trials: Sequence[Any], legs: Sequence[Any]) -> bool:
    """Whether so many legs in a row began where floors are broken, none of them the best till
    then by what it lacks: a climb that only crosses such ground comes back sooner."""
    known = [one for one in trials if one.values and one.user_attrs.get(KIND) == BASELINE]
    best, astray = min(map(minimised, known), default=np.inf), 0
    for leg in sorted((one for one in legs if one.values), key=arrival):
        value = minimised(leg)
        astray = astray + 1 if breaks(leg) and value >= best else 0
        best = min(best, value)
        if astray >= ASTRAY:
            return True
    return False


def breaks(trial: Any) -> bool:
    """Whether a trial breaks a floor."""
    return any(lack > 0 for lack in trial.constraints.values())
