"""What a live model writes after many prompts, stopped at each prompt's own stop texts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget
from evomerge.evaluation.queries import Generation, Rules
from evomerge.evaluation.writing.batchwise import BatchWriter
from evomerge.evaluation.writing.continuous import ContinuousWriter, Writing
from evomerge.evaluation.writing.rows import takes_rows
from evomerge.evaluation.writing.stopping import Ending

_OF_SAMPLING = """temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff"""
_OF_BEAMS = """length_penalty early_stopping"""
_OF_ASSISTANTS = """is_assistant num_assistant_tokens num_assistant_tokens_schedule
max_matching_ngram_size assistant_confidence_threshold assistant_early_exit assistant_lookbehind
target_lookbehind assistant_ensemble_weight speculation_type"""
_OF_COMPUTING = """use_cache cache_implementation cache_config max_cache_len compile_config
disable_compile continuous_batching_config prefill_chunk_size low_memory renormalize_logits
output_attentions output_hidden_states output_scores output_logits return_dict_in_generate"""
_KNOWN = """do_sample max_length pad_token_id bos_token_id eos_token_id decoder_start_token_id
transformers_version _from_model_config _commit_hash _original_object_hash"""
_IDLE = frozenset(f"{_OF_SAMPLING} {_OF_BEAMS} {_OF_ASSISTANTS} {_OF_COMPUTING} {_KNOWN}".split())
"""Settings of ``generate`` that leave a greedy text as it is, whatever their values."""
_IDLE_AT_ONE = {
    "repetition_penalty",
    "encoder_repetition_penalty",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "guidance_scale",
}

_TOKENS = {"cuda": 65536}
_LEAST_TOKENS, _MOST_TOKENS, _BYTES = 8192, 65536, 1 << 28
"""On a CPU: keys and values of so many bytes, within these limits.

A pass has a fixed cost: 400 texts of up to 64 tokens (0.3 M parameters) took 1.06 s of a core in 72
passes, 1.94 s in 322 (8,192 tokens) and 2.25 s in 613 (4,096 tokens).
"""

_TRIED_TOKENS, _SHARED_TOKENS = 64, 40
_TRIED_STEPS = 2
"""Texts of so many tokens, which begin alike, are gone on with so far before a way is trusted."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_ELSE = 5e-2
"""Of the logits' range. A wrong position or mask moves them by a good part of it."""


