"""The gradient of a smooth fitness with respect to a live model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget, unless_out_of_memory
from evomerge.evaluation.likelihoods.logits import Model
from evomerge.evaluation.likelihoods.plain import PlainBatches
from evomerge.evaluation.likelihoods.tree import TreePasses
from evomerge.evaluation.likelihoods.trie import shared_length
from evomerge.evaluation.slopes.memory import Limits
from evomerge.evaluation.slopes.questions import Question


@dataclass(frozen=True)
class Gradient:
    """A smooth fitness and its gradient.

    Args:
        value: the smooth fitness.
        parameters: name in the live model → d value / d parameter, float32, of its shape; a
            parameter that has no part in the value is absent.
    """

    value: float
    parameters: dict[str, torch.Tensor]


class Gradients:
    """Differentiates fixed questions on a live model, whose weights may change between calls.

    A gradient takes the memory of the model in float32 besides, while it is held: beside the
    model, or in the host's memory where an accelerator has not as much. It takes about three times
    as long as the scores of the same items: one pass forward and one backward.

    Args:
        model: a causal ``transformers`` model in evaluation mode.
        questions: the terms of the fitness; at least one.
        device: where the model takes its input.
        tree: whether what inputs begin with in common is run once for each batch; for models that
            a prefix tree can be put to (``Scorer.way``).
        limits: what memory allows, shared by those that run on one model: what one learns the
            others know.
    """

    def __init__(
        self,
        model: Any,
        questions: Sequence[Question],
        *,
        device: torch.device | str,
        tree: bool = False,
        limits: Limits | None = None,
    ) -> None:
        if not questions:
            raise ValueError("there is no question to differentiate")
        self._device = torch.device(device)
        self._model = Model(model, self._device)
        self._tree = tree
        # Neighbours share the most of their inputs.
        self._questions = sorted(questions, key=lambda one: one.windows[0].tokens)
        self._scale = 1 / sum(abs(one.share) for one in questions) * len(questions)
        self._limits = limits or Limits.of(model, self._device)
        self._plan()

    def run(self) -> Gradient:
        """The gradient at the weights that the model has now.

        Raises:
            TrialError: it is not finite, or a single item does not fit in memory.
        """
        if self._tokens != self._limits.tokens:
            self._plan()
        while (found := unless_out_of_memory(self._run)) is None:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            single = len(self._batches) == len(self._questions)
            if not self._limits.tighten(single=single):
                raise TrialError("out of memory with the gradient of a single item")
            self._plan()
        if not all(bool(torch.isfinite(one.sum())) for one in found.parameters.values()):
            raise TrialError("the gradient of the smooth fitness is not finite")
        return found

    def _run(self) -> Gradient:
        with torch.enable_grad(), self._sums() as sums:
            total = 0.0
            for batch in self._batches:
                value = batch.value()
                # In float16 the terms of many items would be too small to be told from 0.
                (value * self._scale).backward()
                total += float(value.detach())
            return Gradient(total, dict(sums))

    def _sums(self) -> AbstractContextManager[dict[str, torch.Tensor]]:
        where = torch.device("cpu") if self._limits.on_host else None
        return _accumulated(self._model.live, 1 / self._scale, where)

    def _plan(self) -> None:
        self._tokens = self._limits.tokens
        self._batches = self._planned()

    def _planned(self) -> list[_Batch]:
        batches: list[_Batch] = []
        waiting: list[Question] = []
        for question in self._questions:
            if waiting and self._size([*waiting, question]) > self._tokens:
                batches.append(self._batch(waiting))
                waiting = []
            waiting.append(question)
        return [*batches, self._batch(waiting)]

    def _size(self, questions: Sequence[Question]) -> int:
        """Tokens that go through the model, padding included."""
        inputs = sorted({window.tokens for one in questions for window in one.windows})
        if not self._tree:
            return len(inputs) * max(map(len, inputs))
        before = [(), *inputs[:-1]]
        return sum(len(b) - shared_length(a, b) for a, b in zip(before, inputs, strict=True))

    def _batch(self, questions: Sequence[Question]) -> _Batch:
        windows = [window for one in questions for window in one.windows]
        if self._tree:
            run = TreePasses(self._model, windows, self._tokens).traced
        else:
            run = PlainBatches(self._model, windows, Budget(self._tokens * 2)).traced
        return _Batch.of(questions, run, self._device)


@dataclass(frozen=True)
class _Batch:
    """Questions that are differentiated together.

    Args:
        run: gives the log-likelihoods ``[windows]`` of all of them.
        place: ``[windows]`` of each, its choice among the ``Q × C``.
        there, right: ``[Q, C]`` which choices there are, and are right.
        units: ``[Q, C]``.
        shares: ``[Q]``.
        contrast: ``[Q]``.
    """

    run: Callable[[], torch.Tensor]
    place: torch.Tensor
    there: torch.Tensor
    right: torch.Tensor
    units: torch.Tensor
    shares: torch.Tensor
    contrast: torch.Tensor

    @classmethod
    def of(
        cls, questions: Sequence[Question], run: Callable[[], torch.Tensor], device: torch.device
    ) -> _Batch:
        most = max(len(one.right) for one in questions)
        there, right = np.zeros((2, len(questions), most), dtype=bool)
        units = np.ones((len(questions), most))
        for row, one in enumerate(questions):
            there[row, : len(one.right)] = True
            right[row, : len(one.right)] = one.right
            units[row, : len(one.right)] = one.units
        place = [row * most + n for row, one in enumerate(questions) for n in one.choice]
        shares = np.array([one.share for one in questions])
        contrast = np.array([one.contrast for one in questions])
        arrays = (np.array(place), there, right, units, shares, contrast)
        return cls(run, *(torch.from_numpy(array).to(device) for array in arrays))

    def value(self) -> torch.Tensor:
        """The questions' part of the fitness, float64."""
        found = self.run()
        sums = found.new_zeros(self.there.numel()).index_add(0, self.place, found)
        compared = sums.reshape(self.there.shape) / self.units
        nothing = float("-inf")
        right = compared.masked_fill(~self.right, nothing)
        gold = torch.where(self.contrast, right.logsumexp(1), right.amax(1))
        every = compared.masked_fill(~self.there, nothing).logsumexp(1)
        return (self.shares * torch.where(self.contrast, (gold - every).exp(), gold)).sum()


