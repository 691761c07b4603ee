"""Texts → tokens: what is put to the model, by the rules of lm-eval's Hugging Face backend.

Scores depend on these rules as much as on the weights, so they follow
``lm_eval.models.huggingface.HFLM`` (0.4.13) case by case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Union

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evomerge.errors import TaskError

_EXTRA_LOOKBACK = 2
"""lm-eval looks for a stop sequence in two tokens more than it takes to write it."""


@dataclass(frozen=True)
class Window:
    """One model input and the tokens scored in it.

    Args:
        tokens: the input, at most the model's longest.
        targets: the token that follows each of the input's last ``len(targets)`` positions.
    """

    tokens: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """How likely a text is after a context; the answer is ``(log-likelihood, is it greedy)``."""

    window: Window


@dataclass(frozen=True)
class Rolling:
    """How likely a whole text is; the answer is its log-likelihood in nats.

    A text longer than the model's input is cut into windows whose targets do not overlap.
    """

    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Rules:
    """How a text is to be generated.

    Args:
        stop: the texts that end it; lm-eval adds the tokenizer's end-of-sequence text.
        lookback: in how many of the last tokens a stop text is looked for.
        max_new_tokens: at least 1.
        options: everything else for ``transformers``' ``generate``, as given.
    """

    stop: tuple[str, ...]
    lookback: int
    max_new_tokens: int
    options: tuple[tuple[str, Any], ...]

    @property
    def samples(self) -> bool:
        """Whether two generations may differ."""
        return bool(dict(self.options).get("do_sample"))


@dataclass(frozen=True)
class Generation:
    """What the model writes after a prompt; the answer is the text up to the first stop text."""

    tokens: tuple[int, ...]
    rules: Rules


Query = Union[Continuation, Rolling, Generation]  # noqa: UP007 - Python 3.10 evaluates aliases


class QueryError(ValueError):
    """A text cannot be put to the model as lm-eval would; the message says why."""


class Encoder:
    """Encodes one study's requests; never used once scoring has begun.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's longest input, in tokens.

    Raises:
        QueryError: the tokenizer has neither a beginning- nor an end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None and eos is None:
            raise QueryError("the tokenizer has neither a bos nor an eos token; it needs one")
        self._prefix: int = eos if bos is None else bos
        self._prefix_text = tokenizer.decode(self._prefix)
        self._eos_text = None if eos is None else tokenizer.decode(eos, skip_special_tokens=False)
        self._contexts: dict[str, list[int]] = {}

    def query(self, request_type: str, arguments: tuple[Any, ...]) -> Query:
        """One of lm-eval's requests.

        Raises:
            QueryError: an empty continuation, texts longer than the model's input, beam search.
        """
        if request_type == "loglikelihood":
            return self._continuation(*arguments)
        if request_type == "loglikelihood_rolling":
            return self._rolling(*arguments)
        if request_type == "generate_until":
            return self._generation(*arguments)
        raise QueryError(f"requests of type {request_type!r} cannot be put to a language model")

    def _continuation(self, context: str, continuation: str) -> Continuation:
        if context == "":
            targets = self._tokenizer.encode(continuation, add_special_tokens=False)
            start = [self._prefix]
            if targets and targets[0] == self._prefix:
                start, targets = targets[:1], targets[1:]
        else:
            # Spaces between the two belong to the continuation: most vocabularies glue them to the
            # word that follows.
            bare = context.rstrip()
            start = self._encode_context(bare)
            targets = self._encode(context + continuation)[len(start) :]
        return Continuation(self._window(start, targets))

    def _window(self, start: list[int], targets: list[int]) -> Window:
        if not targets:
            raise QueryError("the continuation to score is empty")
        if not start:
            raise QueryError("the context is blank and the tokenizer puts nothing before it")
        if len(targets) > self._max_length:
            raise QueryError(
                f"the continuation to score has {len(targets)} tokens; the model takes "
                f"{self._max_length}"
            )
        # The last token is only predicted, never read; what does not fit is cut off on the left.
        tokens = (start + targets)[-(self._max_length + 1) :][:-1]
        return Window(tuple(tokens), tuple(targets))

    def _rolling(self, text: str) -> Rolling:
        windows = get_rolling_token_windows(
            token_list=self._encode(text),
            prefix_token=self._prefix,
            max_seq_len=self._max_length,
            context_len=1,
        )
        return Rolling(tuple(self._window(*make_disjoint_window(window)) for window in windows))

    def _generation(self, context: str, options: Mapping[str, Any]) -> Generation:
        rules = self._rules(options)
        room = self._max_length - rules.max_new_tokens
        if room < 1:
            raise QueryError(
                f"up to {rules.max_new_tokens} tokens are to be generated, but the model takes "
                f"{self._max_length} in all"
            )
        bos = self._tokenizer.bos_token
        special = not (bos is not None and context.startswith(bos))
        tokens = self._tokenizer(context, **({} if special else {"add_special_tokens": False}))
        ids = list(tokens["input_ids"])[-room:]
        if not ids:
            raise QueryError("the prompt is empty")
        return Generation(tuple(ids), rules)

    def _rules(self, given: Mapping[str, Any]) -> Rules:
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(given)))
        stop = handle_stop_sequences(options.pop("until", None), eos=self._eos_text)
        encode = partial(self._tokenizer.encode, add_special_tokens=False)
        longest = max((len(encode(text)) for text in stop), default=0)
        if options.get("num_beams", 1) != 1:
            raise QueryError("beam search (num_beams) is not supported; sample or be greedy")
        max_new_tokens = options.pop("max_gen_toks")
        return Rules(
            stop=tuple(stop),
            lookback=longest + _EXTRA_LOOKBACK,
            max_new_tokens=max_new_tokens,
            options=_generate_options(options),
        )

    def _encode_context(self, text: str) -> list[int]:
        if text not in self._contexts:
            self._contexts[text] = self._encode(text)
        return self._contexts[text]

    def _encode(self, text: str) -> list[int]:
        # A chat template writes the beginning-of-sequence token itself: never put two.
        if text.startswith(self._prefix_text):
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        return list(self._tokenizer.encode(text))


def _generate_options(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """lm-eval's options → ``generate``'s: no temperature means greedy, and greedy has none."""
    temperature = options.setdefault("temperature", 0.0)
    if temperature == 0.0 and options.get("do_sample") is None:
        options["do_sample"] = False
    if options.get("do_sample") is False and temperature == 0.0:
        del options["temperature"]
    return tuple(sorted(options.items()))


def context_length(config: Any, tokenizer: Any = None) -> int:
    """A model's longest input in tokens, by lm-eval's rule.

    Args:
        config: the model's ``transformers`` configuration.
        tokenizer: consulted where the configuration does not say; else 2048.

    Raises:
        TaskError: it is no length, such as XLNet's -1 for a model without a limit.
    """
    length = int(resolve_max_length(config, tokenizer))
    if length < 1:
        reason = (
            f"the longest input is {length} tokens by its config.json, with which lm-eval scores "
            "nothing; write there how many it is to take (max_position_embeddings, 1 or more)"
        )
        raise TaskError.at(f"a model of type {getattr(config, 'model_type', '?')}", reason)
    return length
