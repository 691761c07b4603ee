"""Greedy texts with a batch that is always full: who is done leaves, and who waits takes the place.

A step puts one token per unfinished text through the model. A prompt is read up to its last token,
which is what its first step feeds; so prompts of any length join at any time, and a beginning that
prompts share is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from evomerge.errors import TrialError
from evomerge.evaluation.batching import Budget, unless_out_of_memory
from evomerge.evaluation.writing.prefixes import group_by_beginning
from evomerge.evaluation.writing.rows import CachedModel, RowCache

_FREE = 4
"""Waiting prompts are read when one row in so many is free: reading has a pass's fixed cost."""
_SLACK = 64
"""Columns beyond the longest text, so that a full cache is seldom moved to its beginning."""

Observer = Callable[[list[list[int]], torch.Tensor], None]
"""Is shown each step: the tokens of every unfinished text, and the logits of what follows."""


@dataclass(frozen=True)
class Writing:
    """What is to be written.

    Args:
        prompts: in tokens; none is empty.
        ends: whether what was written after a prompt is complete.
        most: tokens to write after each, at least 1.
    """

    prompts: Sequence[Sequence[int]]
    ends: Callable[[Sequence[int]], bool]
    most: int


class ContinuousWriter:
    """Writes greedily after many prompts, on whatever the model now is.

    Args:
        model: a causal ``transformers`` model that ``takes_rows``.
        writing: the prompts, and when a text is complete.
        budget: tokens whose keys and values are held at once, and rows; it shrinks by itself when
            memory runs out, and what was learnt is kept.
        device: where the model takes its input.
    """

    def __init__(self, model: Any, writing: Writing, budget: Budget, device: torch.device) -> None:
        self._model = CachedModel(model, device)
        self._writing = writing
        self._budget = budget
        self._groups = group_by_beginning(writing.prompts)

    def run(self, observe: Observer | None = None) -> list[list[int]]:
        """The tokens written after each prompt, the ones that ended it included.

        Raises:
            TrialError: the model's logits are not numbers, or a text does not fit in memory.
        """
        done: dict[int, list[int]] = {}
        while len(done) < len(self._writing.prompts):
            waiting = [
                _Waiting(index, group.shared, number)
                for number, group in enumerate(self._groups)
                for index in group.members
                if index not in done
            ]
            session = _Session(self._model, self._writing, waiting, self._budget, done, observe)
            with torch.inference_mode():
                if unless_out_of_memory(session.run) is None:
                    self._budget = session.smaller_budget()
        return [done[index] for index in range(len(self._writing.prompts))]


@dataclass(frozen=True)
class _Waiting:
    """Args: prompt: its index. shared: tokens that its group shares. group: its number."""

    prompt: int
    shared: int
    group: int


