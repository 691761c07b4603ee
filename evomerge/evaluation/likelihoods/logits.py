"""A model's logits, where they are asked for only, and the probabilities in them, in float32."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import torch

_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
_PIECE_BYTES = {"cuda": 1 << 30}
_PIECE_BYTES_ELSEWHERE = 1 << 28
"""The vocabulary is summed over in pieces of at most so much float32."""


class Model:
    """A live causal model, called for the logits of some positions.

    Args:
        model: of ``transformers``.
        device: where it takes its input.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.live = model
        self.device = device
        parameters = inspect.signature(model.forward).parameters
        self.spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
        """Whether it lies on several devices."""
        self.keeps = "logits_to_keep" in parameters
        """Whether it projects chosen positions only."""
        self.caches = "use_cache" in parameters

    @property
    def most_scored(self) -> int:
        """Positions whose logits make one piece; at least 1."""
        vocabulary = self.live.config.get_text_config().vocab_size
        return max(1, _piece_bytes(self.device) // (4 * vocabulary))

    @property
    def cache_name(self) -> str | None:
        """What its caches are called in calls; ``None`` if it takes none."""
        parameters = inspect.signature(self.live.forward).parameters
        return next((name for name in _CACHE_NAMES if name in parameters), None)

    def remember(self, tokens: torch.Tensor, cache: Any = None) -> Any:
        """The cache of a beginning.

        Args:
            tokens: ``[1, n]``.
            cache: of what comes before them; left as it is.
        """
        from transformers import DynamicCache

        whole = DynamicCache(config=self.live.config) if cache is None else copy.deepcopy(cache)
        last = torch.tensor([tokens.shape[1] - 1], device="cpu" if self.spread else self.device)
        self.logits(tokens, last, **self._with(whole))
        return whole

    def continued(self, cache: Any, rows: int) -> dict[str, Any]:
        """Options of a call whose rows all go on after a cache of one row, which stays as it is."""
        own = copy.deepcopy(cache)
        own.reorder_cache(torch.zeros(rows, dtype=torch.long, device=self.device))
        return self._with(own)

    def _with(self, cache: Any) -> dict[str, Any]:
        return {str(self.cache_name): cache, "use_cache": True}

    def logits(self, tokens: torch.Tensor, columns: torch.Tensor, **options: Any) -> torch.Tensor:
        """``[rows, K, vocabulary]``.

        Args:
            tokens: ``[rows, longest]``.
            columns: ``[K]`` the positions that are asked for.
            options: for the model, beside.
        """
        if self.caches:
            options.setdefault("use_cache", False)
        if self.keeps:  # the vocabulary is large: never project positions that nobody scores
            output = self.live(tokens, logits_to_keep=columns, **options)
            return torch.as_tensor(output.logits).to(self.device)
        output = self.live(tokens, **options)
        return torch.as_tensor(output.logits)[:, columns].to(self.device)


def log_probabilities(
    logits: torch.Tensor, rows: torch.Tensor, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability (float64) of asked tokens, and whether nothing is likelier.

    Args:
        logits: ``[K, vocabulary]``; each row is normalised once, in float32, in pieces.
        rows: ``[T]`` of each asked token, its row.
        asked: ``[T]`` tokens.
    """
    piece = max(1, _piece_bytes(logits.device) // (4 * logits.shape[-1]))
    norms, best = [], []
    for some in logits.split(piece):
        exact = some.float()
        norms.append(torch.logsumexp(exact, dim=-1))
        best.append(exact.argmax(dim=-1))
    chosen = logits[rows, asked].double()
    return chosen - torch.cat(norms)[rows].double(), torch.cat(best)[rows] == asked


def summed(log_probs: torch.Tensor, starts: np.ndarray) -> torch.Tensor:
    """``[len(starts)]`` sums of the ``[T]`` values from each start to the next one."""
    counts = np.diff(starts, append=len(log_probs))
    owner = torch.from_numpy(np.repeat(np.arange(len(starts)), counts)).to(log_probs.device)
    return log_probs.new_zeros(len(starts)).index_add(0, owner, log_probs)


def _piece_bytes(device: torch.device) -> int:
    return _PIECE_BYTES.get(device.type, _PIECE_BYTES_ELSEWHERE)
