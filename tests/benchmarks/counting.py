"""What a model is given to do, and how fast the machine could do it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.evaluation import ItemSet
from evomerge.evaluation.queries import Continuation, Rolling, Window
from tests.benchmarks.limits import seconds_of


@dataclass
class Counts:
    """Tokens that went through a model, padding included, and seconds that it took."""

    tokens: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def counted(model: Any) -> Iterator[Counts]:
    """Counts a model's calls while it lasts."""
    counts, began = Counts(), [0.0]

    def before(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens = given[0] if given else named["input_ids"]
        counts.tokens += tokens.numel()
        began[0] = time.perf_counter()

    def after(*_: Any) -> None:
        counts.seconds += time.perf_counter() - began[0]

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after),
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Least:
    """The least that items ask of a model.

    Args:
        tokens: distinct prefixes among all inputs.
        scored: distinct prefixes after which some token's probability is asked for.
    """

    tokens: int
    scored: int

    @classmethod
    def of(cls, items: ItemSet) -> Least:
        """Of requests for likelihoods; prompts to go on from do not count."""
        windows = [window for query in items.queries for window in _windows(query)]
        ends: set[tuple[int, ...]] = set()
        scored: set[tuple[int, ...]] = set()
        for tokens in {window.tokens for window in windows}:
            ends |= {tokens[:end] for end in range(1, len(tokens) + 1)}
        for window in windows:
            first = len(window.tokens) - len(window.targets) + 1
            scored |= {window.tokens[:end] for end in range(first, len(window.tokens) + 1)}
        return cls(len(ends), len(scored))

    def operations(self, model: Any) -> float:
        """Of the weights' matrix products alone, attention not counted."""
        head = model.get_output_embeddings()
        inside = sum(
            layer.weight.numel()
            for layer in model.modules()
            if isinstance(layer, torch.nn.Linear) and layer is not head
        )
        return 2.0 * (inside * self.tokens + head.weight.numel() * self.scored)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Operations per second of the best of some products of square matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    took = [seconds_of(lambda: left @ right, device) for _ in range(8)]
    return float(2 * size**3 / min(took))


def _windows(query: Any) -> Sequence[Window]:
    if isinstance(query, Continuation):
        return (query.window,)
    return query.windows if isinstance(query, Rolling) else ()
