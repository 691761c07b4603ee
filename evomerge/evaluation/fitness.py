"""Scores → what is to be maximised: one number, or one for each goal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.errors import TaskError
from evomerge.evaluation.scores import Scores
from evomerge.evaluation.spec import TaskRequest


def fitness(scores: Scores, requests: Sequence[TaskRequest], *, plain_sum: bool = False) -> float:
    """The weighted mean of the requested metrics, larger is better.

    Σ weight × metric / Σ |weight|, where a metric that is better when lower (perplexity) counts
    negatively. With ``plain_sum`` it is mergekit-evolve's Σ weight × metric, no sign changed.

    Args:
        scores: from the items that ``requests`` describe.
        requests: an :class:`~evomerge.evaluation.ItemSet`'s own ``requests``; at least one, and a
            weight other than 0 among them.

    Raises:
        TaskError: a request was not scored, or all weights are 0.
    """
    terms = [request.weight * _signed(scores, request, plain_sum=plain_sum) for request in requests]
    if plain_sum:
        return float(sum(terms))
    total = sum(abs(request.weight) for request in requests)
    if total == 0:
        raise TaskError.at("tasks: weight", "every weight is 0; at least one must not be")
    return float(sum(terms) / total)


def fitness_error(
    scores: Scores, requests: Sequence[TaskRequest], *, plain_sum: bool = False
) -> float | None:
    """The standard error of :func:`fitness`, as if the requests' items were all apart.

    √Σ (weight × error)² / Σ |weight|; with ``plain_sum`` not divided. None where a metric that
    counts has none.

    Args:
        scores, requests, plain_sum: as for :func:`fitness`.

    Raises:
        TaskError: a request was not scored.
    """
    total = 0.0
    for request in requests:
        if request.weight:
            error = scores.value(request.task, request.metric).stderr
            if error is None:
                return None
            total += (request.weight * error) ** 2
    size = 1.0 if plain_sum else sum(abs(request.weight) for request in requests)
    return math.sqrt(total) / size if size else None


def goals(
    scores: Scores, requests: Sequence[TaskRequest], *, plain_sum: bool = False
) -> tuple[float, ...]:
    """One number for each request whose weight is not 0, each to be maximised.

    What the request adds to the fitness, but for its weight's size: the metric, negative where
    lower is better or (not both) where the weight is negative.

    Args:
        scores, requests, plain_sum: as for :func:`fitness`.

    Raises:
        TaskError: a request was not scored.
    """
    return tuple(
        math.copysign(1.0, request.weight) * _signed(scores, request, plain_sum=plain_sum)
        for request in requests
        if request.weight
    )


def _signed(scores: Scores, request: TaskRequest, *, plain_sum: bool) -> float:
    value = scores.value(request.task, request.metric)
    return value.value if plain_sum or value.higher_is_better else -value.value
