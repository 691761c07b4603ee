"""What there is to win in a family: the benchmark's baselines and long searches, held out."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from evomerge.search.cmaes import Replay
from tests.benchmarks.searches.arena import Arena


def measure(file: Path, trials: int, seeds: int) -> None:
    """Print the baselines, and what CMA-ES from the best of them finds in so many trials.

    A search's difference is to the baseline that is best on its own search items, with its 95 %
    interval over the held-out items; and to the one that is best on the held-out items, which
    nobody could know.
    """
    arena = Arena(file, 0)
    baselines = arena.baselines()
    began = time.process_time()
    found = {name: arena.fitness(recipe) for name, recipe in baselines.items()}
    each = (time.process_time() - began) / len(found)
    print(f"  {len(arena.genes)} genes, {arena.items} items, {each * 1000:.0f} ms a trial (CPU)")
    held = {name: arena.held_out(recipe) for name, recipe in baselines.items()}
    for name, value in found.items():
        print(f"  {name:32} {value:.4f} {held[name]:.4f}", flush=True)
    for seed in range(seeds if trials else 0):
        _tell_search(Arena(file, seed) if seed else arena, trials, max(held.values()))


def _tell_search(arena: Arena, trials: int, known: float) -> None:
    recipe, value = _long(arena, trials)
    one = arena.judge(recipe)
    print(
        f"  CMA-ES, seed {arena.seed}: {value:.4f} {one.held_out:.4f}; − {one.baseline}: "
        f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f}); "
        f"− the best held out: {one.held_out - known:+.4f}",
        flush=True,
    )


def _long(arena: Arena, trials: int) -> tuple[str, float]:
    """The fittest recipe of a search, and its search score."""
    genes = arena.genes
    low, high = (np.array([getattr(g, side) for g in genes.values()]) for side in ("low", "high"))
    starts = [(arena.fitness(b.recipe), b.genome) for b in arena.prepared.baselines if b.genome]
    genome = max(starts, key=lambda one: one[0])[1] if starts else None
    start = (low + high) / 2 if genome is None else np.array([genome[name] for name in genes])
    replay = Replay(low, high, sigma=0.25, seed=arena.seed)
    told: list[tuple[np.ndarray, float]] = []
    best = ("", -np.inf)
    for draw in range(trials):
        point = replay.ask(start, told, draw)
        recipe = arena.recipe({name: float(v) for name, v in zip(genes, point, strict=True)})
        value = arena.fitness(recipe)
        told.append((point, -value))
        best = max(best, (recipe, value), key=lambda one: one[1])
    return best