class Generator:
    """Runs prompts that share their rules on what the model now is.

    Greedy texts are written with a batch that is always full, where the model allows it; that is
    tried first, against plain passes without a cache. Everything else (sampling, other options of
    ``generate``, models with another memory than keys and values) is left to ``transformers``.

    Args:
        model: a causal ``transformers`` model.
        tokenizer: turns tokens back into text; never encodes here.
        prompts: what the model is to go on from.
        rules: of all of them.
        budget: tokens held at once, those yet to be written included.
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
        tokens = [prompt.tokens for prompt in prompts]
        self._greedy = is_plainly_greedy(rules, model.generation_config)
        # What cannot be answered differently is asked once.
        self._distinct = list(dict.fromkeys(tokens)) if self._greedy else tokens
        places = {prompt: place for place, prompt in enumerate(self._distinct)}
        own = range(len(tokens))
        self._places = [places[prompt] for prompt in tokens] if self._greedy else list(own)
        self._model = model
        self._rules = rules
        self._ending = Ending(tokenizer, rules, model)
        self._budget = budget
        self._device = device
        self._pad = _pad_token(tokenizer)
        self._writer = self._choose()

    @property
    def continuous(self) -> bool:
        """Whether who is done leaves the batch, and who waits takes the place."""
        return isinstance(self._writer, ContinuousWriter)

    def run(self) -> list[str]:
        """The texts, in the order of the prompts.

        Raises:
            TrialError: the model's logits are not numbers, or a text does not fit in memory.
        """
        self._writer = self._writer or self._choose()
        writer = self._writer or self._batch_writer()
        texts = [self._ending.text(written) for written in writer.run()]
        return [texts[place] for place in self._places]

    def _choose(self) -> ContinuousWriter | BatchWriter | None:
        """``None`` if the model, as it is now, cannot be tried: its next state may tell."""
        suits = self._greedy and agrees(self._model, self._distinct, self._device)
        if suits is None:
            return None
        if not suits:
            return self._batch_writer()
        writing = Writing(self._distinct, self._ending.ends, self._rules.max_new_tokens)
        return ContinuousWriter(self._model, writing, self._budget, self._device)

    def _batch_writer(self) -> BatchWriter:
        return BatchWriter(
            self._model,
            self._distinct,
            self._rules,
            self._ending,
            self._budget,
            self._device,
            self._pad,
        )


def tokens_held(model: Any, device: torch.device) -> int:
    """How many tokens' keys and values a batch may hold, until memory says otherwise.

    Args:
        model: small ones hold more, for their texts cost little but the number of passes.
        device: where it is.
    """
    if device.type in _TOKENS:
        return _TOKENS[device.type]
    config = model.config.get_text_config(decoder=True)
    layers, width = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    if not layers or not width:
        return _LEAST_TOKENS
    nbytes = 2 * layers * width * next(model.parameters()).element_size()
    return min(_MOST_TOKENS, max(_LEAST_TOKENS, _BYTES // nbytes))


def is_plainly_greedy(rules: Rules, config: GenerationConfig) -> bool:
    """Whether each next token is just the likeliest: nothing samples, forbids, forces or prefers.

    Args:
        rules: their options override the configuration.
        config: the model's own, whose settings count where a task says nothing.
    """
    options = dict(rules.options)
    if options.get("do_sample") is not False or "max_length" in options:
        return False
    settings = {**vars(config), **options}
    return all(
        name in _IDLE or not value or (name in _IDLE_AT_ONE and value == 1)
        for name, value in settings.items()
    )


def agrees(model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> bool | None:
    """Whether rows of different lengths, and a shared beginning, give plain passes' logits.

    A few texts are gone on with for two steps: no model is trusted by its name. ``None`` if that
    cannot be told now, because the weights give no numbers or memory is short.
    """
    tried = _tried(prompts)
    steps: list[tuple[list[list[int]], torch.Tensor]] = []
    writing = Writing(tried, lambda written: False, _TRIED_STEPS)
    budget = Budget(len(tried) * 2 * _TRIED_TOKENS)
    try:
        if not takes_rows(model):
            return False
        writer = ContinuousWriter(model, writing, budget, device)
        writer.run(lambda texts, logits: steps.append((texts, logits)))
        return all(
            _close(logits, _plain_logits(model, text, device))
            for texts, rows in steps
            for text, logits in zip(texts, rows, strict=True)
        )
    except (TrialError, torch.OutOfMemoryError):
        return None
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        return False  # another kind of cache or of arguments than what was taken for granted


def _tried(prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Texts of different lengths from the prompts' tokens; all but the shortest begin alike."""
    first, *_, other = sorted([*prompts, prompts[0]], key=len, reverse=True)
    whole, begun = first[:_TRIED_TOKENS], first[:_SHARED_TOKENS]
    return [whole, [*begun, *other[-12:]], [*begun, *other[-3:]], other[:8]]


def _plain_logits(model: Any, text: list[int], device: torch.device) -> torch.Tensor:
    accepted = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if "use_cache" in accepted else {}
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([text], device=device), **options).logits
    last: torch.Tensor = logits[0, -1]
    return last


def _close(ours: torch.Tensor, plain: torch.Tensor) -> bool:
    tolerance = _TOLERANCE.get(plain.dtype, _TOLERANCE_ELSE)
    ours, plain = ours.float(), plain.float()
    return bool((ours - plain).abs().max() <= tolerance * (plain.max() - plain.min()))


def _pad_token(tokenizer: Any) -> int:
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in candidates if token is not None)
