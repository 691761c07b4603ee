"""Searches on the landscapes: the truth of what each would have shipped."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product

import numpy as np

from evomerge.search.sampler import CmaEsSampler
from tests.benchmarks.searches.competitors import EVOLVE, sampled, search
from tests.benchmarks.searches.ground import Step, shipped
from tests.benchmarks.searches.landscapes import ITEMS, KINDS, Landscape

OURS, MEAN = "cmaes", "cmaes, its mean"
"""Our CMA-ES from the middle at its defaults: the fittest, and the mean of its distribution."""

OTHERS = (EVOLVE, "optuna-cmaes", "optuna-tpe", "optuna-random")

NAMES = (OURS, MEAN, *OTHERS)

Truths = dict[tuple[str, int], float]


def explore(kind: str, genes: int, budgets: Sequence[int], seed: int) -> Truths:
    """(competitor, budget) → p of what it ships after so many full trials."""
    landscape = Landscape(kind, genes, seed)
    truths, steps = _ours(landscape, budgets, seed)
    runs = {OURS: steps} | {name: search(name, landscape, seed, max(budgets)) for name in OTHERS}
    for (name, found), budget in product(runs.items(), budgets):
        best = shipped(found, budget * landscape.items)
        assert best is not None
        truths[name, budget] = _truth(landscape, best.recipe)
    return truths


def _ours(landscape: Landscape, budgets: Sequence[int], seed: int) -> tuple[Truths, list[Step]]:
    middle = dict.fromkeys(landscape.genes, 0.5)
    sampler = CmaEsSampler(landscape.genes, middle, sigma=0.25, seed=seed)
    means: Truths = {}

    def watch(study: object, trials: int) -> None:
        mean = sampler.mean(study) if trials in budgets else None
        if mean is not None:
            means[MEAN, trials] = _truth(landscape, landscape.recipe(mean))

    return means, sampled(sampler, landscape, max(budgets), watch)


def _truth(landscape: Landscape, recipe: str) -> float:
    return float(landscape.truth(np.array(json.loads(recipe))))


def compare(
    genes: Sequence[int], repetitions: int, budgets: Sequence[int], jobs: int
) -> Iterator[str]:
    """The table in Markdown, a part for each landscape and number of genes.

    Args:
        genes: their numbers, multiples of four.
        repetitions: seeds, from 0.
        budgets: full trials.
        jobs: processes; with one, all is done in this process.
    """
    if jobs == 1:
        yield from _parts(genes, repetitions, budgets, map)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from _parts(genes, repetitions, budgets, pool.map)


def _parts(
    genes: Sequence[int],
    repetitions: int,
    budgets: Sequence[int],
    each: Callable[..., Iterator[Truths]],
) -> Iterator[str]:
    for kind, number in product(KINDS, genes):
        found = list(each(partial(explore, kind, number, budgets), range(repetitions)))
        landscapes = [Landscape(kind, number, seed) for seed in range(repetitions)]
        start = np.mean([one.truth(np.full(number, 0.5)) for one in landscapes])
        yield f"\n## {kind}, {number} genes: p is {start:.4f} in the middle\n"
        yield from _table(found, budgets)


def _table(found: Sequence[Mapping[tuple[str, int], float]], budgets: Sequence[int]) -> list[str]:
    lines = ["| p of what is shipped | " + " | ".join(map(str, budgets)) + " |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for name in NAMES:
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
