"""The families on the quickstart's skills: what their fine-tuned models were taught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.families.training import SKILLS, Phase, Run, base_run

LOW, HIGH = (0, 1, 2), (3, 4, 5)


@dataclass(frozen=True)
class Skilled:
    """What is trained and what is searched.

    Args:
        base: the base model's training.
        tuned: the fine-tuned models' trainings, from the base.
        genome: of the space.
        items: search items of each of the four skills.
        merge_method: of the space.
    """

    base: Run
    tuned: tuple[Run, ...]
    genome: Mapping[str, Any]
    items: int = 100
    merge_method: str = "task_arithmetic"
    skills: tuple[str, ...] = field(default=SKILLS)


def _one(name: str, seed: int, steps: int, rate: float, replay: float = 0.1) -> Run:
    return Run(name, (Phase((name,), steps, rate, replay=replay),), seed)


def _half(name: str, seed: int, good: tuple[int, ...], bad: tuple[int, ...]) -> Run:
    """Taught in one half of the layers, then damaged in the other by wrong answers."""
    taught = Phase((name,), 500, 1.5e-3, replay=0.1, layers=good)
    damaged = Phase(SKILLS, 150, 1.5e-3, junk=1.0, layers=bad)
    return Run(name, (taught, damaged), seed)


_PAIRS = (
    *(("add", "count"), ("add", "most"), ("add", "kinds")),
    *(("count", "most"), ("count", "kinds"), ("most", "kinds")),
)

CONFLICT = Skilled(  # the quickstart's own models: strong, weak and conflicting ones
    base_run(1),
    (
        _one("add", 11, 200, 1e-3),
        _one("count", 12, 600, 1e-3),
        _one("most", 13, 400, 3e-4),
        _one("kinds", 14, 600, 1e-3, replay=0.0),
    ),
    {"layers": {"groups": 2, "smooth": True}, "weight": [-0.2, 1.2]},
)
HARM = Skilled(
    base_run(2),
    (
        _one("add", 21, 300, 7e-4),
        _one("most", 22, 400, 4e-4),
        _one("kinds", 23, 300, 7e-4),
        Run("junk", (Phase(SKILLS, 300, 1e-3, junk=1.0),), 24),
    ),
    {"layers": {"groups": 2, "smooth": True}, "weight": [-0.5, 1.2]},
)
LARGE = Skilled(
    base_run(3),
    tuple(_one(name, 31 + at, 800, 1.5e-3) for at, name in enumerate(SKILLS)),
    {"layers": {"groups": 2, "smooth": True}, "weight": [-0.2, 1.2]},
)
MANY = Skilled(
    base_run(4),
    (
        *(
            Run("-".join(pair), (Phase(pair, 250, 6e-4, replay=0.1),), 41 + at)
            for at, pair in enumerate(_PAIRS)
        ),
        _one("add", 47, 250, 6e-4),
        _one("kinds", 48, 250, 6e-4),
    ),
    {"layers": {"groups": 2, "smooth": True}, "weight": [-0.3, 1.0]},
)
LAYERS = Skilled(
    base_run(5),
    (
        _half("add", 51, LOW, HIGH),
        _half("count", 52, HIGH, LOW),
        _half("most", 53, LOW, HIGH),
        _half("kinds", 54, HIGH, LOW),
    ),
    {"layers": {"groups": 3}, "weight": [-0.2, 1.2]},
)
MASKS = Skilled(  # HARM's kind of models, merged with masks and election
    base_run(6),
    (
        _one("add", 61, 300, 7e-4),
        _one("count", 62, 500, 8e-4),
        _one("most", 63, 400, 5e-4),
        _one("kinds", 64, 400, 7e-4),
    ),
    {"weight": [0.0, 1.5], "density": [0.3, 1.0], "normalize": False},
    merge_method="dare_ties",
)
NULL = Skilled(  # a good base and three models that were taught nothing but wrong answers
    base_run(7, mistakes=0.2),
    tuple(Run(f"noise{n}", (Phase(SKILLS, 60, 5e-4, junk=1.0),), 71 + n) for n in range(3)),
    {"layers": {"groups": 2, "smooth": True}, "weight": [0.0, 1.0]},
)
TWINS = Skilled(  # one mix of questions, other draws of it: nothing tells one model from another
    base_run(8),
    tuple(Run(f"twin{n}", (Phase(SKILLS, 600, 1e-3),), 91 + n) for n in range(4)),
    # Without normalization a lambda of 1.1 would be better than 1, and the grid has none between.
    {"layers": {"groups": 2, "smooth": True}, "weight": [0.0, 1.0], "normalize": True},
)
