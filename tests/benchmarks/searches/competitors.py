"""The other searches: Optuna's samplers as they come, and mergekit-evolve's optimizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import cma
import numpy as np
import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from tests.benchmarks.searches.ground import Scored, Step, Trace

SIGMA = 1 / 6
"""mergekit-evolve's default of ``--sigma0``."""

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "optuna-cmaes": lambda seed: CmaEsSampler(seed=seed),
    "optuna-tpe": lambda seed: TPESampler(seed=seed),
    "optuna-gp": lambda seed: GPSampler(seed=seed),
    "optuna-random": lambda seed: RandomSampler(seed=seed),
}
"""Their defaults; the optimum is looked for within the space's bounds."""

EVOLVE = "mergekit-evolve"

ANYTIME = (*SAMPLERS, EVOLVE)
"""Those whose run of 200 trials tells what shorter runs would have shipped."""


def search(name: str, ground: Scored, seed: int, trials: int) -> list[Step]:
    """Run one of :data:`ANYTIME` for so many full trials."""
    if name == EVOLVE:
        return evolve(ground, seed, trials)
    return sampled(SAMPLERS[name](seed), ground, trials)


def sampled(
    sampler: BaseSampler,
    ground: Scored,
    trials: int,
    watch: Callable[[optuna.Study, int], None] | None = None,
) -> list[Step]:
    """Ask and tell a sampler; ``watch`` is told of the study after each trial, and its number."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    genes, trace = dict(ground.genes), Trace(ground)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for number in range(1, trials + 1):
            trial = study.ask(genes)
            fitness = trace.score(ground.recipe(trial.params))
            failed = math.isnan(fitness)
            state = TrialState.FAIL if failed else TrialState.COMPLETE
            study.tell(trial, None if failed else fitness, state=state)
            if watch is not None:
                watch(study, number)
    return trace.steps


def evolve(ground: Scored, seed: int, trials: int) -> list[Step]:
    """pycma as mergekit-evolve calls it: its start, its sigma, whole generations.

    It stops by pycma's own rules too. A candidate that cannot be scored, at which the command would
    end, is told as the worst that there is.
    """
    trace, folded = Trace(ground), ground.folded

    def costs(numbers: list[np.ndarray]) -> list[float]:
        values = [trace.score(folded.recipe(one)) for one in numbers]
        return [math.inf if math.isnan(value) else -value for value in values]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cma.fmin2(
            None,
            parallel_objective=costs,
            x0=folded.start,
            sigma0=SIGMA,
            # Seed 0 is the clock to pycma.
            options={"maxfevals": trials, "seed": seed + 1, "verbose": -9, "verb_log": 0},
        )
    return trace.steps[:trials]
