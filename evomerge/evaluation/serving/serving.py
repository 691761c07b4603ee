"""Items put to a model that runs in a server of its own (vLLM), through a narrow seam.

What a server must do is :class:`Server`; what is asked of it are token numbers, so that the same
questions are put as to a live ``transformers`` model and the answers go to the same judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lm_eval.models.utils import postprocess_generated_text

from evomerge.errors import Fault, TaskError, TrialError
from evomerge.evaluation.items import ItemSet, picked
from evomerge.evaluation.queries import Continuation, Generation, Query, Rolling, Rules, Window
from evomerge.evaluation.scores import Scores

_SAMPLING_SEED = 1234
_MOST_LAST = 64
"""Last tokens of one question; vLLM takes 128."""

_NAN = "the model's logits are not numbers (NaN)"
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": 0.0}
"""``transformers``' values where neither the task nor the model's generation settings say any."""

_OPTIONS = frozenset({*_SAMPLING, "repetition_penalty", "do_sample", "num_beams", "use_cache"})

Answer = tuple[float, bool] | float | str


@dataclass(frozen=True)
class Ask:
    """How likely some tokens are.

    Args:
        tokens: the model's input, at most its longest.
        before: so many of the input's own last tokens are scored, each after those before it.
        last: tokens, of which each is scored after the whole input.
    """

    tokens: tuple[int, ...]
    before: int
    last: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """The answer to :class:`Ask`.

    Args:
        before: of each of the input's scored tokens its log-probability in nats, and whether it was
            the likeliest.
        last: log-probability of each token of ``Ask.last``, in nats.
        likeliest: the token that the model would write after the whole input.
    """

    before: tuple[tuple[float, bool], ...]
    last: Mapping[int, float]
    likeliest: int


@dataclass(frozen=True)
class Write:
    """What the model goes on with.

    Args:
        tokens: the prompt.
        stop: texts that end the writing; the server may write on, never stop earlier.
        max_new_tokens: at least 1.
        sampling: temperature (0 is greedy), top_p, top_k, min_p, repetition_penalty.
        seed: of what is drawn.
    """

    tokens: tuple[int, ...]
    stop: tuple[str, ...]
    max_new_tokens: int
    sampling: Mapping[str, float]
    seed: int


@dataclass(frozen=True)
class Written:
    """The answer to :class:`Write`.

    Args:
        tokens: what was written, up to and with a token that ends a text.
        finite: whether every log-probability was a number.
    """

    tokens: tuple[int, ...]
    finite: bool


class Server(Protocol):
    """A running model whose weights may change between calls, never during one."""

    @property
    def generation(self) -> Mapping[str, Any]:
        """What the model's own generation settings say (``generation_config.json``)."""
        ...

    def likelihoods(self, asks: Sequence[Ask]) -> list[Likelihood]:
        """The answers, in order."""
        ...

    def write(self, writes: Sequence[Write]) -> list[Written]:
        """The answers, in order."""
        ...


def check_servable(items: ItemSet) -> None:
    """Refuse items whose texts are to be generated in a way that a server does not know.

    Raises:
        TaskError: names the tasks and their options.
    """
    allowed = ", ".join(sorted(_OPTIONS))
    faults = [
        Fault(
            f"task {owner}",
            f"generation_kwargs: {name!r} is not known to the backend vllm; allowed: {allowed}",
        )
        for query, owner in zip(items.queries, items.owners, strict=True)
        if isinstance(query, Generation)
        for name, _ in query.rules.options
        if name not in _OPTIONS
    ]
    if faults:
        raise TaskError(dict.fromkeys(faults))


