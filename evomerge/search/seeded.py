"""Draws that hang on the finished trials, the seed and the trial's number alone.

Optuna's samplers keep generators and caches between draws; a study that is resumed would go on
otherwise than one that was not interrupted. Here each draw is made by a sampler of its own, seeded
for the trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.search.floors import ranked_value

KIND = "kind"
BASELINE = "baseline"
SEARCH = "search"
TOLD = "told"
LEG, WALK, CLIMBED, ERROR, ESTIMATE = "leg", "walk", "climbed", "error", "estimate"


class GeneSampler(BaseSampler):
    """Draws all the genes of a trial together; baselines bring their own values.

    Args:
        distributions: the genes, by name.
    """

    def __init__(self, distributions: Mapping[str, FloatDistribution]) -> None:
        self._distributions = dict(distributions)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {} if trial.user_attrs.get(KIND) == BASELINE else dict(self._distributions)

    def foresees(self, study: optuna.Study) -> bool:
        """Whether the next draw is the same whatever the running trials come to."""
        return False

    def climbs(self, study: optuna.Study) -> bool:
        """Whether the next draw takes a leg of a climb, which costs its slopes too."""
        return False

    def facts(self, study: optuna.Study, number: int) -> dict[str, Any]:
        """What is to be kept with a trial that was just drawn."""
        return {}

    def mean(self, study: optuna.Study) -> dict[str, float] | None:
        """The mean of the present distribution, or where a climb stands, gene by gene; None where
        there is neither."""
        return None


class RandomGenes(GeneSampler):
    """Uniform draws, each trial's from a generator of its own.

    Args:
        distributions: the genes, by name.
        seed: of the study.
    """

    def __init__(self, distributions: Mapping[str, FloatDistribution], *, seed: int) -> None:
        super().__init__(distributions)
        self._seed = seed

    def foresees(self, study: optuna.Study) -> bool:
        return True

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        gene = 1 + list(self._distributions).index(param_name)
        sampler = RandomSampler(seed=seed_of(self._seed, trial.number, gene))
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class SeededSampler(RandomGenes):
    """One of Optuna's samplers, made anew for each trial.

    Args:
        distributions: the genes, by name.
        make: builds the inner sampler from a seed.
        seed: of the study.
        jointly: whether the genes are drawn together, or each by itself.
    """

    def __init__(
        self,
        distributions: Mapping[str, FloatDistribution],
        make: Callable[[int], BaseSampler],
        *,
        seed: int,
        jointly: bool = True,
    ) -> None:
        super().__init__(distributions, seed=seed)
        self._make, self._jointly = make, jointly

    def foresees(self, study: optuna.Study) -> bool:
        return False

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space or not self._jointly:
            return {}
        return self._inner(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        inner = self._inner(trial, 1 + list(self._distributions).index(param_name))
        return inner.sample_independent(study, trial, param_name, param_distribution)

    def _inner(self, trial: FrozenTrial, stream: int = 0) -> BaseSampler:
        return self._make(seed_of(self._seed, trial.number, stream))


class ViewingSampler(SeededSampler):
    """The same for a sampler that cannot bear trials without a genome: it sees the others only.

    ``GPSampler`` (5.0) raises a KeyError at a baseline outside of the genome.
    """

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        genes: dict[str, BaseDistribution] = {**self._distributions}
        view = optuna.create_study(directions=study.directions, sampler=self._inner(trial))
        seen = with_genome(study, self._distributions, (TrialState.COMPLETE, TrialState.RUNNING))
        view.add_trials([self._stripped(one) for one in seen if one.number != trial.number])
        return view.ask(genes).params

    def _stripped(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial with its genes, values and constraints, and nothing else to be copied."""
        return create_trial(
            state=trial.state,
            values=trial.values,
            params=trial.params,
            distributions=dict(trial.distributions),
            constraints=trial.constraints or None,
        )


def minimised(trial: FrozenTrial) -> float:
    """A result of one goal as CMA-ES is told it: those that break a floor rank last."""
    return ranked_value(-float(trial.values[0]), trial.constraints)


def with_genome(
    study: optuna.Study, genes: Mapping[str, Any], states: tuple[TrialState, ...]
) -> list[FrozenTrial]:
    """The trials that have a genome: the finished by arrival, then the others."""
    trials = study.get_trials(deepcopy=False, states=states)
    return sorted((one for one in trials if genes.keys() <= one.params.keys()), key=arrival)


def arrival(trial: FrozenTrial) -> tuple[bool, int, int]:
    """Sorts trials by the order in which they finished, those that have not last."""
    running = not trial.state.is_finished()
    return running, int(trial.user_attrs.get(TOLD, trial.number)), trial.number


def seed_of(study: int, trial: int, stream: int) -> int:
    """The seed of one of a trial's generators."""
    return int(np.random.SeedSequence((study, trial, stream)).generate_state(1)[0])
