"""What the search loop needs of its workers, whatever runs them.

The loop hands out jobs and takes outcomes as they come. :class:`LocalPool` runs them in this
process; ``workers.RayPool`` runs them in Ray actors.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.errors import EvomergeError

if TYPE_CHECKING:  # a worker begins without the imports that its evaluator needs
    from evomerge.evaluation import Scores
    from evomerge.evaluation.incumbent import Incumbent


@dataclass(frozen=True)
class Job:
    """Score one recipe.

    Args:
        key: what the outcome is for: a trial's number, or the name of a finalist.
        recipe: the recipe as YAML.
        part: which items: ``search``, ``holdout``, ``race``, or one of several rounds of the race,
            ``race 1/3``.
        leg: where a leg of the climb begins, which is then taken too: the genome that the recipe
            was decoded from, and more, as ``climbing.Place`` writes it.
        incumbent: a candidate that cannot win against it is stopped; None stops none.
    """

    key: int | str
    recipe: str
    part: str = "search"
    leg: Mapping[str, Any] | None = None
    incumbent: Incumbent | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a job: scores, or the reason why there are none.

    Args:
        job: the job.
        scores: None if the job failed; of a candidate that was stopped, on some of the items.
        seconds: where the time went: ``merge``, ``score``.
        failure: the reason, in one line; None if there are scores.
        detail: the traceback, for the log.
        poisoned: the worker cannot be trusted after this and must be replaced.
        worker: the process that did it.
        items: how many items were scored; a slope counts as three times its items.
        walk: what came of the leg, as ``climbing.Walk`` writes it; None where none was asked for,
            or it cannot be had.
        no_slope: why nothing came of a leg that was asked for.
        estimate: of a candidate that was stopped, what it would have scored; see
            ``evaluation.rungs``.
    """

    job: Job
    scores: Scores | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    detail: str = ""
    poisoned: bool = False
    worker: int | None = None
    items: int = 0
    walk: Mapping[str, Any] | None = None
    no_slope: str | None = None
    estimate: float | None = None


class Evaluator(Protocol):
    """Merges a recipe and scores it."""

    def run(self, job: Job) -> Outcome:
        """Raise for a job that cannot be done."""
        ...


class Pool(Protocol):
    """Workers that do jobs one at a time."""

    @property
    def size(self) -> int:
        """How many workers there are."""
        ...

    @property
    def busy(self) -> int:
        """How many of them have a job."""
        ...

    @property
    def queues(self) -> bool:
        """Whether a job may wait behind one that is running, so that its worker need not wait."""
        ...

    def submit(self, job: Job) -> None:
        """Give a job to a free worker, or to wait. Only while ``busy < size`` or ``queues``."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """The outcomes that have come in; empty after ``timeout`` seconds without one."""
        ...

    def close(self) -> None:
        """Stop the workers; running jobs are given up."""
        ...


def attempt(evaluator: Evaluator, job: Job) -> Outcome:
    """Run a job; whatever goes wrong becomes the outcome's reason."""
    try:
        return evaluator.run(job)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:
        return Outcome(
            job,
            failure=reason(problem),
            detail=traceback.format_exc(),
            poisoned=_poisons(problem),
        )


def reason(problem: BaseException) -> str:
    """An exception in one line, for the trial's record."""
    text = " ".join(str(problem).split())
    if isinstance(problem, EvomergeError) and text:
        return text
    name = type(problem).__name__
    if name == "OutOfMemoryError" or isinstance(problem, MemoryError):
        return f"out of memory: {text}"[:500]
    return (f"{name}: {text}" if text else name)[:500]


def _poisons(problem: BaseException) -> bool:
    # After a CUDA error other than out of memory, every later call in the process fails too; so
    # it does once vLLM's engine, a process of its own, has died.
    fatal = type(problem).__name__ in ("AcceleratorError", "EngineDeadError")
    fatal = fatal or "CUDA error" in str(problem)
    return fatal and type(problem).__name__ != "OutOfMemoryError"


class LocalPool:
    """One worker in this process: ``submit`` takes the job, ``wait`` does it.

    For tests and for looking at a search in a debugger; the command line always uses Ray.
    """

    size = 1
    queues = False

    def __init__(self, make: Callable[[], Evaluator]) -> None:
        self._make = make
        self._evaluator: Evaluator | None = None
        self._waiting: list[Job] = []

    @property
    def busy(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._waiting:
            return []
        if self._evaluator is None:
            self._evaluator = self._make()
        job = self._waiting[0]
        outcome = attempt(self._evaluator, job)
        self._waiting.pop(0)
        return [outcome]

    def close(self) -> None:
        self._waiting.clear()
        self._evaluator = None
