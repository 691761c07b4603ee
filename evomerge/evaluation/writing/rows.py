"""Keys and values of texts of different lengths, a row each, whose rows come and go.

Every row ends in the same column, as with padding on the left: one write per layer serves all
rows, and masks that count columns (causal, sliding) count tokens. Nothing grows by copying.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer


@dataclass
class _Span:
    """What the model sees: so many rows, in the columns from ``start``; ``end`` is written next."""

    rows: int
    start: int
    end: int


class _Layer(DynamicLayer):
    """One layer's keys and values, ``[rows, heads, room, width]`` each, made at the first write.

    A layer with a sliding window keeps everything; the mask alone narrows its view.
    """

    def __init__(self, span: _Span, rows: int, room: int, sliding: bool) -> None:
        super().__init__()
        self.is_sliding = sliding
        self._span = span
        self._rows = rows
        self._room = room

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros: even a masked column must not hold what 0 times is no number.
        shapes = [
            (self._rows, s.shape[1], self._room, s.shape[3]) for s in (key_states, value_states)
        ]
        self.keys, self.values = key_states.new_zeros(shapes[0]), value_states.new_zeros(shapes[1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        span = self._span
        last = span.end + key_states.shape[2]
        self.keys[: span.rows, :, span.end : last] = key_states
        self.values[: span.rows, :, span.end : last] = value_states
        return self.keys[: span.rows, :, span.start : last], self.values[
            : span.rows, :, span.start : last
        ]

    def get_seq_length(self) -> int:
        return self._span.end - self._span.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class RowCache(Cache):
    """``transformers``' cache with room for so many rows, of which a part is seen.

    Args:
        sliding: of each layer, whether it has a window.
        rows: at most so many texts.
        room: columns, one per token.
        end: the column that is written first.
    """

    def __init__(self, sliding: Sequence[bool], rows: int, room: int, end: int = 0) -> None:
        self.rows = rows
        self.room = room
        self._span = _Span(rows, 0, end)
        super().__init__(layers=[_Layer(self._span, rows, room, one) for one in sliding])

    @property
    def end(self) -> int:
        """The column that is written next."""
        return self._span.end

    def show(self, rows: int, longest: int) -> None:
        """The model is to see the first ``rows`` rows and their last ``longest`` columns."""
        self._span.rows, self._span.start = rows, self._span.end - longest

    def advance(self, columns: int) -> None:
        """So many columns have been written."""
        self._span.end += columns

    def put(self, source: RowCache, row: int, lengths: Sequence[int]) -> None:
        """Copy all rows of another cache, whose texts begin in its first column, to end as ours do.

        Args:
            source: where from.
            row: our first row to be written.
            lengths: of each text, in tokens; ``[source rows]``.
        """
        pairs = self._pairs(source)
        for begin, stop in _runs(lengths):
            length = lengths[begin]
            rows, columns = slice(row + begin, row + stop), slice(self.end - length, self.end)
            for mine, theirs in pairs:
                mine[rows, :, columns] = theirs[begin:stop, :, :length]

    def repeat(self, source: RowCache, columns: int) -> None:
        """Begin every row with the source's first row, from the first column on."""
        for mine, theirs in self._pairs(source):
            mine[:, :, :columns] = theirs[:1, :, :columns]

    def keep(self, source: RowCache, rows: int, longest: int) -> None:
        """Copy the first rows of another cache with their last ``longest`` columns."""
        to, start = slice(self.end - longest, self.end), source.end - longest
        for mine, theirs in self._pairs(source):
            mine[:rows, :, to] = theirs[:rows, :, start : source.end]

    def move(self, sources: list[int], targets: list[int], longest: int) -> None:
        """Copy rows over others, with their last ``longest`` columns."""
        seen = slice(self.end - longest, self.end)
        to, from_ = torch.tensor(targets), torch.tensor(sources)
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[to, :, seen] = states[from_, :, seen]

    def _pairs(self, source: RowCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Our states and the source's, layer by layer; ours are made where there are none yet."""
        pairs = []
        for mine, theirs in zip(self.layers, source.layers, strict=True):
            if theirs.keys is None:
                continue
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            pairs += [(mine.keys, theirs.keys), (mine.values, theirs.values)]
        return pairs


class CachedModel:
    """Calls a model with a :class:`RowCache`, whatever its arguments are called.

    Args:
        model: one that :func:`takes_rows`.
        device: where the model takes its input.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        parameters = inspect.signature(model.forward).parameters
        self._cache = "cache" if "cache" in parameters else "past_key_values"
        self._positions = "position_ids" in parameters
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in parameters:
            self._options["logits_to_keep"] = 1
        self._sliding = [isinstance(layer, DynamicSlidingWindowLayer) for layer in _layers(model)]

    def cache(self, rows: int, room: int, end: int = 0) -> RowCache:
        """An empty cache; see :class:`RowCache`."""
        return RowCache(self._sliding, rows, room, end)

    def read(self, cache: RowCache, tokens: Sequence[Sequence[int]], before: int) -> None:
        """Put prompts into the first rows of a cache, padded on the right, where nobody looks.

        Args:
            cache: holds ``before`` tokens of every row already, from its first column on.
            tokens: what follows them, a row each; the longest is not empty.
        """
        rows, width = len(tokens), max(map(len, tokens))
        padded = [[*row, *[0] * (width - len(row))] for row in tokens]
        seen = torch.ones(rows, before + width, dtype=torch.long, device=self._device)
        positions = torch.arange(before, before + width, device=self._device).expand(rows, -1)
        cache.show(rows, before)
        self._call(cache, padded, seen, positions)
        cache.advance(width)

    def step(self, cache: RowCache, tokens: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """Put one more token after every row.

        Args:
            cache: holds ``lengths`` tokens of the first rows, ending at its end.
            tokens: ``[rows]`` what follows.
            lengths: ``[rows]``.

        Returns:
            ``[rows, vocabulary]`` logits of what follows then.
        """
        longest = max(lengths)
        cache.show(len(tokens), longest)
        positions = torch.tensor(lengths, device=self._device)[:, None]
        columns = torch.arange(longest + 1, device=self._device)
        seen = (columns >= longest - positions).long()
        logits = self._call(cache, [[token] for token in tokens], seen, positions)
        cache.advance(1)
        return logits

    def _call(
        self,
        cache: RowCache,
        tokens: list[list[int]],
        seen: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        options: dict[str, Any] = {self._cache: cache, **self._options}
        if self._positions:
            options["position_ids"] = positions
        ids = torch.tensor(tokens, device=self._device)
        output = self._model(input_ids=ids, attention_mask=seen, **options)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def takes_rows(model: Any) -> bool:
    """Whether a model's memory of what it has read is keys and values alone, one per token.

    Recurrent states cannot be padded or cut, and states shared between layers or compressed would
    need other copies.
    """
    parameters = inspect.signature(model.forward).parameters
    named = "attention_mask" in parameters and bool({"cache", "past_key_values"} & set(parameters))
    other = getattr(model, "_is_stateful", False) or getattr(
        model.config, "is_encoder_decoder", False
    )
    if not named or other:
        return False
    types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    if not set(types) <= {"full_attention", "sliding_attention"}:
        return False
    layers = _layers(model)
    return bool(layers) and {type(one) for one in layers} <= {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }


def _layers(model: Any) -> list[Any]:
    return list(DynamicCache(config=model.config).layers)


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Where runs of equal neighbours begin and end."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))
