"""Log-likelihoods of many windows on a live model: one forward pass per batch, in float32."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evomerge.evaluation.batching import Budget, Indices, ShrinkingBatches
from evomerge.evaluation.queries import Window

_PIECE_BYTES = 1 << 28
"""The vocabulary is summed over in pieces of at most so much float32."""


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


class Likelihoods:
    """Plans the batches of a fixed list of windows, and runs them on whatever the model now is.

    Windows with the same input (the one-token choices of a question) share one row.

    Args:
        model: a causal ``transformers`` model.
        windows: what is to be scored.
        budget: of one batch.
        device: where the model takes its input.
    """

    def __init__(
        self, model: Any, windows: Sequence[Window], budget: Budget, device: torch.device
    ) -> None:
        self._model = model
        self._windows = windows
        self._device = device
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, window in enumerate(windows):
            rows.setdefault(window.tokens, []).append(index)
        self._rows = list(rows.items())
        parameters = inspect.signature(model.forward).parameters
        self._spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
        self._keeps = "logits_to_keep" in parameters
        self._options = {"use_cache": False} if "use_cache" in parameters else {}
        lengths = [len(tokens) for tokens, _ in self._rows]
        self._batches: ShrinkingBatches[_Batch, _Scored] = ShrinkingBatches(
            lengths, budget, self._prepare
        )

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood (nats, float64) and greediness (bool) of every window, in their order.

        A window whose logits are not numbers has log-likelihood NaN.
        """
        likelihood = np.full(len(self._windows), np.nan)
        greedy = np.zeros(len(self._windows), dtype=bool)
        # One wait for the device at the end, not one per batch; hence tensors until here.
        for _, (batch, log_probs, is_best) in self._batches.run(self._forward):
            if batch.windows:
                sums = np.add.reduceat(log_probs.cpu().numpy(), batch.starts)
                likelihood[list(batch.windows)] = sums
                hits = np.logical_and.reduceat(is_best.cpu().numpy(), batch.starts)
                greedy[list(batch.windows)] = hits
        return likelihood, greedy

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
            tokens=tokens.to(self._device),
            # On the CPU it indexes hidden states on whichever device a spread model ends.
            columns=torch.tensor(columns) if self._spread else self._tensor(columns),
            row=self._tensor([row for row, _ in positions]),
            column=self._tensor([place[column] for _, column in positions]),
            source=self._tensor(source),
            target=self._tensor(target),
            windows=tuple(windows),
            starts=np.array(starts, dtype=np.int64),
        )

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    @torch.inference_mode()
    def _forward(self, batch: _Batch) -> _Scored:
        logits = self._logits(batch)  # [rows, K, vocabulary]
        piece = max(1, _PIECE_BYTES // (4 * logits.shape[-1]))
        norms, best = [], []
        for rows, columns in zip(batch.row.split(piece), batch.column.split(piece), strict=True):
            picked = logits[rows, columns].float()
            norms.append(torch.logsumexp(picked, dim=-1))
            best.append(picked.argmax(dim=-1))
        asked = logits[batch.row[batch.source], batch.column[batch.source], batch.target]
        log_probs = asked.double() - torch.cat(norms)[batch.source].double()
        return batch, log_probs, torch.cat(best)[batch.source] == batch.target

    def _logits(self, batch: _Batch) -> torch.Tensor:
        if self._keeps:  # the vocabulary is large: never project positions that nobody scores
            output = self._model(batch.tokens, logits_to_keep=batch.columns, **self._options)
            return torch.as_tensor(output.logits).to(self._device)
        output = self._model(batch.tokens, **self._options)
        return torch.as_tensor(output.logits)[:, batch.columns].to(self._device)
