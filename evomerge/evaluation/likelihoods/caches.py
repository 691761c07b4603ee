"""Log-likelihoods with caches of shared beginnings, for models that no prefix tree can be put to.

What many windows begin with is run once, and what the model keeps of it is copied for each batch
that goes on from there; beginnings of beginnings likewise. Any model with a cache can do that:
recurrent ones, and those whose attention counts positions by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget, unless_out_of_memory
from evomerge.evaluation.likelihoods.attention import UnfitError
from evomerge.evaluation.likelihoods.logits import Model
from evomerge.evaluation.likelihoods.plain import PlainBatches
from evomerge.evaluation.likelihoods.trie import shared_length
from evomerge.evaluation.queries import Window

_WORTH = 64
"""Tokens that take about as long as a call."""


@dataclass(frozen=True)
class _Beginning:
    """What some windows begin with.

    Args:
        tokens: ``[1, n]`` those that its own beginning does not have; ``None`` for no tokens.
        windows: the windows that are batched after it.
        batches: theirs.
        longer: beginnings that begin with it.
    """

    tokens: torch.Tensor | None
    windows: list[int]
    batches: PlainBatches
    longer: tuple[_Beginning, ...]


class CachedPrefixes:
    """Plans the shared beginnings of a fixed list of windows, and runs them.

    Args:
        model: what is run.
        windows: what is to be scored.
        budget: of one batch, beginnings not counted.
        worth: a beginning is run by itself if that saves so many tokens.

    Raises:
        UnfitError: the model has no cache, or the windows share nothing that is worth one.
    """

    def __init__(
        self, model: Model, windows: Sequence[Window], budget: Budget, *, worth: int = _WORTH
    ) -> None:
        if model.cache_name is None:
            raise UnfitError("it takes no cache")
        self._model = model
        self._windows = windows
        self._budget = budget
        self._worth = worth
        by_tokens = sorted(range(len(windows)), key=lambda index: windows[index].tokens)
        self._root = self._beginning(by_tokens, 0, 0)
        if not self._root.longer:
            raise UnfitError("no beginning is shared by enough windows")

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood (nats, float64) and greediness (bool) of every window, in their order.

        A window whose logits are not numbers has log-likelihood NaN.

        Raises:
            TrialError: a single sequence does not fit in memory.
        """
        likelihood = np.full(len(self._windows), np.nan)
        greedy = np.zeros(len(self._windows), dtype=bool)
        waiting: list[tuple[_Beginning, Any]] = [(self._root, None)]
        while waiting:
            one, cache = waiting.pop()
            if one.tokens is not None:
                cache = self._remembered(one.tokens, cache)
            if one.windows:
                likelihood[one.windows], greedy[one.windows] = one.batches.run(cache)
            waiting += [(longer, cache) for longer in reversed(one.longer)]
        return likelihood, greedy

    @torch.inference_mode()
    def _remembered(self, tokens: torch.Tensor, cache: Any) -> Any:
        found = unless_out_of_memory(lambda: self._model.remember(tokens, cache))
        if found is None:
            raise TrialError(f"out of memory with a single sequence of {tokens.shape[1]} tokens")
        return found

    def _beginning(self, windows: list[int], before: int, known: int) -> _Beginning:
        """Of windows, sorted, that share ``known`` tokens, of which ``before`` are run already."""
        longer, loose = self._parted(windows, known, known)
        tokens = None
        if known:
            shared = self._windows[windows[0]].tokens[before:known]
            tokens = torch.tensor([shared], device=self._model.device)
        asked = [self._windows[index] for index in loose]
        batches = PlainBatches(self._model, asked, self._budget, known=known)
        return _Beginning(tokens, loose, batches, tuple(longer))

    def _parted(
        self, windows: list[int], known: int, same: int
    ) -> tuple[list[_Beginning], list[int]]:
        """Longer beginnings among windows that share ``same`` tokens, and what has none."""
        longer: list[_Beginning] = []
        # Where a window is scored, its tokens must go through the model with it.
        loose = [index for index in windows if self._first_scored(index) <= same]
        others = [index for index in windows if self._first_scored(index) > same]
        for _, members in groupby(others, key=lambda index: self._windows[index].tokens[same]):
            group = list(members)
            shared = self._shared(group)
            rows = len({self._windows[index].tokens for index in group})
            if (rows - 1) * (shared - known) >= self._worth:
                longer.append(self._beginning(group, known, shared))
            elif rows > 1:
                found, rest = self._parted(group, known, shared)
                longer += found
                loose += rest
            else:
                loose += group
        return longer, loose

    def _first_scored(self, index: int) -> int:
        window = self._windows[index]
        return len(window.tokens) - len(window.targets)

    def _shared(self, group: list[int]) -> int:
        """How many tokens at the beginning all have that none is scored at; they are sorted."""
        same = shared_length(self._windows[group[0]].tokens, self._windows[group[-1]].tokens)
        return min(same, *map(self._first_scored, group))
