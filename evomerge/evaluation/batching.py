"""Sequences → batches within a budget of tokens, which shrinks when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch

from evomerge.errors import TrialError

Plan = TypeVar("Plan")
Result = TypeVar("Result")
Indices = tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """How much goes into one batch; a sequence that exceeds it alone still makes a batch.

    Args:
        tokens: at most so many, padding included; at least 1.
        rows: at most so many sequences; ``None`` for no limit.
    """

    tokens: int
    rows: int | None = None


def pack(lengths: Sequence[int], indices: Iterable[int], budget: Budget) -> list[Indices]:
    """Batches of sequences of like length, longest first.

    Args:
        lengths: tokens of every sequence.
        indices: the sequences to pack.
        budget: of one batch.
    """
    batches: list[Indices] = []
    batch: list[int] = []
    for index in sorted(indices, key=lambda i: -lengths[i]):
        padded = lengths[batch[0]] * (len(batch) + 1) if batch else 0
        if batch and (padded > budget.tokens or len(batch) == budget.rows):
            batches.append(tuple(batch))
            batch = []
        batch.append(index)
    return [*batches, tuple(batch)] if batch else batches


class ShrinkingBatches(Generic[Plan, Result]):
    """Runs all batches; one that does not fit in memory is halved, and so are those to come.

    What was learnt about memory is kept for the next run.

    Args:
        lengths: tokens of every sequence, what is yet to be generated included.
        budget: of one batch, to begin with.
        prepare: a batch → whatever running it needs; called once per batch, not once per run.
    """

    def __init__(
        self, lengths: Sequence[int], budget: Budget, prepare: Callable[[Indices], Plan]
    ) -> None:
        self._lengths = lengths
        self._budget = budget
        self._prepare = prepare
        self._batches = self._planned(range(len(lengths)))

    @property
    def plans(self) -> list[Plan]:
        """What was prepared for each batch, in their order."""
        return [plan for _, plan in self._batches]

    def run(self, step: Callable[[Plan], Result]) -> list[tuple[Indices, Result]]:
        """``step``'s result for every batch.

        Raises:
            TrialError: a single sequence does not fit in memory.
        """
        waiting = self._batches[::-1]
        done: list[tuple[Indices, Plan]] = []
        results: list[tuple[Indices, Result]] = []
        while waiting:
            indices, plan = waiting.pop()
            result = unless_out_of_memory(partial(step, plan))
            if result is None:
                waiting = self._shrunk([indices, *(later for later, _ in reversed(waiting))])[::-1]
                continue
            done.append((indices, plan))
            results.append((indices, result))
        self._batches = done
        return results

    def _shrunk(self, batches: Sequence[Indices]) -> list[tuple[Indices, Plan]]:
        failed = batches[0]
        if len(failed) == 1:
            length = self._lengths[failed[0]]
            raise TrialError(f"out of memory with a single sequence of {length} tokens")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        padded = self._lengths[failed[0]] * len(failed)
        self._budget = Budget(max(1, padded // 2), self._budget.rows)
        return self._planned(index for batch in batches for index in batch)

    def _planned(self, indices: Iterable[int]) -> list[tuple[Indices, Plan]]:
        return [
            (batch, self._prepare(batch)) for batch in pack(self._lengths, indices, self._budget)
        ]


def unless_out_of_memory(step: Callable[[], Result]) -> Result | None:
    """The step's result, or ``None`` if memory ran out.

    Returning lets go of the failed batch's tensors, which a living exception would hold.
    """
    try:
        return step()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch's allocator for the CPU
            return None
        raise
