"""Log-likelihoods of many windows through their prefix tree: each distinct prefix is run once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from evomerge.errors import TrialError
from evomerge.evaluation.batching import unless_out_of_memory
from evomerge.evaluation.likelihoods.attention import TreeAttention, UnfitError, tree_attention
from evomerge.evaluation.likelihoods.logits import Model, log_probabilities, summed
from evomerge.evaluation.likelihoods.passes import Pass, Planner
from evomerge.evaluation.likelihoods.trie import PrefixTree
from evomerge.evaluation.queries import Window

_SHORTEST_PASS = 16
"""A pass of fewer tokens is not tried when memory runs out: the model itself does not fit."""


class TreePasses:
    """Plans passes over the prefix tree of a fixed list of windows, and runs them.

    Args:
        model: what is run; its attention is exchanged while it runs.
        windows: what is to be scored.
        most_tokens: of one pass; shrinks when memory runs out.
    """

    def __init__(self, model: Model, windows: Sequence[Window], most_tokens: int) -> None:
        self._model = model
        self._tree = PrefixTree.of(windows)
        self._planner = Planner(self._tree, model.device, spread=model.spread)
        self._most_tokens = max(most_tokens, _SHORTEST_PASS)
        self._passes = self._planned(0)

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood (nats, float64) and greediness (bool) of every window, in their order.

        A window whose logits are not numbers has log-likelihood NaN.

        Raises:
            TrialError: not even a short pass fits in memory.
            UnfitError: the model wants something else of its attention.
        """
        if not len(self._tree):
            return np.zeros(0), np.zeros(0, dtype=bool)
        with torch.inference_mode(), tree_attention(self._model.live):
            attention = TreeAttention()
            scored = self._run(attention)
        if not attention.calls:
            raise UnfitError("it has an attention of its own")
        # One wait for the device, at the end.
        log_probs, best = (torch.cat(parts).cpu().numpy() for parts in zip(*scored, strict=True))
        sources, starts = self._tree.sources, self._tree.starts
        return (
            np.add.reduceat(log_probs[sources], starts),
            np.logical_and.reduceat(best[sources], starts),
        )

    def traced(self) -> torch.Tensor:
        """Log-likelihood (nats, float64) of every window, in their order, with autograd's record.

        Memory that runs out is the caller's to deal with.
        """
        attention = TreeAttention()
        with tree_attention(self._model.live):
            scored = [self._forward(attention, one)[0] for one in self._passes]
        sources = torch.from_numpy(self._tree.sources).to(self._model.device)
        return summed(torch.cat(scored)[sources], self._tree.starts)

    def _run(self, attention: TreeAttention) -> list[tuple[torch.Tensor, torch.Tensor]]:
        scored: list[tuple[torch.Tensor, torch.Tensor]] = []
        while len(scored) < len(self._passes):
            one = self._passes[len(scored)]
            result = unless_out_of_memory(partial(self._forward, attention, one))
            if result is None:
                self._shrink(one)
                self._passes = [*self._passes[: len(scored)], *self._planned(one.start)]
            else:
                scored.append(result)
        return scored

    def _forward(self, attention: TreeAttention, one: Pass) -> tuple[torch.Tensor, torch.Tensor]:
        with attention.during(one):
            logits = self._model.logits(one.tokens, one.columns, position_ids=one.positions)
        return log_probabilities(logits[0], one.rows, one.asked)

    def _shrink(self, failed: Pass) -> None:
        tokens = failed.end - failed.start
        if tokens <= _SHORTEST_PASS:
            raise TrialError(f"out of memory with a pass of {tokens} tokens")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._most_tokens = max(tokens // 2, _SHORTEST_PASS)

    def _planned(self, start: int) -> list[Pass]:
        scored = self._model.most_scored
        tokens = self._most_tokens if self._model.keeps else min(self._most_tokens, scored)
        return self._planner.passes(start, tokens, scored)
