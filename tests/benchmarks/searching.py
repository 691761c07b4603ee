"""Our side: the quickstart's search as it is, its workers timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from unittest.mock import patch

from evomerge import api, load_space
from evomerge.search.budget import Progress
from evomerge.search.preparation import Preparation
from evomerge.search.records import TrialRecord
from evomerge.search.workers import RayPool
from evomerge.space import SearchSpace
from tests.benchmarks.timers import ARITHMETIC, FORWARD, Timed

_ROOT = str(Path(__file__).resolve().parents[2])

WARM = 20
"""Searched trials that are not counted: a worker's first ones find nothing remembered."""


@dataclass
class Moment:
    """The machine when a trial was finished.

    Args:
        record: the trial's.
        at: seconds of the clock.
        driver: processor seconds that this process has used.
        machine: processor seconds that all processes have used, this one too.
    """

    record: TrialRecord
    at: float
    driver: float
    machine: float


@dataclass
class Search:
    """A search, trial by trial.

    Args:
        workers: how many.
        warm: searched trials that are not counted.
        moments: of every finished trial, in their order.
        prepared: the space, checked.
    """

    workers: int
    warm: int = WARM
    moments: list[Moment] = field(default_factory=list)
    prepared: Preparation | None = None

    @property
    def steady(self) -> list[Moment]:
        """From the moment that begins the steady state to the last one with all workers at work."""
        searched = [n for n, one in enumerate(self.moments) if one.record.kind == "search"]
        return self.moments[searched[self.warm - 1] : len(self.moments) - self.workers + 1]

    @property
    def trials(self) -> list[TrialRecord]:
        """Those that were finished meanwhile."""
        return [one.record for one in self.steady[1:]]

    @property
    def seconds(self) -> float:
        """How long that took."""
        return self.steady[-1].at - self.steady[0].at

    @property
    def rate(self) -> float:
        """Trials per second."""
        return len(self.trials) / self.seconds

    @property
    def worker_seconds(self) -> float:
        """The workers' seconds per trial, at work or not."""
        return self.workers / self.rate

    def total(self, *names: str) -> float:
        """Seconds per trial that went into these, of those that a trial's record tells."""
        return sum(r.seconds[name] for r in self.trials for name in names) / len(self.trials)

    @property
    def share(self) -> float:
        """Of the workers' time in forward passes and in the merge's arithmetic."""
        return self.total(FORWARD, ARITHMETIC) / self.worker_seconds

    def parts(self) -> dict[str, float]:
        """Where a trial's time goes: the workers' seconds, which add up, then the others'."""
        whole, merge, score = (self.total(name) for name in ("whole", "merge", "score"))
        forward, arithmetic = self.total(FORWARD), self.total(ARITHMETIC)
        first, last = self.steady[0], self.steady[-1]
        driver = (last.driver - first.driver) / len(self.trials)
        machine = (last.machine - first.machine) / len(self.trials)
        return {
            "forward passes": forward,
            "merge: arithmetic": arithmetic,
            "merge: the rest": merge - arithmetic,
            "scores: the rest": score - forward,
            "recipe, bookkeeping": whole - merge - score,
            "without a job": self.worker_seconds - whole,
            "the driver's processor time": driver,
            "other processes' (Ray's, and strangers)": machine - driver - self.total("processor"),
        }

    def median(self, name: str) -> float:
        """The median over trials of one of their times."""
        return median(record.seconds[name] for record in self.trials)


def search(space: Path, folder: Path, *, trials: int, workers: int, warm: int = WARM) -> Search:
    """Search a space in a folder of its own.

    Args:
        space: its file.
        folder: the study is written below.
        trials: how many, baselines and the first ones included.
        workers: how many run at once, each with one thread.
        warm: searched trials that are not counted.

    Raises:
        RuntimeError: a trial failed.
    """
    found = Search(workers, warm)

    def observe(record: TrialRecord | None, _progress: Progress) -> None:
        if record is not None:
            now = time.perf_counter(), time.process_time(), machine_seconds()
            found.moments.append(Moment(record, *now))

    def announce(prepared: Preparation, _study: object) -> None:
        found.prepared = prepared

    with _inside(folder), _timed_workers():
        api.search(
            _plain(space),
            trials=trials,
            workers=workers,
            resources={"cpus": 1},
            observer=observe,
            announce=announce,
        )
    failed = [one.record.failure for one in found.moments if one.record.failure]
    if failed:
        raise RuntimeError(f"{len(failed)} trials failed; the first: {failed[0]}")
    return found


def machine_seconds() -> float:
    """Processor seconds that the machine's cores have worked."""
    busy = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _waiting, *rest = (int(ticks) for ticks in busy)
    return (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")


def _plain(file: Path) -> SearchSpace:
    """The space, searched by trials that all cost the same: none is stopped or climbs."""
    space = load_space(file)
    plain = {"sampler": "cmaes", "rungs": "none"}
    return space.model_copy(update={"search": space.search.model_copy(update=plain)})


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _timed_workers() -> Iterator[None]:
    """Searches' workers are timed, and run at this process' priority (Ray would be nice to us)."""

    def pool(make: object, *arguments: object, **options: object) -> RayPool:
        return RayPool(Timed(make), *arguments, **options)  # type: ignore[arg-type]

    # Workers find this package wherever they are started.
    path = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    even = {"RAY_worker_niceness": "0", "PYTHONPATH": path}
    with patch("evomerge.search.workers.RayPool", pool), patch.dict(os.environ, even):
        yield
