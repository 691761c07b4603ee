"""Texts written by ``transformers``' own ``generate`` in batches: every option, any model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget, Indices, ShrinkingBatches
from evomerge.evaluation.queries import Rules
from evomerge.evaluation.writing.stopping import Ending

_SAMPLING_SEED = 1234
"""``simple_evaluate`` seeds torch with this; here every batch does, plus its first prompt."""


@dataclass(frozen=True)
class _Batch:
    """Args: prompts: their indices. tokens, mask: ``[rows, longest]``, padded on the left."""

    prompts: Indices
    tokens: torch.Tensor
    mask: torch.Tensor


class BatchWriter:
    """Plans batches of prompts, and runs them on what the model now is.

    Args:
        model: a causal ``transformers`` model.
        prompts: what the model is to go on from, in tokens.
        rules: of all of them.
        ending: tells where a text ends.
        budget: of one batch, tokens yet to be written included.
        device: where the model takes its input.
        pad: the token for what is no token.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        rules: Rules,
        ending: Ending,
        budget: Budget,
        device: torch.device,
        pad: int,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._rules = rules
        self._ending = ending
        self._device = device
        self._pad = pad
        lengths = [len(prompt) + rules.max_new_tokens for prompt in prompts]
        self._batches: ShrinkingBatches[_Batch, list[list[int]]] = ShrinkingBatches(
            lengths, budget, self._prepare
        )

    def run(self) -> list[list[int]]:
        """What was written after each prompt, in tokens; padding may follow.

        Raises:
            TrialError: the model's logits are not numbers, or a prompt does not fit in memory.
        """
        texts: list[list[int]] = [[] for _ in self._prompts]
        for indices, written in self._batches.run(self._forward):
            for index, text in zip(indices, written, strict=True):
                texts[index] = text
        return texts

    def _prepare(self, indices: Indices) -> _Batch:
        inputs = [self._prompts[index] for index in indices]
        width = max(map(len, inputs))
        tokens = torch.full((len(inputs), width), self._pad, dtype=torch.long)
        mask = torch.zeros(len(inputs), width, dtype=torch.long)
        for row, prompt in enumerate(inputs):
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return _Batch(indices, tokens.to(self._device), mask.to(self._device))

    def _forward(self, batch: _Batch) -> list[list[int]]:
        width = batch.tokens.shape[1]
        stop = _StopTexts(self._ending, width)
        options = dict(self._rules.options)
        options.setdefault("max_length", width + self._rules.max_new_tokens)
        with self._random_numbers(batch):
            sequences = self._model.generate(
                input_ids=batch.tokens,
                attention_mask=batch.mask,
                stopping_criteria=StoppingCriteriaList([stop]),
                logits_processor=LogitsProcessorList([_RefuseNaN()]),
                pad_token_id=self._pad,
                use_cache=True,
                **options,
            )
        return [
            row[width:][: stop.ends.get(number)] for number, row in enumerate(sequences.tolist())
        ]

    @contextlib.contextmanager
    def _random_numbers(self, batch: _Batch) -> Iterator[None]:
        """A stream of its own for a batch that samples; the process's own stays as it was."""
        if not self._rules.samples:
            yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_SAMPLING_SEED + batch.prompts[0])
            yield


class _StopTexts(StoppingCriteria):
    """Ends each row of a batch by itself, where one of its stop texts has appeared."""

    def __init__(self, ending: Ending, width: int) -> None:
        self._ending = ending
        self._width = width
        self.ends: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        written = input_ids[:, self._width :].tolist()
        for row, tokens in enumerate(written):
            if row not in self.ends and self._ending.stops(tokens):
                self.ends[row] = len(tokens)
        done = [row in self.ends for row in range(len(written))]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class _RefuseNaN(LogitsProcessor):
    """Greedy choice would take some token among NaNs without a word."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bool(torch.isnan(scores).any()):
            raise TrialError("the model's logits are not numbers (NaN)")
        return scores
