"""Builds a family on the skills into a folder: models, items, tasks, space."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.families import writing
from tests.benchmarks.families.skilled import Skilled
from tests.benchmarks.families.training import train_and_save

HELDOUT = 1000
_PROCESSES = int(os.environ.get("EVOMERGE_BENCH_PROCESSES", "2"))


def build_skilled(what: Skilled, folder: Path) -> None:
    """A family on the quickstart's skills."""
    models, reserved = folder / "models", writing.reserved()
    base = models / "base"
    train([(train_and_save, (what.base, None, base, reserved))])
    train([(train_and_save, (run, base, models / run.name, reserved)) for run in what.tuned])
    tasks = []
    for skill in what.skills:
        for part, number in ((writing.SEARCH, 300), (writing.HELDOUT, HELDOUT)):
            items = writing.skill_items(skill, part, number)
            writing.write_task(
                folder / "tasks",
                f"{folder_name(folder)}_{skill}_{part}",
                items,
                rolling=False,
                gap=" ",
            )
        tasks.append(task(folder, skill, "acc", what.items))
    writing.write_space(
        folder, [run.name for run in what.tuned], tasks, what.genome, what.merge_method
    )


def folder_name(folder: Path) -> str:
    """The family's name, with which its folder's begins."""
    return folder.name.lstrip(".").split("-")[0]


def task(folder: Path, name: str, metric: str, items: int) -> dict[str, Any]:
    """A space's task, with the task of its held-out items."""
    stem = f"{folder_name(folder)}_{name}"
    return {
        "task": f"{stem}_search",
        "metric": metric,
        "items": items,
        "holdout_task": f"{stem}_heldout",
    }


def train(jobs: Sequence[tuple[Callable[..., str], tuple[Any, ...]]]) -> None:
    """Run the trainings, ``$EVOMERGE_BENCH_PROCESSES`` (2) at a time, each a process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(_PROCESSES, len(jobs)), mp_context=context) as pool:
        for job in [pool.submit(function, *arguments) for function, arguments in jobs]:
            print(" ", job.result(), flush=True)
