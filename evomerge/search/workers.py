"""Workers as Ray actors; the only module that knows Ray.

An actor builds its evaluator once (models, live model, items) and then runs one job after another.
One that dies is replaced and its job is run again; a job that kills its worker time after time is
given up, with that as the reason.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.errors import EvomergeError, InputError
from evomerge.search.pool import Evaluator, Job, Outcome, attempt

ATTEMPTS = 3
"""How many workers one job may kill before it is given up."""

_ENDING_SECONDS = 10.0

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A worker's death is told by us, in one line; Ray's own message would break the display.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|OOM|memory pressure",
}
_log = logging.getLogger(__name__)


class WorkerError(EvomergeError):
    """No worker can be had: Ray cannot be reached, or workers die while they load the models."""


@dataclass(frozen=True)
class Resources:
    """What each worker gets.

    Args:
        workers: how many; None is as many as the machine or cluster has room for.
        cpus: CPU cores (also the number of threads) of each.
        gpus: GPUs of each; a fraction shares one.
    """

    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


class _Worker:
    """The actor's body. Building the evaluator is a call of its own, so that its errors arrive."""

    def __init__(self, make: Callable[[], Evaluator]) -> None:
        self._make = make
        self._evaluator: Evaluator | None = None

    def start(self) -> int:
        self._evaluator = self._make()
        return os.getpid()

    def run(self, job: Job) -> Outcome:
        if self._evaluator is None:
            self.start()
        assert self._evaluator is not None  # for the type checker: start() has set it
        return replace(attempt(self._evaluator, job), worker=os.getpid())

    def end(self) -> None:
        """Let go of what a killed process would leave behind (vLLM's processes and memory)."""
        close = getattr(self._evaluator, "close", None)
        if close is not None:
            close()


@dataclass(eq=False)
class _Task:
    """A job that was given to a worker; how often, and where Ray will put its outcome."""

    job: Job
    attempts: int = 1
    reference: Any = None


@dataclass(eq=False)
class _Slot:
    """One worker and its tasks, in the order in which it does them; ``pid`` once it has started."""

    actor: Any
    tasks: list[_Task] = field(default_factory=list)
    pid: int | None = None


