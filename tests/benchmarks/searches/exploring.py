"""Searches on the landscapes: the truth of what each would have shipped."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product

import numpy as np
import optuna

from evomerge.search.cmaes_sampler import CmaEsSampler
from tests.benchmarks.searches.competitors import EVOLVE, SIGMA, sampled, search
from tests.benchmarks.searches.ground import Step, shipped
from tests.benchmarks.searches.landscapes import ITEMS, KINDS, Landscape

OURS: Mapping[str, float] = {"cmaes": 0.25, "cmaes, sigma 1/6": SIGMA}
"""Our CMA-ES from the middle, with its own first sigma and with the others'."""

MEAN = "{}: its mean"
"""What is shipped is the mean of the distribution instead of the fittest."""

OTHERS = (EVOLVE, "optuna-cmaes", "optuna-tpe", "optuna-random")

Truths = dict[tuple[str, int], float]


def explore(
    kind: str, genes: int, budgets: Sequence[int], seed: int, others: Sequence[str] = OTHERS
) -> Truths:
    """(competitor, budget) → p of what it ships after so many full trials."""
    landscape = Landscape(kind, genes, seed)
    truths: Truths = {}
    for name, sigma in OURS.items():
        truths |= _ours(name, sigma, landscape, budgets, seed)
    for name in others:
        steps = search(name, landscape, seed, max(budgets))
        truths |= _fittest(name, landscape, steps, budgets)
    return truths


def _ours(
    name: str, sigma: float, landscape: Landscape, budgets: Sequence[int], seed: int
) -> Truths:
    middle = dict.fromkeys(landscape.genes, 0.5)
    sampler = CmaEsSampler(landscape.genes, middle, sigma=sigma, seed=seed)
    truths: Truths = {}

    def watch(study: optuna.Study, trials: int) -> None:
        mean = sampler.mean(study) if trials in budgets else None
        if mean is not None:
            truths[MEAN.format(name), trials] = _truth(landscape, landscape.recipe(mean))

    steps = sampled(sampler, landscape, max(budgets), watch)
    return _fittest(name, landscape, steps, budgets) | truths


def _fittest(
    name: str, landscape: Landscape, steps: Sequence[Step], budgets: Sequence[int]
) -> Truths:
    truths: Truths = {}
    for budget in budgets:
        best = shipped(steps, budget * landscape.items)
        assert best is not None
        truths[name, budget] = _truth(landscape, best.recipe)
    return truths


def _truth(landscape: Landscape, recipe: str) -> float:
    return float(landscape.truth(np.array(json.loads(recipe))))


def compare(
    genes: Sequence[int],
    repetitions: int,
    budgets: Sequence[int],
    jobs: int,
    others: Sequence[str] = OTHERS,
) -> Iterator[str]:
    """The table in Markdown, a part for each landscape and number of genes.

    Args:
        genes: their numbers, multiples of four.
        repetitions: seeds, from 0.
        budgets: full trials.
        jobs: processes; with one, all is done in this process.
        others: which of :data:`OTHERS`.
    """
    if jobs == 1:
        yield from _parts(genes, repetitions, budgets, others, map)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from _parts(genes, repetitions, budgets, others, pool.map)


def _parts(
    genes: Sequence[int],
    repetitions: int,
    budgets: Sequence[int],
    others: Sequence[str],
    each: Callable[..., Iterator[Truths]],
) -> Iterator[str]:
    for kind, number in product(KINDS, genes):
        found = list(
            each(partial(explore, kind, number, budgets, others=others), range(repetitions))
        )
        landscapes = [Landscape(kind, number, seed) for seed in range(repetitions)]
        start = np.mean([one.truth(np.full(number, 0.5)) for one in landscapes])
        yield f"\n## {kind}, {number} genes: p is {start:.4f} in the middle\n"
        yield from _table(found, budgets)


def _table(found: Sequence[Mapping[tuple[str, int], float]], budgets: Sequence[int]) -> list[str]:
    lines = ["| p of what is shipped | " + " | ".join(map(str, budgets)) + " |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for name in dict.fromkeys(name for name, _ in found[0]):
        cells = []
        for budget in budgets:
            values = [one[name, budget] for one in found]
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            cells.append(f"{np.mean(values):.4f} ± " + ("–" if error is None else f"{error:.4f}"))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def heading(repetitions: int) -> str:
    """What the table's figures are."""
    return (
        f"Mean ± standard error over {repetitions} repetitions, {ITEMS} search items; "
        "p is the expected accuracy on fresh items."
    )
