"""Log-likelihoods of many windows on a live model, by the quickest way that is right for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch

from evomerge.evaluation.batching import Budget
from evomerge.evaluation.likelihoods.attention import UnfitError
from evomerge.evaluation.likelihoods.caches import CachedPrefixes
from evomerge.evaluation.likelihoods.exact import InFloat32
from evomerge.evaluation.likelihoods.logits import Model
from evomerge.evaluation.likelihoods.plain import PlainBatches
from evomerge.evaluation.likelihoods.tree import TreePasses
from evomerge.evaluation.likelihoods.trie import shared_length
from evomerge.evaluation.queries import Window

_TOLERANCE = 1e-4
"""Nats per token by which another way may differ from plain batches, both in float32."""
_TOLERANCE_OF_HALVES = 0.05
"""The same where a model in bfloat16 or float16 cannot be run in float32: what rounding makes of
other shapes of the same arithmetic."""
_LEAST_TRIED = 2
_TRIED_TOKENS = 8192
"""At least so many windows are tried, and no more beyond so many tokens."""


class Way(Protocol):
    """How windows are put to the model."""

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood (nats, float64) and greediness (bool) of every window, in their order.

        A window whose logits are not numbers has log-likelihood NaN.
        """
        ...


class Likelihoods:
    """Plans a fixed list of windows once, and runs them on whatever the model now is.

    A way is taken only if it gives what plain batches give on some of the windows, with the weights
    that the model has now: the longest, those that share the most, the first.

    Args:
        model: a causal ``transformers`` model.
        windows: what is to be scored.
        budget: of one pass through the model.
        device: where the model takes its input.

    Attributes:
        way: ``prefix tree``, ``cached prefixes`` or ``plain batches``.
        note: why it is not the first of them; empty if it is.

    Raises:
        TrialError: a single sequence does not fit in memory.
    """

    def __init__(
        self, model: Any, windows: Sequence[Window], budget: Budget, device: torch.device
    ) -> None:
        self._windows = windows
        self._model = Model(model, device)
        self._half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        self.way, self.note, self._run = self._chosen(budget)

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood (nats, float64) and greediness (bool) of every window, in their order.

        A window whose logits are not numbers has log-likelihood NaN.

        Raises:
            TrialError: a single sequence does not fit in memory.
        """
        return self._run.run()

    def _chosen(self, budget: Budget) -> tuple[str, str, Way]:
        plain = "plain batches"
        if not self._windows:
            return plain, "", PlainBatches(self._model, self._windows, budget)
        trial = self._trial([self._windows[index] for index in _tried(self._windows)], budget)
        reasons: list[str] = []
        for name in ("prefix tree", "cached prefixes"):
            problem, way = self._problem(name, trial, budget)
            if way is not None:
                return name, "; ".join(reasons), way
            reasons.append(f"{name}: {problem}")
        return plain, "; ".join(reasons), PlainBatches(self._model, self._windows, budget)

    def _way(
        self, name: str, windows: Sequence[Window], budget: Budget, **options: int
    ) -> TreePasses | CachedPrefixes:
        if name == "prefix tree":
            return TreePasses(self._model, windows, budget.tokens)
        return CachedPrefixes(self._model, windows, budget, **options)

    def _trial(self, windows: Sequence[Window], budget: Budget) -> _Trial:
        """What plain batches give, in float32 if that can be had."""
        plain = PlainBatches(self._model, windows, budget)
        if self._half:
            # Operations may be for bfloat16 only, and memory too little.
            with contextlib.suppress(Exception), InFloat32():
                return _Trial(windows, plain.run()[0], InFloat32, _TOLERANCE)
        tolerance = _TOLERANCE_OF_HALVES if self._half else _TOLERANCE
        return _Trial(windows, plain.run()[0], contextlib.nullcontext, tolerance)

    def _problem(self, name: str, trial: _Trial, budget: Budget) -> tuple[str, Way | None]:
        """Why a way cannot be taken, or the way for all windows."""
        if not np.isfinite(trial.expected).all():
            return "cannot be checked: the model's logits are not numbers", None
        # Small passes, so that what one leaves for the next is checked too.
        tokens = max(len(window.tokens) for window in trial.windows) // 2
        small = Budget(min(tokens, budget.tokens), budget.rows)
        try:
            with trial.precision(), _quiet():
                got, _ = self._way(name, trial.windows, small, worth=1).run()
            way = self._way(name, self._windows, budget)
        except UnfitError as error:
            return str(error), None
        except Exception as error:  # the model may be anyone's code, and plain batches will do
            return f"{type(error).__name__}: {error}", None
        counts = np.array([len(window.targets) for window in trial.windows])
        worst = float(np.max(np.abs(got - trial.expected) / counts))
        if not worst <= trial.tolerance:
            return f"log-likelihoods differ by {worst:.2g} per token", None
        return "", way


@dataclass(frozen=True)
class _Trial:
    """Windows that every way is tried on.

    Args:
        windows: some of the study's.
        expected: their log-likelihoods in plain batches.
        precision: the arithmetic of both.
        tolerance: in nats per token.
    """

    windows: Sequence[Window]
    expected: np.ndarray
    precision: Callable[[], contextlib.AbstractContextManager[Any]]
    tolerance: float


def _tried(windows: Sequence[Window]) -> list[int]:
    """Windows to try a way on: the longest and its neighbour, those that share the most, the first.

    Neighbours in the order of their tokens share the most with one another.
    """
    order = sorted(range(len(windows)), key=lambda index: windows[index].tokens)
    inputs = [windows[index].tokens for index in order]
    shared = [shared_length(*pair) for pair in pairwise(inputs)]
    longest = max(range(len(inputs)), key=lambda place: len(inputs[place]))
    closest = max(range(len(shared)), key=lambda place: shared[place], default=0)
    places = [longest, max(longest - 1, 0), closest, min(closest + 1, len(order) - 1), 0]
    chosen: list[int] = []
    tokens = 0
    for place in dict.fromkeys(places):
        tokens += len(inputs[place])
        if len(chosen) >= _LEAST_TRIED and tokens > _TRIED_TOKENS:
            break
        chosen.append(order[place])
    return chosen


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Whatever ``transformers`` says about a way that is only tried, our note says."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
