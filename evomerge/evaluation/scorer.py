"""A live model → scores, with nothing tokenised, built or loaded in between."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget
from evomerge.evaluation.items import ItemSet, picked
from evomerge.evaluation.likelihoods.likelihood import Likelihoods
from evomerge.evaluation.queries import Continuation, Generation, Query, Rolling, Rules, Window
from evomerge.evaluation.scores import Scores
from evomerge.evaluation.writing.generation import Generator, tokens_held

_LOGGER = logging.getLogger(__name__)

_TOKENS = {"cuda": 16384}
_TOKENS_ELSEWHERE = 1024
"""On a CPU larger batches only leave its caches: 4,096 took 1.5 times as long (0.9M parameters)."""

Answer = tuple[float, bool] | float | str


class Scorer:
    """Puts a fixed set of items to a live model, whose weights may change between calls.

    Batches are planned, and their tensors made, once; :meth:`score` is the model's forward passes
    and the tasks' own judgement of the answers.

    Args:
        model: a causal ``transformers`` model; put into evaluation mode.
        tokenizer: the one that ``items`` were built with.
        items: what is asked.
        batch_tokens: tokens in one batch, padding included; the default depends on the device. It
            shrinks by itself when memory runs out.
        batch_size: sequences in one batch; no limit by default.
        places: the queries of ``items`` that are put, by their places; None is all of them.
        device: where the model takes its input; by default where its first parameter is.

    Raises:
        ValueError: a batch size below 1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        items: ItemSet,
        *,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        for name, number in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"{name}: {number}; write at least 1")
        model.eval()
        self.items = items
        where = torch.device(next(model.parameters()).device if device is None else device)
        tokens = batch_tokens or _TOKENS.get(where.type, _TOKENS_ELSEWHERE)
        budget = Budget(tokens, batch_size)
        writing = Budget(batch_tokens or tokens_held(model, where), batch_size)
        chosen = range(len(items.queries)) if places is None else places
        self._owners = picked(items.owners, chosen)
        self._repeats = picked(items.repeats, chosen)
        self._queries = picked(items.queries, chosen)
        self._prompts = {
            place: query
            for place, query in enumerate(self._queries)
            if isinstance(query, Generation)
        }
        windows = [window for query in self._queries for window in _windows(query)]
        ends = np.cumsum([len(_windows(query)) for query in self._queries], dtype=int).tolist()
        self._spans = [slice(*span) for span in pairwise([0, *ends])]
        self._likelihoods = Likelihoods(model, windows, budget, where)
        if self._likelihoods.note:
            _LOGGER.warning("%s", *self.notes)
        self._generators = []
        for rules, places in self._places_by_rules().items():
            prompts = [self._prompts[place] for place in places]
            generator = Generator(model, tokenizer, prompts, rules, writing, where)
            self._generators.append((places, generator))

    @property
    def way(self) -> str:
        """How log-likelihoods are computed: by ``prefix tree``, the quickest; with ``cached
        prefixes``; or in ``plain batches``, where the others do not give what these give."""
        return self._likelihoods.way

    @property
    def notes(self) -> tuple[str, ...]:
        """Why it is not the quickest way, one sentence; nothing if it is."""
        note = self._likelihoods.note
        return (f"log-likelihoods are computed with {self.way} ({note})",) if note else ()

    def score(self, *, bootstrap: int = 0) -> Scores:
        """The model's scores, equal to ``lm_eval.simple_evaluate``'s on ``items.samples``.

        Args:
            bootstrap: resamples for the standard errors of metrics that are no mean (perplexity);
                0 for none.

        Raises:
            TrialError: a logit is not a number, a sequence does not fit in memory, or a task's own
                code fails on the answers; names the task.
        """
        return self.items.judge(self.respond(), bootstrap=bootstrap)

    def respond(self) -> list[list[Answer]]:
        """Per query of the items, or of the chosen places, the model's answers to its repeats.

        Raises:
            TrialError: a logit is not a number, or a sequence does not fit in memory.
        """
        answers = self._likelihood_answers()
        for places, generator in self._generators:
            try:
                texts = generator.run()
            except TrialError as error:
                raise TrialError(f"task {self._owners[places[0]]}: {error}") from error
            for place, text in zip(places, texts, strict=True):
                answers[place].append(text)
        # What cannot be answered differently was asked once, however often it is to be repeated.
        return [
            given * (repeats // len(given))
            for given, repeats in zip(answers, self._repeats, strict=True)
        ]

    def _places_by_rules(self) -> dict[Rules, list[int]]:
        """Generation rules → the queries under them, one entry per answer that may differ."""
        places: dict[str, list[int]] = {}
        rules: dict[str, Rules] = {}
        for place, query in self._prompts.items():
            key = repr(query.rules)
            rules[key] = query.rules
            times = self._repeats[place] if query.rules.samples else 1
            places.setdefault(key, []).extend([place] * times)
        return {rules[key]: found for key, found in places.items()}

    def _likelihood_answers(self) -> list[list[Answer]]:
        likelihood, greedy = self._likelihoods.run()
        broken = np.flatnonzero(np.isnan(likelihood))
        if len(broken):
            first = next(
                place for place, windows in enumerate(self._spans) if broken[0] < windows.stop
            )
            raise TrialError(
                f"task {self._owners[first]}: the model's logits are not numbers (NaN)"
            )
        # Python's own numbers: reading them one by one from an array is slow.
        values, hits = likelihood.tolist(), greedy.tolist()
        answers: list[list[Answer]] = []
        for query, windows in zip(self._queries, self._spans, strict=True):
            if isinstance(query, Continuation):
                answers.append([(values[windows.start], hits[windows.start])])
            elif isinstance(query, Rolling):
                answers.append([float(likelihood[windows].sum())])
            else:
                answers.append([])
        return answers


def _windows(query: Query) -> tuple[Window, ...]:
    if isinstance(query, Continuation):
        return (query.window,)
    return query.windows if isinstance(query, Rolling) else ()
