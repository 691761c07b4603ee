"""lm-eval's aggregations over many resamples of a task's items at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

_BLOCK_VALUES = 1 << 21
"""Items are picked for so many numbers at a time: 16 MB, however many resamples there are."""
_SLOW_RESAMPLES = 1_000


def _mean(values: np.ndarray) -> np.ndarray:
    reported = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        total = np.where(reported, values, 0.0).sum(axis=1)
        return np.asarray(total / reported.sum(axis=1))


def _ratio(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nansum(values[..., 0], axis=1) / np.nansum(values[..., 1], axis=1))


def _median(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sort(values, axis=1)[:, values.shape[1] // 2])


_FAST: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": _mean,
    "nanmean": _mean,
    "median": _median,
    "perplexity": lambda values: np.exp(-_mean(values)),
    "weighted_perplexity": lambda values: np.exp(-_ratio(values)),
    "bits_per_byte": lambda values: -_ratio(values) / np.log(2),
}
_SLOW = ("f1", "matthews_corrcoef")
_OF_LIKELIHOODS = ("perplexity", "weighted_perplexity", "bits_per_byte")


def exact(aggregation: str) -> bool:
    """Whether item values, as numbers, give the metric by this aggregation."""
    return aggregation in _FAST or aggregation in _SLOW


def resamples_of(aggregation: str) -> int:
    """How many resamples are affordable."""
    return _SLOW_RESAMPLES if aggregation in _SLOW else 1 << 62


def draws(task: str, items: int, count: int, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Resampled items of one task, in blocks.

    Args:
        task: its name; every task has a stream of its own.
        items: how many the task has.
        count: resamples in all.
        seed: of the study.

    Yields:
        which resamples, and their items: ``[block, items]``.
    """
    digest = hashlib.sha256(task.encode()).digest()[:8]
    generator = np.random.default_rng([seed, int.from_bytes(digest, "big")])
    block = max(1, _BLOCK_VALUES // max(1, items))
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        yield rows, generator.integers(items, size=(rows.stop - rows.start, items))


def resampled(aggregation: str, values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The metric of every resample.

    Args:
        aggregation: one that is :func:`exact`.
        values: ``[items]`` or ``[items, 2]``.
        indices: ``[resamples, items]``.

    Returns:
        ``[resamples]``
    """
    picked = values[indices]
    if aggregation in _FAST:
        return _FAST[aggregation](picked)
    from lm_eval.api.registry import get_aggregation

    aggregate = get_aggregation(aggregation)
    return np.array([aggregate([tuple(pair) for pair in sample]) for sample in picked])


def gains(aggregation: str, a: np.ndarray, b: np.ndarray, sign: float) -> np.ndarray:
    """Per item: above 0 where b did better, below where worse.

    Args:
        aggregation: one that is :func:`exact`.
        a, b: item values, ``[items]`` or ``[items, 2]``.
        sign: −1 where a lower metric is better.
    """
    if aggregation in _SLOW:  # pairs of gold and predicted label
        return (b[:, 0] == b[:, 1]).astype(float) - (a[:, 0] == a[:, 1])
    difference = b - a if a.ndim == 1 else b[:, 0] - a[:, 0]
    # A text's log-likelihood is better when higher, although its perplexity is not.
    return np.asarray(difference if aggregation in _OF_LIKELIHOODS else sign * difference)
