"""CMA-ES behind Optuna's interface, deterministic across restarts.

Why not Optuna's own ``CmaEsSampler`` (5.0), which is built on the same library: it (1) tells the
optimizer only results of the present generation, so that with W workers up to W − 1 results of each
generation are thrown away, (2) falls back to random draws for good once a trial without the genes
is finished, as a baseline outside the genome is, and (3) seeds each draw from a counter that starts
anew when a study is resumed. ``tests/search/test_sampler.py`` shows all three, and that this one
does none of them.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from evomerge.search.cmaes import Replay, Solution
from evomerge.search.seeded import BASELINE, KIND, TOLD, GeneSampler, minimised


class CmaEsSampler(GeneSampler):
    """CMA-ES started from the best baseline, fed by every result in the order of arrival.

    The state is recomputed from the study's finished trials, so nothing is lost or different after
    a restart. Failed trials tell the distribution nothing.

    Args:
        distributions: the genes, by name.
        start: the point to start from while no baseline that has a genome is finished.
        sigma: initial standard deviation as a share of a gene's range.
        seed: of the study.
        population: solutions per generation; None is 4 + ⌊3 ln n⌋.
    """

    def __init__(
        self,
        distributions: Mapping[str, FloatDistribution],
        start: Mapping[str, float],
        *,
        sigma: float,
        seed: int,
        population: int | None = None,
    ) -> None:
        super().__init__(distributions)
        self._names = list(distributions)
        self._fallback = np.array([start[name] for name in self._names])
        self._replay = Replay(
            np.array([distribution.low for distribution in distributions.values()]),
            np.array([distribution.high for distribution in distributions.values()]),
            sigma=sigma,
            seed=seed,
            population=population,
        )
        self._independent = RandomSampler(seed=seed)
        self._study: optuna.Study | None = None  # the one that was looked at last

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        self._look(study)
        point = self._replay.ask(self._start(), self._solutions, trial.number)
        return {name: float(value) for name, value in zip(self._names, point, strict=True)}

    def foresees(self, study: optuna.Study) -> bool:
        """Within a generation they change nothing, unless one is a baseline to start from."""
        trials = self._look(study)
        running = [trials[n] for n in self._open if trials[n].state == TrialState.RUNNING]
        if any(trial.user_attrs.get(KIND) == BASELINE for trial in running):
            return False
        told, population = len(self._solutions), self._replay.population
        return told // population == (told + len(running)) // population

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def mean(self, study: optuna.Study) -> dict[str, float] | None:
        """The mean of the present distribution, gene by gene."""
        self._look(study)
        mean = self._replay.mean(self._start(), self._solutions)
        return {name: float(value) for name, value in zip(self._names, mean, strict=True)}

    def solutions(self, study: optuna.Study) -> list[Solution]:
        """What was drawn and has a result (point, value to minimise), in the order of arrival."""
        self._look(study)
        return list(self._solutions)

    def _start(self) -> np.ndarray:
        """The best baseline; the first of those that are equally fit."""
        if not self._baselines:
            return self._fallback
        return min(self._baselines.items(), key=lambda one: (one[1][1], one[0]))[1][0]

    def _look(self, study: optuna.Study) -> list[FrozenTrial]:
        """Take in what has come since the last look, however long the study is; all its trials."""
        if study is not self._study:
            self._study, self._seen = study, 0
            self._open: list[int] = []
            self._arrived: list[tuple[int, int]] = []
            self._solutions: list[Solution] = []
            self._baselines: dict[int, Solution] = {}
        trials = study.get_trials(deepcopy=False)
        before, self._open = self._open, []
        for number in (*before, *range(self._seen, len(trials))):
            if not trials[number].state.is_finished():
                self._open.append(number)
            elif trials[number].state == TrialState.COMPLETE:
                self._take(trials[number])
        self._seen = len(trials)
        return trials

    def _take(self, trial: FrozenTrial) -> None:
        params, attributes = trial.params, trial.user_attrs
        if not all(name in params for name in self._names):
            return
        point = np.array([params[name] for name in self._names])
        solution = (point, minimised(trial))
        if attributes.get(KIND) == BASELINE:
            self._baselines[trial.number] = solution
            return
        place = (int(attributes.get(TOLD, trial.number)), trial.number)
        at = bisect(self._arrived, place)
        self._arrived.insert(at, place)
        self._solutions.insert(at, solution)
