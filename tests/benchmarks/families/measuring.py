"""What there is to win in a family: baselines, uniform blends and long searches, held out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from evomerge import load_space
from evomerge.evaluation import fitness
from evomerge.search.baselines import decode
from evomerge.search.cmaes import Replay
from evomerge.search.pool import Job
from evomerge.search.preparation import prepare

SCALES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)


class Measured:
    """A family's space with its models loaded, on one core."""

    def __init__(self, file: Path) -> None:
        self.prepared = prepare(load_space(file))
        self.evaluator = replace(self.prepared.plan, threads=1)()

    def score(self, recipe: str, part: str) -> float:
        items = self.prepared.search_items if part == "search" else self.prepared.holdout_items
        assert items is not None
        scores = self.evaluator.run(Job(0, recipe, part)).scores
        assert scores is not None
        return fitness(scores, items.requests, plain_sum=self.prepared.space.plain_sum)

    def genome(self, values: Mapping[str, float]) -> str:
        return decode(self.prepared.space, values, self.prepared.num_layers)


def measure(file: Path, trials: int, seeds: int) -> None:
    """Print a table."""
    family = Measured(file)
    prepared = family.prepared
    rows = [(b.label, b.recipe) for b in prepared.baselines]
    for scale in SCALES:
        weights = dict.fromkeys(prepared.space.labels.values(), scale)
        genome = prepared.space.encode(prepared.num_layers, weights)
        if genome is not None:
            rows.append((f"uniform {scale:g}", family.genome(genome)))
    began = time.perf_counter()
    found = {name: (family.score(recipe, "search"), recipe) for name, recipe in rows}
    each = (time.perf_counter() - began) / len(rows)
    print(f"  {len(prepared.genes)} genes, {each * 1000:.0f} ms a trial")
    for name, (value, recipe) in found.items():
        print(f"  {name:14} {value:.4f} {family.score(recipe, 'holdout'):.4f}", flush=True)
    best = max(found.values())[1]
    start = next((b.genome for b in prepared.baselines if b.genome and b.recipe == best), None)
    for seed in range(seeds if trials else 0):
        value, held = _long(family, start, trials, seed)
        print(f"  CMA-ES, seed {seed}: {value:.4f} {held:.4f}", flush=True)


def _long(
    family: Measured, start: Mapping[str, float] | None, trials: int, seed: int
) -> tuple[float, float]:
    genes = family.prepared.genes
    low, high = (np.array([getattr(g, side) for g in genes]) for side in ("low", "high"))
    middle = low + 0.5 * (high - low)
    first = middle if start is None else np.array([start[g.name] for g in genes])
    replay = Replay(low, high, sigma=0.25, seed=seed)
    told: list[tuple[np.ndarray, float]] = []
    for draw in range(trials):
        point = replay.ask(first, told, draw)
        recipe = family.genome({g.name: float(v) for g, v in zip(genes, point, strict=True)})
        told.append((point, -family.score(recipe, "search")))
    point, value = min(told, key=lambda one: one[1])
    recipe = family.genome({g.name: float(v) for g, v in zip(genes, point, strict=True)})
    return -value, family.score(recipe, "holdout")