class RayPool:
    """A pool of Ray actors.

    Args:
        make: builds a worker's evaluator, in the worker; must pickle.
        resources: of each worker.
        address: of a running Ray cluster; None starts one on this machine for the time of the
            search.

    Raises:
        WorkerError: Ray cannot be started or reached, or the first worker dies while it starts.
        InputError: the evaluator refuses its input.
    """

    def __init__(
        self, make: Callable[[], Evaluator], resources: Resources, *, address: str | None = None
    ) -> None:
        self._make, self._resources, self._address = make, resources, address
        self._ray = _connect(address, resources)
        self._running: dict[Any, _Slot] = {}
        self._slots: list[_Slot] = []
        try:
            self._check_room()
            workers = resources.workers or self._room()
            self._starting = self._begin(workers)
            self._await_first()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """How many workers have started; more may, while a cluster makes room for them."""
        if self._starting:
            starting = list(self._starting)
            done, _ = self._ray.wait(starting, num_returns=len(starting), timeout=0)
            for started in done:
                self._admit(started)
        return len(self._slots)

    @property
    def busy(self) -> int:
        return sum(1 for slot in self._slots if slot.tasks)

    @property
    def queues(self) -> bool:
        return any(len(slot.tasks) < 2 for slot in self._slots)

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers that have started."""
        return [slot.pid for slot in self._slots if slot.pid is not None]

    def submit(self, job: Job) -> None:
        slot = min(self._slots, key=lambda slot: len(slot.tasks))
        slot.tasks.append(_Task(job))
        self._dispatch(slot, slot.tasks[-1])

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        outcomes = [self._collect(reference) for reference in done]
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        # Not where Ray is gone already: the call would start another one.
        slots = getattr(self, "_slots", []) if self._ray.is_initialized() else []
        ended = [slot.actor.end.remote() for slot in slots if not slot.tasks]
        self._running, self._slots = {}, []
        if ended:
            self._ray.wait(ended, num_returns=len(ended), timeout=_ENDING_SECONDS)
        self._ray.shutdown()

    def _collect(self, reference: Any) -> Outcome | None:
        """The outcome of a worker's first task, which is done before the others."""
        slot = self._running[reference]
        task = slot.tasks[0]
        del self._running[task.reference]
        try:
            outcome: Outcome = self._ray.get(task.reference)
        except self._ray.exceptions.RayTaskError as problem:
            failure = f"worker failed: {problem.cause!r}"
            outcome = Outcome(task.job, failure=failure, poisoned=True)
        except self._ray.exceptions.RayError as problem:
            return self._replace(slot, problem)
        slot.pid = outcome.worker
        slot.tasks.remove(task)
        if outcome.poisoned:
            self._respawn(slot)
        return outcome

    def _replace(self, slot: _Slot, problem: Exception) -> Outcome | None:
        """A new worker for one that died; its job runs again unless it has killed too many."""
        task, outcome = slot.tasks[0], None
        cause = str(problem).strip().splitlines()[0]
        _log.warning("worker %s died during %s (%s); it is replaced", slot.pid, task.job.key, cause)
        if task.attempts < ATTEMPTS:
            task.attempts += 1
        else:
            reason = f"killed its worker {ATTEMPTS} times (out of memory?): {cause}"
            outcome = Outcome(slot.tasks.pop(0).job, failure=reason)
        self._respawn(slot)
        return outcome

    def _dispatch(self, slot: _Slot, task: _Task) -> None:
        task.reference = slot.actor.run.remote(task.job)
        self._running[task.reference] = slot

    def _spawn(self) -> Any:
        options = {
            "num_cpus": self._resources.cpus,
            "num_gpus": self._resources.gpus,
            "max_restarts": 0,  # replacing a worker and running its job again is done here
            "max_task_retries": 0,
        }
        return self._ray.remote(_Worker).options(**options).remote(self._make)

    def _respawn(self, slot: _Slot) -> None:
        self._ray.kill(slot.actor)
        slot.actor, slot.pid = self._spawn(), None
        for task in slot.tasks:
            self._running.pop(task.reference, None)
            self._dispatch(slot, task)

    def _begin(self, workers: int) -> dict[Any, _Slot]:
        slots = [_Slot(self._spawn()) for _ in range(workers)]
        return {slot.actor.start.remote(): slot for slot in slots}

    def _admit(self, started: Any) -> None:
        """Take a worker that has started into service; one that could not is left out."""
        slot = self._starting.pop(started)
        try:
            slot.pid = self._ray.get(started)
        except self._ray.exceptions.RayError as problem:
            _log.warning("a worker could not start and is left out: %s", problem)
            return
        self._slots.append(slot)

    def _check_room(self) -> None:
        """Refuse workers that would wait for ever for what the cluster does not have."""
        total = self._ray.cluster_resources()
        wanted = {"GPU": self._resources.gpus, "CPU": self._resources.cpus}
        for name, amount in wanted.items():
            there = float(total.get(name, 0))
            if amount > there:
                where = "the cluster has" if self._address else "this machine has"
                raise WorkerError(f"a worker is to have {amount:g} {name}; {where} {there:g}")

    def _room(self) -> int:
        """How many workers fit into the cluster."""
        total = self._ray.cluster_resources()
        if self._resources.gpus > 0:
            return max(1, int(total.get("GPU", 0) / self._resources.gpus + 1e-6))
        return max(1, int(total.get("CPU", 1) / self._resources.cpus + 1e-6))

    def _await_first(self) -> None:
        """Wait until one worker has started: what is wrong with all of them shows here."""
        done, _ = self._ray.wait(list(self._starting), num_returns=1)
        try:
            self._ray.get(done[0])
            self._admit(done[0])
        except self._ray.exceptions.RayTaskError as problem:
            if isinstance(problem.cause, InputError):
                raise problem.cause from None
            raise WorkerError(f"a worker cannot start: {problem.cause!r}") from problem
        except self._ray.exceptions.RayError as problem:
            cause = str(problem).strip().splitlines()[0]
            raise WorkerError(
                f"a worker died while it loaded the models ({cause}); if memory is short, try "
                f"fewer workers than {len(self._starting)} (--workers)"
            ) from problem


def _reach(address: str) -> None:
    """Refuse at once a cluster that is not there; Ray itself would wait for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", "local": Ray looks for itself
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as problem:
        raise WorkerError(f"no Ray cluster answers at {address}: {problem}") from problem


def _connect(address: str | None, resources: Resources) -> Any:
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    import ray

    options: dict[str, Any] = {
        "address": "local",  # Ray itself would join a cluster that happens to run on this machine
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "include_dashboard": False,
    }
    if address is None:
        # More workers than cores are allowed when they were asked for.
        wanted = (resources.workers or 1) * resources.cpus
        options["num_cpus"] = max(os.cpu_count() or 1, int(wanted + 0.999))
    else:
        _reach(address)
        options = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(**options)
    except Exception as problem:
        where = address or "on this machine"
        raise WorkerError(f"Ray cannot be started ({where}): {problem}") from problem
    return ray
