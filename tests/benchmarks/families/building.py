"""Builds a family into a folder: models, items, tasks, space."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.families import texts, writing
from tests.benchmarks.families.skilled import Skilled
from tests.benchmarks.families.training import train_and_save

HELDOUT = 1000
_PROCESSES = int(os.environ.get("EVOMERGE_BENCH_PROCESSES", "2"))


def build_skilled(what: Skilled, folder: Path) -> None:
    """A family on the quickstart's skills."""
    models, reserved = folder / "models", writing.reserved()
    base = models / "base"
    _train([(train_and_save, (what.base, None, base, reserved))])
    _train([(train_and_save, (run, base, models / run.name, reserved)) for run in what.tuned])
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
        tasks.append(_task(folder, skill, "acc", what.items))
    writing.write_space(
        folder, [run.name for run in what.tuned], tasks, what.genome, what.merge_method
    )


def build_text(folder: Path) -> None:
    """The family from text."""
    models = folder / "models"
    base = models / "base"
    _train([(texts.train_text, (texts.KINDS, 1200, 3e-3, 81, None, base))])
    _train(
        [
            (texts.train_text, ((kind,), 500, 1.5e-3, 82 + at, base, models / kind))
            for at, kind in enumerate(texts.KINDS)
        ]
    )
    tasks = []
    for kind in texts.KINDS:
        for part, clozes, passages in (("search", 200, 160), ("heldout", HELDOUT, HELDOUT)):
            for name, items, rolling in (
                (f"{kind}_cloze", texts.clozes(kind, part, clozes), False),
                (f"{kind}_text", texts.passages(kind, part, passages), True),
            ):
                task = f"{folder_name(folder)}_{name}_{part}"
                writing.write_task(folder / "tasks", task, items, rolling=rolling, gap="")
        tasks.append(_task(folder, f"{kind}_cloze", "acc", 100))
        tasks.append({**_task(folder, f"{kind}_text", "bits_per_byte", 60), "weight": 0.5})
    genome = {"layers": {"groups": 2, "smooth": True}, "weight": [-0.3, 1.2]}
    writing.write_space(folder, texts.KINDS, tasks, genome)


def folder_name(folder: Path) -> str:
    """The family's name, of which its folder's begins."""
    return folder.name.lstrip(".").split("-")[0]


def _task(folder: Path, name: str, metric: str, items: int) -> dict[str, Any]:
    stem = f"{folder_name(folder)}_{name}"
    return {
        "task": f"{stem}_search",
        "metric": metric,
        "items": items,
        "holdout_task": f"{stem}_heldout",
    }


def _train(jobs: Sequence[tuple[Callable[..., str], tuple[Any, ...]]]) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(_PROCESSES, len(jobs)), mp_context=context) as pool:
        for job in [pool.submit(function, *arguments) for function, arguments in jobs]:
            print(" ", job.result(), flush=True)