@contextmanager
def _accumulated(
    model: torch.nn.Module, factor: float, where: torch.device | None
) -> Iterator[dict[str, torch.Tensor]]:
    """Parameter → the sum of its gradients times a factor, in float32, as they come.

    Kept on a device; None is each parameter's own.
    """
    sums: dict[str, torch.Tensor] = {}
    named = [(n, p) for n, p in model.named_parameters() if p.is_floating_point()]
    before = [parameter.requires_grad for _, parameter in named]
    handles = []
    for name, parameter in named:
        parameter.requires_grad_(True)
        add = partial(_add, sums, name, factor, where)
        handles.append(parameter.register_post_accumulate_grad_hook(add))
    try:
        yield sums
    finally:
        for handle, (_, parameter), wanted in zip(handles, named, before, strict=True):
            handle.remove()
            parameter.requires_grad_(wanted)
            parameter.grad = None


def _add(
    sums: dict[str, torch.Tensor],
    name: str,
    factor: float,
    where: torch.device | None,
    parameter: torch.Tensor,
) -> None:
    assert parameter.grad is not None  # for the type checker: it was just accumulated
    found = parameter.grad if where is None else parameter.grad.to(where)
    parameter.grad = None
    if name not in sums:
        sums[name] = torch.zeros_like(found, dtype=torch.float32)
    sums[name].add_(found.float(), alpha=factor)