@dataclass
class _Text:
    """Args: prompt: its index. tokens: of the prompt. written: so far."""

    prompt: int
    tokens: Sequence[int]
    written: list[int] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens that the cache holds: all but the last."""
        return len(self.tokens) + len(self.written) - 1

    @property
    def last(self) -> int:
        return self.written[-1] if self.written else self.tokens[-1]


class _Session:
    """One run within one budget: until all is written or memory runs out.

    Row ``i`` of the cache belongs to the ``i``-th of the active texts.
    """

    def __init__(
        self,
        model: CachedModel,
        writing: Writing,
        waiting: list[_Waiting],
        budget: Budget,
        done: dict[int, list[int]],
        observe: Observer | None,
    ) -> None:
        self._model = model
        self._writing = writing
        self._waiting = waiting[::-1]
        self._budget = budget
        self._done = done
        self._observe = observe
        self._active: list[_Text] = []
        self._tried = 0
        self._beginning: tuple[int, RowCache] | None = None
        self._cache = self._new_cache()

    def run(self) -> bool:
        """Write everything into ``done``; true, for memory has not run out."""
        while self._waiting or self._active:
            if self._cache.end == self._cache.room:
                self._cache = self._new_cache()
            free = self._cache.rows - len(self._active)
            if self._waiting and free * _FREE >= self._cache.rows:
                self._admit()
            self._step()
        return True

    def smaller_budget(self) -> Budget:
        """Half of what did not fit.

        Raises:
            TrialError: it was a single text.
        """
        if self._tried == 1:
            lengths = [len(text.tokens) for text in self._active]
            length = max([self._longest_waiting(), *lengths]) + self._writing.most
            raise TrialError(f"out of memory with a single sequence of {length} tokens")
        tokens = self._tried * self._cache.room // 2
        self._cache, self._beginning = self._model.cache(1, 1), None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Budget(max(1, tokens), self._budget.rows)

    def _step(self) -> None:
        """One token more for every active text; those that are complete leave."""
        active = self._active
        logits = self._model.step(
            self._cache, [text.last for text in active], [text.cached for text in active]
        )
        if self._observe is not None:
            self._observe([[*text.tokens, *text.written] for text in active], logits)
        tokens = logits.argmax(-1)
        # The greatest of numbers with a NaN among them is that NaN.
        broken = logits.gather(1, tokens[:, None])[:, 0].isnan()
        complete = []
        for text, token in zip(active, tokens.masked_fill(broken, -1).tolist(), strict=True):
            if token < 0:
                raise TrialError("the model's logits are not numbers (NaN)")
            text.written.append(token)
            full = len(text.written) == self._writing.most
            complete.append(full or self._writing.ends(text.written))
        if any(complete):
            self._dismiss(complete)

    def _dismiss(self, complete: list[bool]) -> None:
        """Rows from the end take the places of those who leave."""
        rows = complete.count(False)
        holes = [row for row in range(rows) if complete[row]]
        last = [row for row in range(rows, len(complete)) if not complete[row]]
        for text, is_complete in zip(self._active, complete, strict=True):
            if is_complete:
                self._done[text.prompt] = text.written
        for hole, row in zip(holes, last, strict=True):
            self._active[hole] = self._active[row]
        del self._active[rows:]
        if holes:
            longest = max(self._active[row].cached for row in holes)
            self._cache.move(last, holes, longest)

    def _admit(self) -> None:
        """Read as many waiting prompts as there is room for."""
        if self._rows() * 4 > self._cache.rows * 5:
            self._cache = self._new_cache()  # what is left is shorter, so that more fit
        count = min(self._cache.rows - len(self._active), len(self._waiting))
        self._tried = len(self._active) + count
        for _, alike in groupby(self._waiting[: -count - 1 : -1], lambda one: one.group):
            self._read(list(alike))
        del self._waiting[-count:]

    def _read(self, waiting: list[_Waiting]) -> None:
        """Prompts of one group, up to their last tokens."""
        shared = waiting[0].shared
        texts = [_Text(one.prompt, self._writing.prompts[one.prompt]) for one in waiting]
        rest = [text.tokens[shared:-1] for text in texts]
        width = max(map(len, rest))
        cache = self._model.cache(len(texts), shared + width, shared)
        if shared:
            cache.repeat(self._read_beginning(waiting[0], texts[0].tokens[:shared]), shared)
        if width:
            self._model.read(cache, rest, shared)
        self._cache.put(cache, len(self._active), [text.cached for text in texts])
        self._active += texts

    def _read_beginning(self, waiting: _Waiting, tokens: Sequence[int]) -> RowCache:
        """What a group shares, in one row; the last one is kept, for a group waits together."""
        if self._beginning is None or self._beginning[0] != waiting.group:
            cache = self._model.cache(1, len(tokens))
            self._model.read(cache, [tokens], 0)
            self._beginning = waiting.group, cache
        return self._beginning[1]

    def _new_cache(self) -> RowCache:
        """With room for the longest of what is left; what is active goes along."""
        cached = [text.cached for text in self._active]
        cache = self._model.cache(
            max(self._rows(), len(cached)),
            self._room(),
            max([self._longest_waiting() - 1, *cached]),
        )
        if cached:
            cache.keep(self._cache, len(cached), max(cached))
        return cache

    def _rows(self) -> int:
        fits = max(1, self._budget.tokens // self._room())
        return min(fits, self._budget.rows or fits, len(self._active) + len(self._waiting))

    def _room(self) -> int:
        """Columns for the longest text that is left, and some more where others follow."""
        lengths = [len(text.tokens) for text in self._active]
        longest = max([self._longest_waiting(), *lengths]) + self._writing.most
        rows = len(self._waiting) + len(lengths)
        all_at_once = rows * longest <= self._budget.tokens and rows <= (self._budget.rows or rows)
        return longest if all_at_once else longest + min(_SLACK, self._writing.most)

    def _longest_waiting(self) -> int:
        return max((len(self._writing.prompts[one.prompt]) for one in self._waiting), default=0)
