"""Two models on the same items: the paired difference, and how sure it is.

Both models answered the same questions, so what is resampled is the question, with both answers
(Koehn 2004, "Statistical significance tests for machine translation evaluation", §3). Resampling
stays within each task, as the tasks themselves are given and not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from evomerge.errors import TaskError
from evomerge.evaluation.resampling import draws, exact, gains, resampled, resamples_of
from evomerge.evaluation.scores import Scores
from evomerge.evaluation.spec import MetricName, TaskRequest


@dataclass(frozen=True)
class TaskComparison:
    """Model b against model a on one request.

    Args:
        task: the request's task, group or tag.
        metric: the metric, with its filter.
        a, b: the two values, in the metric's unit.
        difference: b − a, or a − b where lower is better: above 0 is in favour of b.
        low, high: the difference's interval; ``None`` where the metric allows none.
        wins, losses, ties: the items on which b did better, worse, the same.
        p_value: of the exact two-sided McNemar test; ``None`` unless items are right or wrong.
    """

    task: str
    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    wins: int
    losses: int
    ties: int
    p_value: float | None


@dataclass(frozen=True)
class Comparison:
    """Model b against model a over all requests.

    Args:
        difference: fitness of b − fitness of a.
        low, high: its interval; ``None`` if a task's metric allows none.
        tasks: the same per request.
        wins, losses, ties: items, summed over the requests.
    """

    difference: float
    low: float | None
    high: float | None
    tasks: tuple[TaskComparison, ...]
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True)
class _Leaf:
    """One metric of one leaf task: both models' item values and how they become a score."""

    task: str
    a: np.ndarray
    b: np.ndarray
    aggregation: str


@dataclass(frozen=True)
class _Term:
    """One request: its leaves with their shares; ``leaves`` is empty if items say too little."""

    request: TaskRequest
    metric: MetricName
    sign: float
    leaves: tuple[tuple[float, _Leaf], ...]


def compare(
    a: Scores,
    b: Scores,
    requests: Sequence[TaskRequest],
    *,
    plain_sum: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """How much better b is than a, with a bootstrap interval of the paired difference.

    Args:
        a, b: two models' scores on one :class:`~evomerge.evaluation.ItemSet`.
        requests: that item set's own ``requests``.
        plain_sum: as in :func:`~evomerge.evaluation.fitness`.
        confidence: of the interval, in (0, 1).
        resamples: of the bootstrap, at least 1; at most 1,000 where a metric can only be computed
            by lm-eval's own slow function (f1, Matthews correlation).
        seed: of the resampling.

    Raises:
        TaskError: the two were not scored on the same items, or a metric is missing.
        ValueError: confidence or resamples out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence {confidence} must lie in (0, 1), resamples {resamples} above 0"
        )
    terms = [_term(a, b, request) for request in requests]
    scale = 1.0 if plain_sum else sum(abs(request.weight) for request in requests)
    if scale == 0:
        raise TaskError.at("tasks: weight", "every weight is 0; at least one must not be")
    weights = [term.request.weight / scale * (1.0 if plain_sum else term.sign) for term in terms]
    samples = _samples(terms, resamples, seed)
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    tasks = tuple(
        _compare_task(a, b, term, sample, tails)
        for term, sample in zip(terms, samples, strict=True)
    )
    raw = [task.b - task.a for task in tasks]
    low, high = _interval(_total(weights, samples), tails)
    return Comparison(
        difference=float(np.dot(weights, raw)),
        low=low,
        high=high,
        tasks=tasks,
        wins=sum(task.wins for task in tasks),
        losses=sum(task.losses for task in tasks),
        ties=sum(task.ties for task in tasks),
    )


def _total(weights: Sequence[float], samples: Sequence[np.ndarray]) -> np.ndarray:
    if any(len(sample) == 0 for sample in samples):
        return np.array([])  # one request without an interval leaves the whole without
    return np.asarray(np.tensordot(np.array(weights), np.stack(samples), axes=1))


def _term(a: Scores, b: Scores, request: TaskRequest) -> _Term:
    metric = a.task(request.task).find(request.metric)
    leaves = []
    shares = a.shares(request.task, metric)
    for task, share in shares.items():
        first, second = a.task(task), b.task(task)
        if first.doc_ids != second.doc_ids:
            reason = "the two models were scored on different items; score both on the same"
            raise TaskError.at(f"task {task}", reason)
        aggregation = first.metrics[metric].aggregation
        if metric in first.items and metric in second.items and exact(aggregation):
            leaf = _Leaf(task, first.items[metric], second.items[metric], aggregation)
            leaves.append((share, leaf))
    sign = 1.0 if a.value(request.task, metric).higher_is_better else -1.0
    return _Term(request, metric, sign, tuple(leaves) if len(leaves) == len(shares) else ())


def _samples(terms: Sequence[_Term], resamples: int, seed: int) -> list[np.ndarray]:
    """Per term the resampled b − a, in the metric's unit; empty where there is none.

    All metrics of a task see the same resampled items: they are not independent.
    """
    used = {leaf.task: leaf for term in terms for _, leaf in term.leaves}
    count = min([resamples, *(resamples_of(leaf.aggregation) for leaf in _leaves(terms))])
    samples = [np.zeros(count if term.leaves else 0) for term in terms]
    for task, any_leaf in used.items():
        for rows, indices in draws(task, len(any_leaf.a), count, seed):
            for term, sample in zip(terms, samples, strict=True):
                for share, leaf in term.leaves:
                    if leaf.task == task:
                        difference = _resampled_difference(leaf, indices)
                        sample[rows] += share * difference
    return samples


def _leaves(terms: Sequence[_Term]) -> Iterator[_Leaf]:
    return (leaf for term in terms for _, leaf in term.leaves)


def _resampled_difference(leaf: _Leaf, indices: np.ndarray) -> np.ndarray:
    of_b = resampled(leaf.aggregation, leaf.b, indices)
    return of_b - resampled(leaf.aggregation, leaf.a, indices)


def _compare_task(
    a: Scores, b: Scores, term: _Term, sample: np.ndarray, tails: tuple[float, float]
) -> TaskComparison:
    task = term.request.task
    of_a, of_b = a.value(task, term.metric).value, b.value(task, term.metric).value
    low, high = _interval(term.sign * sample, tails)
    gained = [gains(leaf.aggregation, leaf.a, leaf.b, term.sign) for _, leaf in term.leaves]
    gain = np.concatenate(gained) if gained else np.array([])
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    binary = bool(gained) and all(_is_binary(leaf) for _, leaf in term.leaves)
    return TaskComparison(
        task=task,
        metric=str(term.metric),
        a=of_a,
        b=of_b,
        difference=term.sign * (of_b - of_a),
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        ties=len(gain) - wins - losses,
        p_value=mcnemar(wins, losses) if binary else None,
    )


def _is_binary(leaf: _Leaf) -> bool:
    both = np.concatenate([leaf.a, leaf.b])
    return both.ndim == 1 and bool(np.isin(both, (0.0, 1.0)).all())


def _interval(
    sample: np.ndarray, tails: tuple[float, float]
) -> tuple[float, float] | tuple[None, None]:
    finite = sample[np.isfinite(sample)]
    if len(finite) == 0:
        return None, None
    low, high = np.quantile(finite, tails)
    return float(low), float(high)


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p-value of McNemar's test (McNemar 1947; binomial, not χ²).

    Args:
        wins: items that only the second model answers rightly.
        losses: items that only the first does.
    """
    changed = wins + losses
    tail: int = sum(comb(changed, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**changed)