class ServedScorer:
    """Puts a fixed set of items to a server: ``Scorer`` for models that do not run here.

    Windows with the same input (the choices of a question but for their last tokens) are asked
    once. Greedy answers are a live model's; sampled ones are drawn from other random numbers.

    Args:
        server: the running model.
        tokenizer: the one that ``items`` were built with; only decodes here.
        items: what is asked.
        places: the queries of ``items`` that are put, by their places; None is all of them.

    Raises:
        TaskError: a task wants texts generated in a way that the server does not know.
    """

    def __init__(
        self,
        server: Server,
        tokenizer: Any,
        items: ItemSet,
        *,
        places: Sequence[int] | None = None,
    ) -> None:
        self.items = items
        self._server, self._tokenizer = server, tokenizer
        chosen = range(len(items.queries)) if places is None else places
        self._owners = picked(items.owners, chosen)
        self._repeats = picked(items.repeats, chosen)
        self._queries = picked(items.queries, chosen)
        self._windows = [window for query in self._queries for window in _windows(query)]
        self._asks, self._asked = _asks(self._windows)
        self._writes: list[tuple[int, Write]] = []
        check_servable(items)
        for at, (query, place) in enumerate(zip(self._queries, chosen, strict=True)):
            if isinstance(query, Generation):
                times = self._repeats[at] if query.rules.samples else 1
                self._writes += [(at, self._write(query, place, time)) for time in range(times)]

    def score(self, *, bootstrap: int = 0) -> Scores:
        """The model's scores; see :meth:`Scorer.score`.

        Raises:
            TrialError: a logit is not a number, or a task's own code fails on the answers.
        """
        return self.items.judge(self.respond(), bootstrap=bootstrap)

    def respond(self) -> list[list[Answer]]:
        """Per query of the items, the model's answers to its repeats.

        Raises:
            TrialError: a logit is not a number; names the task.
        """
        answers = self._likelihoods()
        written = self._server.write([write for _, write in self._writes])
        for (place, _), one in zip(self._writes, written, strict=True):
            if not one.finite:
                raise TrialError(f"task {self._owners[place]}: {_NAN}")
            query = self._queries[place]
            assert isinstance(query, Generation)  # for the type checker: see __init__
            answers[place].append(self._text(query.rules, one.tokens))
        # What cannot be answered differently was asked once, however often it is to be repeated.
        return [
            given * (repeats // len(given))
            for given, repeats in zip(answers, self._repeats, strict=True)
        ]

    def _likelihoods(self) -> list[list[Answer]]:
        replies = self._server.likelihoods(self._asks)
        values = [
            _value(window, replies[asked])
            for window, asked in zip(self._windows, self._asked, strict=True)
        ]
        answers: list[list[Answer]] = []
        start = 0
        for query, owner in zip(self._queries, self._owners, strict=True):
            end = start + len(_windows(query))
            if any(math.isnan(value) for value, _ in values[start:end]):
                raise TrialError(f"task {owner}: {_NAN}")
            if isinstance(query, Continuation):
                answers.append([values[start]])
            elif isinstance(query, Rolling):
                answers.append([math.fsum(value for value, _ in values[start:end])])
            else:
                answers.append([])
            start = end
        return answers

    def _write(self, query: Generation, place: int, time: int) -> Write:
        rules = query.rules
        return Write(
            tokens=query.tokens,
            stop=rules.stop,
            max_new_tokens=rules.max_new_tokens,
            sampling=_sampling(rules, self._server.generation),
            seed=_SAMPLING_SEED + (place << 16) + time,
        )

    def _text(self, rules: Rules, tokens: tuple[int, ...]) -> str:
        """The text that lm-eval would have let the model write: it looks at the last tokens."""
        for end in range(1, len(tokens) + 1):
            recent = self._tokenizer.decode(tokens[max(0, end - rules.lookback) : end])
            if any(stop in recent for stop in rules.stop):
                tokens = tokens[:end]
                break
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(text, stop=list(rules.stop), think_end_token=None))


def _windows(query: Query) -> tuple[Window, ...]:
    if isinstance(query, Continuation):
        return (query.window,)
    return query.windows if isinstance(query, Rolling) else ()


def _asks(windows: Sequence[Window]) -> tuple[list[Ask], list[int]]:
    """What is asked, and for each window the number of the ask that answers it."""
    before: list[int] = []
    last: list[dict[int, None]] = []
    inputs: list[tuple[int, ...]] = []
    places: dict[tuple[int, ...], int] = {}
    asked = []
    for window in windows:
        at = places.get(window.tokens)
        if at is None or len(last[at]) == _MOST_LAST:
            at = places[window.tokens] = len(inputs)
            inputs.append(window.tokens)
            before.append(0)
            last.append({})
        before[at] = max(before[at], len(window.targets) - 1)
        last[at][window.targets[-1]] = None
        asked.append(at)
    parts = zip(inputs, before, last, strict=True)
    return [Ask(tokens, count, tuple(ends)) for tokens, count, ends in parts], asked


def _value(window: Window, reply: Likelihood) -> tuple[float, bool]:
    """A window's log-likelihood, and whether each of its targets was the likeliest token."""
    *_, end = window.targets
    inner = reply.before[len(reply.before) - (len(window.targets) - 1) :]
    value = math.fsum([*(value for value, _ in inner), reply.last[end]])
    return value, all(best for _, best in inner) and reply.likeliest == end


def _sampling(rules: Rules, generation: Mapping[str, Any]) -> dict[str, float]:
    """As ``transformers``: the task's option, else the model's own setting, else a default."""
    options = {**dict(generation), **dict(rules.options)}
    sampling = {"repetition_penalty": float(options.get("repetition_penalty") or 1.0)}
    if not rules.samples:
        return {**sampling, "temperature": 0.0}
    drawn = {name: options.get(name) for name in _SAMPLING}
    return {
        **sampling,
        **{n: float(_SAMPLING[n] if value is None else value) for n, value in drawn.items()},
    }
