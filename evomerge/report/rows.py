"""Trials as rows of a table and as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evomerge.search.finalists import MEAN
from evomerge.search.race import Race
from evomerge.search.records import TrialRecord


def row_of(trial: TrialRecord, goals: Sequence[str] = ()) -> dict[str, Any]:
    """A trial as a row of the table: state, fitness, items, scores, genome, seconds, failure."""
    row: dict[str, Any] = {
        "trial": trial.number,
        "kind": trial.kind,
        "label": trial.label or "",
        "state": trial.state,
        "fitness": trial.fitness,
        "items": trial.items,
        "estimate": trial.estimate,
        "rival": trial.rival,
        "twin": trial.twin,
    }
    for task, metrics in trial.scores.items():
        for metric, (value, _stderr) in metrics.items():
            row[f"score/{task}/{metric}"] = value
    row.update({f"goal/{name}": v for name, v in zip(goals, trial.values, strict=False)})
    row.update({f"floor/{name}": lack for name, lack in trial.constraints.items()})
    row.update(trial.genome)
    row.update({f"seconds/{name}": value for name, value in trial.seconds.items()})
    row["failure"] = trial.failure or ""
    return row


def json_of(trial: TrialRecord | None, goals: Sequence[str] = ()) -> dict[str, Any] | None:
    """A trial as plain data, with its goals where there are several; None for None."""
    if trial is None:
        return None
    further = {"goals": dict(zip(goals, trial.values, strict=True))} if goals else {}
    return {
        **further,
        "trial": None if trial.kind == MEAN else trial.number,
        "kind": trial.kind,
        "label": trial.label,
        "fitness": trial.fitness,
        "lacks": dict(trial.constraints),
        "scores": trial.scores,
        "genome": trial.genome,
        "recipe": trial.recipe,
    }


def race_json(race: Race | None, called: Callable[[str], str]) -> dict[str, Any] | None:
    """A race as plain data.

    Args:
        race: that was run; None is none.
        called: what a finalist is called, by its name in the race.
    """
    if race is None:
        return None
    return {
        "finalists": [
            {
                "trial": None if name == MEAN else int(name),
                "label": called(name),
                "search_fitness": race.searched[name],
                "fresh_fitness": race.fresh(name),
                "rounds": sum(1 for one in race.rounds if name in one.fitness),
            }
            for name in race.searched
        ],
        "spread": race.spread,
        "seed_spread": race.seed_spread,
    }
