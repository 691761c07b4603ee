"""From tasks to rows: each process holds one family with one seed's items at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import evomerge
from tests.benchmarks.searches import competitors, ours
from tests.benchmarks.searches.arena import Arena
from tests.benchmarks.searches.ground import Ground, shipped
from tests.benchmarks.searches.rows import VERSION, Row

BASELINE, BEST_HELD_OUT = "baseline", "baseline-held-out"
"""The best baseline on the search items, and (an upper line) on the held-out items."""


@dataclass(frozen=True)
class Task:
    """One competitor on one family with one seed.

    Args:
        family, file: the family and its space.
        competitor: a name; one with settings is a search of ours.
        seed: of items and search.
        budgets: full trials.
        settings: of ours.
    """

    family: str
    file: Path
    competitor: str
    seed: int
    budgets: tuple[int, ...]
    settings: Mapping[str, Any] | None = field(default=None)

    @property
    def depends(self) -> str:
        """The row's ``settings``: of ours also the code that searches."""
        if self.settings is None:
            return ""
        return f"{json.dumps(self.settings, sort_keys=True)} {code()}"


@lru_cache(maxsize=1)
def code() -> str:
    """A hash of the package's sources."""
    found = hashlib.sha256()
    folder = Path(evomerge.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


@lru_cache(maxsize=1)
def arena(file: Path, seed: int) -> Arena:
    """The family with a seed's items, while it is the last that was asked for."""
    return Arena(file, seed)


def run(task: Task) -> list[Row]:
    """The rows of a task, one for each budget."""
    ground = arena(task.file, task.seed)
    if task.settings is not None:
        return list(_ours(task, ground, task.settings))
    if task.competitor in (BASELINE, BEST_HELD_OUT):
        return list(_baseline(task, ground))
    return anytime(task, ground, ground.key)


def anytime(task: Task, ground: Ground, key: str) -> list[Row]:
    """One run of the largest budget tells what the smaller ones would have shipped."""
    steps = competitors.search(task.competitor, ground, task.seed, max(task.budgets))
    rows = []
    for budget in task.budgets:
        found = shipped(steps, budget * ground.items)
        if found is not None:
            spent = found.items, found.seconds
            rows.append(_row(task, ground, key, budget, found.recipe, found.fitness, spent))
    return rows


def _baseline(task: Task, ground: Arena) -> Iterator[Row]:
    _, recipe = ground.best_baseline
    if task.competitor == BEST_HELD_OUT:
        recipe = max(ground.baselines().values(), key=ground.held_out)
    spent = len(ground.baselines()) * ground.items, 0.0
    for budget in task.budgets:
        yield _row(task, ground, ground.key, budget, recipe, ground.fitness(recipe), spent)


def _ours(task: Task, ground: Arena, settings: Mapping[str, Any]) -> Iterator[Row]:
    for budget in task.budgets:
        found = ours.search(task.file, settings, task.seed, budget)
        fitness, spent = ground.fitness(found.recipe), (found.items, found.seconds)
        yield _row(task, ground, ground.key, budget, found.recipe, fitness, spent, found.verdict)


def _row(
    task: Task,
    ground: Ground,
    key: str,
    budget: int,
    recipe: str,
    fitness: float,
    spent: tuple[int, float],
    verdict: str | None = None,
) -> Row:
    judged = ground.judge(recipe)
    return Row(
        version=VERSION,
        family=task.family,
        key=key,
        competitor=task.competitor,
        settings=task.depends,
        seed=task.seed,
        budget=budget,
        recipe=recipe,
        search=fitness,
        held_out=judged.held_out,
        baseline=judged.baseline,
        baseline_held_out=judged.baseline_held_out,
        difference=judged.difference,
        low=judged.low,
        high=judged.high,
        items=spent[0],
        seconds=round(spent[1], 2),
        verdict=verdict,
    )


def wanted(tasks: Sequence[Task], known: Sequence[Row], keys: Mapping[str, str]) -> Iterator[Task]:
    """The tasks whose rows are not all there; ``keys`` is family → hash."""
    there = {row.identity for row in known}
    for task in tasks:
        place = task.family, task.competitor, task.seed
        missing = [
            budget
            for budget in task.budgets
            if (*place, budget, keys[task.family], task.depends, VERSION) not in there
        ]
        if not missing:
            continue
        # An anytime search has to run to its largest budget anyhow.
        left = tuple(missing) if task.settings is not None else task.budgets
        yield Task(task.family, task.file, task.competitor, task.seed, left, task.settings)
