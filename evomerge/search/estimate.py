"""What a search will at least take: memory of the models, time of the arithmetic.

Lower limits, from sizes and from this machine's rates measured on the spot; what a trial really
takes, ``evomerge search`` shows after its first ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evomerge.evaluation import ItemSet
from evomerge.evaluation.queries import Continuation, Query, Rolling
from evomerge.search.preparation import Preparation


@dataclass(frozen=True)
class Estimate:
    """Lower limits of a search.

    Args:
        worker_bytes: memory of one worker's models.
        tokens: that one candidate's scoring has to encode, each distinct prefix once.
        trial_seconds: one candidate's arithmetic on one worker: two operations per parameter
            (embeddings apart, which are looked up) and token at the measured matrix rate, and the
            models' bytes read once and written once at the measured copy bandwidth.
        search_seconds: all the trials on all the workers.
        rate: measured, operations per second of one worker.
        bandwidth: measured, bytes per second.
    """

    worker_bytes: int
    tokens: int
    trial_seconds: float
    search_seconds: float
    rate: float
    bandwidth: float


def estimate(
    prepared: Preparation, *, trials: int, workers: int, device: str, threads: int
) -> Estimate:
    """Lower limits for a prepared space.

    Args:
        prepared: the space.
        trials: how many candidates.
        workers: how many at once.
        device: where a worker computes: ``cpu`` or ``cuda``.
        threads: CPU threads of a worker.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rate = _matrix_rate(getattr(torch, prepared.plan.dtype), device)
        bandwidth = _copy_bandwidth(device)
    finally:
        torch.set_num_threads(before)
    tokens = scored_tokens(prepared.search_items)
    base = prepared.checkpoints[0]
    width = base.shape(base.embedding)[1:] if base.embedding else (0,)
    looked_up = math.prod((prepared.height, *width))
    merged = prepared.worker_bytes - prepared.gradient_bytes
    seconds = 2 * (prepared.parameters - looked_up) * tokens / rate + merged / bandwidth
    return Estimate(
        worker_bytes=prepared.worker_bytes,
        tokens=tokens,
        trial_seconds=seconds,
        search_seconds=seconds * trials / workers,
        rate=rate,
        bandwidth=bandwidth,
    )


def scored_tokens(items: ItemSet) -> int:
    """Tokens that one candidate's scoring has to encode; generated ones are not counted."""
    return distinct_prefixes(inputs for query in items.queries for inputs in _inputs(query))


def distinct_prefixes(sequences: Iterable[Sequence[int]]) -> int:
    """How many different prefixes a set of sequences has: the nodes of its prefix tree.

    A causal model has to encode each of them once, and no token more.
    """
    count = 0
    before: Sequence[int] = ()
    for sequence in sorted(tuple(sequence) for sequence in sequences):
        shared = next(
            (at for at, (a, b) in enumerate(zip(before, sequence, strict=False)) if a != b),
            min(len(before), len(sequence)),
        )
        count += len(sequence) - shared
        before = sequence
    return count


def _inputs(query: Query) -> list[Sequence[int]]:
    if isinstance(query, Continuation):
        return [query.window.tokens]
    if isinstance(query, Rolling):
        return [window.tokens for window in query.windows]
    return [query.tokens]


def _matrix_rate(dtype: object, device: str) -> float:
    """Operations per second of a square matrix product."""
    import torch

    size = 4096 if device == "cuda" else 768
    a = torch.ones(size, size, dtype=dtype, device=device)  # type: ignore[call-overload]
    return 2 * size**3 / _best_time(lambda: a @ a, device)


def _copy_bandwidth(device: str) -> float:
    """Bytes per second read and written by a copy."""
    import torch

    source = torch.ones(2**25 if device == "cpu" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best_time(lambda: target.copy_(source), device)


def _best_time(work: object, device: str, repeats: int = 5) -> float:
    import torch

    times = []
    for _ in range(repeats + 1):  # the first warms up
        began = time.perf_counter()
        work()  # type: ignore[operator]
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])
