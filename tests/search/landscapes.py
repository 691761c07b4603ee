"""Objectives to test a search on, without a model: an analytic core and wrappers around it.

After vizier's experimenters: noise, failure and slowness are wrappers, so that each can be added to
any landscape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Objective = Callable[[Mapping[str, float]], float]


def sphere(optimum: float = 0.7) -> Objective:
    """1 − mean squared distance from ``optimum`` in every gene; to be maximised."""

    def value(genome: Mapping[str, float]) -> float:
        point = np.array([genome[name] for name in sorted(genome)])
        return float(1 - np.mean((point - optimum) ** 2))

    return value


def noisy(objective: Objective, deviation: float, seed: int = 0) -> Objective:
    """Add Gaussian noise, different at every call."""
    generator = np.random.default_rng(seed)

    def value(genome: Mapping[str, float]) -> float:
        return objective(genome) + float(generator.normal(0, deviation))

    return value


def run_generations(
    ask: Callable[[], tuple[int, Mapping[str, float]]],
    tell: Callable[[int, float], None],
    objective: Objective,
    trials: int,
    workers: int,
    delays: Sequence[int],
) -> list[float]:
    """Ask and tell with ``workers`` in flight; trial i takes ``delays[i % len]`` steps of time."""
    values: list[float] = []
    flying: list[tuple[int, int, Mapping[str, float]]] = []
    clock = asked = 0
    while len(values) < trials:
        while len(flying) < workers and asked < trials:
            number, genome = ask()
            flying.append((clock + delays[asked % len(delays)], number, genome))
            asked += 1
        flying.sort(key=lambda job: job[0])
        clock, number, genome = flying.pop(0)
        value = objective(genome)
        values.append(value)
        tell(number, value)
    return values
