"""Evaluators that do as they are told, in workers of their own.

Nothing heavy is imported here: a dozen workers are started, killed and replaced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import Fault, TaskError
from evomerge.search.pool import Evaluator, Job, Outcome

SLOW = 2.0
"""Seconds that a slow job takes."""


@dataclass(frozen=True)
class Height:
    """What a landscape's point scores; there are no tasks."""

    value: float
    tasks: Mapping[str, Any] = field(default_factory=dict)


class Scripted:
    """Does what a job's part says: dies, hangs on, raises; else scores the recipe's numbers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / f"started-{os.getpid()}-{time.time_ns()}").touch()

    def run(self, job: Job) -> Outcome:
        (self._folder / f"ran-{job.key}-{time.time_ns()}-{os.getpid()}").touch()
        word = job.part
        if word == "die-once" and len(list(self._folder.glob(f"ran-{job.key}-*"))) == 1:
            os._exit(1)
        if word == "die":
            os._exit(1)
        if word == "slow":
            time.sleep(SLOW)
        if word == "memory":
            raise MemoryError("cannot allocate 16 GiB")
        if word == "poison":
            raise RuntimeError("CUDA error: device-side assert triggered")
        numbers = yaml.safe_load(job.recipe).values()
        height = 1 - sum((number - 0.7) ** 2 for number in numbers) / len(numbers)
        return Outcome(job, Height(height), {"merge": 0.0, "score": 0.0}, items=10)  # type: ignore[arg-type]


class Make:
    """Builds the scripted evaluator in the worker; pickles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> Evaluator:
        return Scripted(self.folder)


class Refuse:
    """Input that is refused while the worker starts."""

    def __call__(self) -> Evaluator:
        raise TaskError([Fault("space.yaml:3: tasks[0].task", "'arc_esay' is unknown")])


class Die:
    """A worker that is killed while it loads the models."""

    def __call__(self) -> Evaluator:
        os._exit(1)
