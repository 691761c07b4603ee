"""Plain padded batches: every causal model runs them, and other ways are checked against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from evomerge.evaluation.batching import Budget, Indices, ShrinkingBatches
from evomerge.evaluation.likelihoods.logits import Model, log_probabilities, summed
from evomerge.evaluation.queries import Window


@dataclass(frozen=True)
class _Batch:
    """A padded batch and where it is scored; every distinct position is normalised once.

    Args:
        tokens: ``[rows, longest]``, padded on the right, where a causal model never looks.
        columns: ``[K]`` positions at which some row is scored, ascending.
        row, column: ``[D]`` the distinct scored positions; ``column`` counts within ``columns``.
        source: ``[T]`` of each target, its position among the ``D``.
        target: ``[T]`` the token whose probability is asked for.
        windows: the windows answered, in the order of their targets.
        starts: ``[len(windows)]`` where each window's targets begin among the ``T``.
    """

    tokens: torch.Tensor
    columns: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    windows: tuple[int, ...]
    starts: np.ndarray


_Scored = tuple[_Batch, torch.Tensor, torch.Tensor]


class PlainBatches:
    """Plans padded batches of a fixed list of windows, and runs them on whatever the model now is.

    Windows with the same input (the one-token choices of a question) share one row.

    Args:
        model: what is run.
        windows: what is to be scored.
        budget: of one batch.
        known: so many tokens at the beginning of every window come from a cache; they are the
            same in all, and none of them is scored.
    """

    def __init__(
        self, model: Model, windows: Sequence[Window], budget: Budget, *, known: int = 0
    ) -> None:
        self._model = model
        self._windows = windows
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, window in enumerate(windows):
            rows.setdefault(window.tokens[known:], []).append(index)
        self._rows = list(rows.items())
        lengths = [len(tokens) for tokens, _ in self._rows]
        self._batches: ShrinkingBatches[_Batch, _Scored] = ShrinkingBatches(
            lengths, budget, self._prepare
        )

    def run(self, cache: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood (nats, float64) and greediness (bool) of every window, in their order.

        A window whose logits are not numbers has log-likelihood NaN.

        Args:
            cache: what the model keeps of the known tokens, one row; left as it is.

        Raises:
            TrialError: a single sequence does not fit in memory.
        """
        step = partial(self._forward, cache)
        likelihood = np.full(len(self._windows), np.nan)
        greedy = np.zeros(len(self._windows), dtype=bool)
        # One wait for the device at the end, not one per batch; hence tensors until here.
        for _, (batch, log_probs, is_best) in self._batches.run(step):
            if batch.windows:
                sums = np.add.reduceat(log_probs.cpu().numpy(), batch.starts)
                likelihood[list(batch.windows)] = sums
                hits = np.logical_and.reduceat(is_best.cpu().numpy(), batch.starts)
                greedy[list(batch.windows)] = hits
        return likelihood, greedy

    def traced(self) -> torch.Tensor:
        """Log-likelihood (nats, float64) of every window, in their order, with autograd's record.

        Memory that runs out is the caller's to deal with.
        """
        found: list[torch.Tensor] = []
        order: list[int] = []
        for batch in self._batches.plans:
            _, log_probs, _ = self._scored(None, batch)
            found.append(summed(log_probs, batch.starts))
            order += batch.windows
        return torch.cat(found)[torch.from_numpy(np.argsort(order)).to(self._model.device)]

    def _prepare(self, indices: Indices) -> _Batch:
        inputs = [self._rows[index][0] for index in indices]
        tokens = torch.zeros(len(inputs), max(map(len, inputs)), dtype=torch.long)
        positions: dict[tuple[int, int], int] = {}
        source: list[int] = []
        target: list[int] = []
        windows: list[int] = []
        starts: list[int] = []
        for row, index in enumerate(indices):
            tokens[row, : len(inputs[row])] = torch.tensor(inputs[row])
            for window in self._rows[index][1]:
                wanted = self._windows[window].targets
                windows.append(window)
                starts.append(len(target))
                first = len(inputs[row]) - len(wanted)
                keys = ((row, first + offset) for offset in range(len(wanted)))
                source += [positions.setdefault(key, len(positions)) for key in keys]
                target += wanted
        columns = sorted({column for _, column in positions})
        place = {column: number for number, column in enumerate(columns)}
        return _Batch(
            tokens=tokens.to(self._model.device),
            # On the CPU it indexes hidden states on whichever device a spread model ends.
            columns=torch.tensor(columns) if self._model.spread else self._tensor(columns),
            row=self._tensor([row for row, _ in positions]),
            column=self._tensor([place[column] for _, column in positions]),
            source=self._tensor(source),
            target=self._tensor(target),
            windows=tuple(windows),
            starts=np.array(starts, dtype=np.int64),
        )

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)

    @torch.inference_mode()
    def _forward(self, cache: Any, batch: _Batch) -> _Scored:
        return self._scored(cache, batch)

    def _scored(self, cache: Any, batch: _Batch) -> _Scored:
        options = {} if cache is None else self._model.continued(cache, len(batch.tokens))
        logits = self._model.logits(batch.tokens, batch.columns, **options)
        picked = logits[batch.row, batch.column]
        return batch, *log_probabilities(picked, batch.source, batch.target)
