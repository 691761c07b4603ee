"""A worker's evaluator that says what its trials' time went into.

Times are of the thread's own processor time, not of the clock: what others do on its core while a
forward pass waits for it is no forward pass. A worker of the quickstart has one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.merging.programs import Runner
from evomerge.search.pool import Evaluator, Job, Outcome

FORWARD, ARITHMETIC = "forward", "arithmetic"


@dataclass
class Stopwatch:
    """Processor seconds between the outermost start and its stop.

    Args:
        seconds: so many so far.
    """

    seconds: float = 0.0
    _depth: int = 0
    _began: float = field(default=0.0)

    def start(self, *_: Any) -> None:
        if self._depth == 0:
            self._began = time.thread_time()
        self._depth += 1

    def stop(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.thread_time() - self._began


@dataclass(frozen=True)
class Timed:
    """Builds a worker's evaluator with its timers; pickles.

    Args:
        make: builds the evaluator.
    """

    make: Callable[[], Evaluator]

    def __call__(self) -> Evaluator:
        watches = {FORWARD: Stopwatch(), ARITHMETIC: Stopwatch()}
        _watch_models(watches[FORWARD])
        _watch_kernels(watches[ARITHMETIC])
        return TimedEvaluator(self.make(), watches)


class TimedEvaluator:
    """Adds to an outcome's seconds what the timers say, its processor time and its whole time.

    Args:
        inner: does the work.
        watches: by the names under which their seconds are told.
    """

    def __init__(self, inner: Evaluator, watches: dict[str, Stopwatch]) -> None:
        self._inner, self._watches = inner, watches

    def run(self, job: Job) -> Outcome:
        for watch in self._watches.values():
            watch.seconds = 0.0
        began, used = time.perf_counter(), time.process_time()
        outcome = self._inner.run(job)
        took = {name: watch.seconds for name, watch in self._watches.items()}
        took["processor"] = time.process_time() - used
        took["whole"] = time.perf_counter() - began
        return replace(outcome, seconds={**outcome.seconds, **took})


def _watch_models(watch: Stopwatch) -> None:
    """Time the passes of every model that is loaded from now on: through all of it, or its parts.

    The backbone and the head count where they are called by themselves.
    """
    load = Checkpoint.load_model

    def loaded(self: Checkpoint, **options: Any) -> torch.nn.Module:
        model: Any = load(self, **options)
        parts = {
            id(part): part for part in (model, model.base_model, model.get_output_embeddings())
        }
        for part in parts.values():
            part.register_forward_pre_hook(watch.start)
            part.register_forward_hook(watch.stop, always_call=True)
        return model

    Checkpoint.load_model = loaded  # type: ignore[method-assign]


def _watch_kernels(watch: Stopwatch) -> None:
    """Time the kernels of merges, compiled or not; what looks up and decides is left out."""
    run_piece = Runner.run_piece

    def timed(self: Runner, *arguments: Any) -> None:
        watch.start()
        try:
            run_piece(self, *arguments)
        finally:
            watch.stop()

    Runner.run_piece = timed  # type: ignore[method-assign]
