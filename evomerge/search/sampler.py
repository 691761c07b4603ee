"""The samplers that a space may name; all of them deterministic across restarts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler

from evomerge.search.ascent import AscentSampler
from evomerge.search.cmaes_sampler import CmaEsSampler
from evomerge.search.generations import ArrivalNSGAII, Generations
from evomerge.search.seeded import GeneSampler, RandomGenes, SeededSampler, ViewingSampler
from evomerge.space.genes import chooses_method

POPULATION = 20
"""Results per generation of NSGA-II, where nobody says otherwise."""


def make_sampler(
    kind: str,
    distributions: Mapping[str, FloatDistribution],
    start: Mapping[str, float],
    *,
    seed: int,
    sigma: float = 0.25,
    population: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> GeneSampler:
    """The sampler that a space names.

    Args:
        kind: ``cmaes``, ``ascent`` (``cmaes`` where every gene chooses a method), ``tpe``, ``gp``,
            ``random`` or ``nsga2``.
        distributions: the genes, by name.
        start: where CMA-ES starts while no baseline that has a genome is finished.
        seed: of the study.
        sigma: CMA-ES's first standard deviation as a share of a gene's range.
        population: results per generation of ``cmaes``, ``ascent`` and ``nsga2``; None leaves it
            to them.
        settings: further ones of Optuna's class, by its names.

    Raises:
        ValueError: another name.
    """
    further = dict(settings or {})
    # Nothing lies between two methods, so that no slope leads from one to another.
    flat = kind == "ascent" and all(map(chooses_method, distributions))
    if kind == "cmaes" or flat:
        return CmaEsSampler(distributions, start, sigma=sigma, seed=seed, population=population)
    if kind == "ascent":
        return AscentSampler(distributions, start, sigma=sigma, seed=seed, population=population)
    if kind == "random":
        return RandomGenes(distributions, seed=seed)
    if kind == "tpe":
        jointly = further.get("multivariate", True)
        make = partial(_tpe, further)
        return SeededSampler(distributions, make, seed=seed, jointly=jointly)
    if kind == "gp":
        return ViewingSampler(distributions, partial(_gp, further), seed=seed)
    if kind == "nsga2":
        generations = Generations(distributions, population or POPULATION)
        return SeededSampler(distributions, partial(_nsga2, generations, further), seed=seed)
    raise ValueError(f"{kind!r} is no sampler; allowed: cmaes, ascent, tpe, gp, random, nsga2")


def _tpe(settings: Mapping[str, Any], seed: int) -> BaseSampler:
    # constant_liar: running trials count as bad ones, so that workers do not crowd one spot.
    usual = {"multivariate": True, "constant_liar": True, "n_startup_trials": 10}
    return TPESampler(seed=seed, **{**usual, **settings})


def _gp(settings: Mapping[str, Any], seed: int) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False, **settings)


def _nsga2(generations: Generations, settings: Mapping[str, Any], seed: int) -> BaseSampler:
    return ArrivalNSGAII(generations, seed=seed, **settings)
