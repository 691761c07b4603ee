"""What a live model writes after many prompts, stopped at each prompt's own stop texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils import postprocess_generated_text
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget, Indices, ShrinkingBatches
from evomerge.evaluation.queries import Generation, Rules

_SAMPLING_SEED = 1234
"""``simple_evaluate`` seeds torch with this; here every batch does, plus its first prompt."""


@dataclass(frozen=True)
class _Batch:
    """Args: prompts: their indices. tokens, mask: ``[rows, longest]``, padded on the left."""

    prompts: Indices
    tokens: torch.Tensor
    mask: torch.Tensor


class Generator:
    """Plans the batches of prompts that share their rules, and runs them on what the model now is.

    Args:
        model: a causal ``transformers`` model.
        tokenizer: turns tokens back into text; never encodes here.
        prompts: what the model is to go on from.
        rules: of all of them.
        budget: of one batch, tokens yet to be written included.
        device: where the model takes its input.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[Generation],
        rules: Rules,
        budget: Budget,
        device: torch.device,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._rules = rules
        self._device = device
        self._pad = _pad_token(tokenizer)
        lengths = [len(prompt.tokens) + rules.max_new_tokens for prompt in prompts]
        self._batches: ShrinkingBatches[_Batch, list[str]] = ShrinkingBatches(
            lengths, budget, self._prepare
        )

    def run(self) -> list[str]:
        """The texts, in the order of the prompts.

        Raises:
            TrialError: the model's logits are not numbers.
        """
        texts = [""] * len(self._prompts)
        for indices, written in self._batches.run(self._forward):
            for index, text in zip(indices, written, strict=True):
                texts[index] = text
        return texts

    def _prepare(self, indices: Indices) -> _Batch:
        inputs = [self._prompts[index].tokens for index in indices]
        width = max(map(len, inputs))
        tokens = torch.full((len(inputs), width), self._pad, dtype=torch.long)
        mask = torch.zeros(len(inputs), width, dtype=torch.long)
        for row, prompt in enumerate(inputs):
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return _Batch(indices, tokens.to(self._device), mask.to(self._device))

    def _forward(self, batch: _Batch) -> list[str]:
        width = batch.tokens.shape[1]
        stop = _StopTexts(self._tokenizer, self._rules, width)
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
            self._text(row[width:], stop.ends.get(number))
            for number, row in enumerate(sequences.tolist())
        ]

    def _text(self, tokens: list[int], end: int | None) -> str:
        ends = [number + 1 for number, token in enumerate(tokens) if token in self._ending_tokens()]
        # What follows in the row is padding, and a padding token need not be a special one.
        tokens = tokens[: min([*ends[:1], *([] if end is None else [end]), len(tokens)])]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return str(
            postprocess_generated_text(text, stop=list(self._rules.stop), think_end_token=None)
        )

    def _ending_tokens(self) -> set[int]:
        ending = self._model.generation_config.eos_token_id
        return set(ending) if isinstance(ending, list) else {ending}

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
    """Ends each row of a batch by itself, where one of its stop texts has appeared.

    lm-eval looks at the last tokens only, special ones included; so does this.
    """

    def __init__(self, tokenizer: Any, rules: Rules, width: int) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        self._width = width
        self.ends: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        written = input_ids[:, self._width :]
        recent = written[:, -self._rules.lookback :].tolist()
        for row, tokens in enumerate(recent):
            if row in self.ends:
                continue
            text = self._tokenizer.decode(tokens)
            if any(stop in text for stop in self._rules.stop):
                self.ends[row] = written.shape[1]
        done = [row in self.ends for row in range(len(recent))]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class _RefuseNaN(LogitsProcessor):
    """Greedy choice would take some token among NaNs without a word."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bool(torch.isnan(scores).any()):
            raise TrialError("the model's logits are not numbers (NaN)")
        return scores


def _pad_token(tokenizer: Any) -> int:
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in candidates if token is not None)
