"""Scores → one number that is to be maximised."""

from __future__ import annotations

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
    terms = []
    for request in requests:
        value = scores.value(request.task, request.metric)
        sign = 1.0 if plain_sum or value.higher_is_better else -1.0
        terms.append(request.weight * sign * value.value)
    if plain_sum:
        return float(sum(terms))
    total = sum(abs(request.weight) for request in requests)
    if total == 0:
        raise TaskError.at("tasks: weight", "every weight is 0; at least one must not be")
    return float(sum(terms) / total)
