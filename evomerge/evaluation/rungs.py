"""Items scored a share at a time, so that a candidate that cannot win is not scored on all of them.

A rung is a share of every task's items, drawn once by a seed; the next rung adds to it. Which
answers a candidate gives does not depend on the rungs, and one that is not stopped is judged on all
its answers at once, as if there were none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

import numpy as np

from evomerge.errors import TrialError
from evomerge.evaluation.choosing import generator, proportional
from evomerge.evaluation.incumbent import Incumbent
from evomerge.evaluation.items import ItemSet
from evomerge.evaluation.judging import TaskItems, made_up
from evomerge.evaluation.scores import Scores, TaskScore, Value

_MEAN = "mean"


@dataclass(frozen=True)
class Rung:
    """One share of the items.

    Args:
        places: the queries that it adds, by their place in the item set.
        seen: leaf task → positions of the items of this rung and of those before it, ascending.
        items: how many these are.
    """

    places: tuple[int, ...]
    seen: Mapping[str, np.ndarray]
    items: int


@dataclass(frozen=True)
class Scored:
    """What came of a candidate.

    Args:
        scores: on all the items; of one that was stopped, on those that were seen.
        items: how many were scored.
        estimate: of one that was stopped: the incumbent's fitness plus the paired difference on
            the items that were seen; None of one that was not.
    """

    scores: Scores
    items: int
    estimate: float | None = None


class Responder(Protocol):
    """Puts some of an item set's queries to a model."""

    def respond(self) -> list[list[Any]]:
        """Per query, the answers to its repeats."""
        ...


class RungScorer:
    """Scores candidates rung by rung.

    Args:
        items: all of them.
        shares: of the items that have been scored after each rung but the last, ascending, in
            (0, 1); none scores them all at once.
        seed: of the order.
        make: what puts the queries of some places, or all (None), to the model; called once per
            rung.
    """

    def __init__(
        self,
        items: ItemSet,
        shares: Sequence[float],
        seed: int,
        make: Callable[[Sequence[int] | None], Responder],
    ) -> None:
        self.items = items
        self._queries, self._repeats = items.queries, items.repeats
        self._rungs = rungs_of(items, shares, seed)
        whole = len(self._rungs) == 1
        self._responders = [make(None if whole else rung.places) for rung in self._rungs]

    def score(self, incumbent: Incumbent | None = None) -> Scored:
        """The live model's scores; stopped early if it is clearly behind the incumbent.

        Raises:
            TrialError: as the responder, or a task's own code fails on the answers.
        """
        answers: list[list[Any] | None] = [None] * len(self._queries)
        for rung, responder in zip(self._rungs, self._responders, strict=True):
            for place, given in zip(rung.places, responder.respond(), strict=True):
                answers[place] = given
            if incumbent is not None and rung is not self._rungs[-1]:
                stopped = self._stopped(answers, rung, incumbent)
                if stopped is not None:
                    return stopped
        return Scored(self.items.judge([given or [] for given in answers]), len(self.items))

    def _stopped(
        self, answers: Sequence[list[Any] | None], rung: Rung, incumbent: Incumbent
    ) -> Scored | None:
        """What is known of a candidate that cannot win; None of one that may."""
        filled = [
            [made_up(query)] * repeats if given is None else given
            for given, query, repeats in zip(answers, self._queries, self._repeats, strict=True)
        ]
        try:
            scores = self.items.judge(filled)
        except TrialError:  # made-up answers may be too odd for a task's own code
            return None
        difference = incumbent.difference(scores, rung.seen)
        if difference is None or not incumbent.stops(difference):
            return None
        estimate = incumbent.fitness + difference.value
        return Scored(restricted(scores, rung.seen), rung.items, estimate)


def rungs_of(items: ItemSet, shares: Sequence[float], seed: int) -> list[Rung]:
    """The rungs; the last one ends with all the items.

    Args:
        items: all of them.
        shares: see :class:`RungScorer`.
        seed: of the order in which each task's items are taken.
    """
    sizes = [len(task.doc_ids) for task in items.tasks]
    orders = [
        generator(seed, f"rungs of {task.name}").permutation(size)
        for task, size in zip(items.tasks, sizes, strict=True)
    ]
    documents = [_documents(task) for task in items.tasks]
    rungs: list[Rung] = []
    before = [0] * len(sizes)
    for share in (*shares, 1.0):
        total = max(len(sizes), round(share * sum(sizes)))
        counts = np.maximum(before, proportional(total, sizes)).tolist()
        seen = [np.sort(order[:count]) for order, count in zip(orders, counts, strict=True)]
        new = [
            set(order[start:count].tolist())
            for order, start, count in zip(orders, before, counts, strict=True)
        ]
        owned = [at in mine for of, mine in zip(documents, new, strict=True) for at in of]
        places = tuple(place for place, mine in enumerate(owned) if mine)
        names = [task.name for task in items.tasks]
        rungs.append(Rung(places, dict(zip(names, seen, strict=True)), sum(counts)))
        before = counts
    return rungs


def means_alone(items: ItemSet) -> list[str]:
    """The requested metrics that are no means over items, as ``task: metric``; none if all are."""
    members = {
        group.name: {task.task_name for task in group.get_all_tasks()} for group in items.groups
    }
    odd: dict[str, None] = {}
    for request in items.requests:
        leaves = members.get(request.task, {request.task})
        for task in items.tasks:
            if task.name in leaves and task.aggregation(request.metric) != _MEAN:
                odd[f"{request.task}: {request.metric.name}"] = None
    return list(odd)


def restricted(scores: Scores, seen: Mapping[str, np.ndarray]) -> Scores:
    """The scores on some of the items: of the metrics that are means over items.

    Args:
        scores: on all of them.
        seen: leaf task → positions of those that are kept.
    """
    tasks = {
        name: _restricted(score, seen[name]) for name, score in scores.tasks.items() if name in seen
    }
    for name, score in scores.tasks.items():
        if name not in seen:
            tasks[name] = _restricted_group(score, tasks)
    return Scores(tasks)


def _restricted(score: TaskScore, rows: np.ndarray) -> TaskScore:
    kept = {
        metric: score.items[metric][rows]
        for metric, value in score.metrics.items()
        if value.aggregation == _MEAN and metric in score.items
    }
    metrics = {
        metric: Value(
            float(values.mean()),
            float(values.std(ddof=1) / sqrt(len(values))) if len(values) > 1 else None,
            score.metrics[metric].higher_is_better,
        )
        for metric, values in kept.items()
    }
    return TaskScore(metrics, kept, tuple(score.doc_ids[row] for row in rows))


def _restricted_group(score: TaskScore, leaves: Mapping[str, TaskScore]) -> TaskScore:
    metrics = {
        metric: Value(
            sum(share * leaves[leaf].metrics[metric].value for leaf, share in shares.items()),
            None,
            score.metrics[metric].higher_is_better,
            score.metrics[metric].aggregation,
        )
        for metric, shares in score.shares.items()
        if all(metric in leaves[leaf].metrics for leaf in shares)
    }
    return TaskScore(metrics, shares={metric: score.shares[metric] for metric in metrics})


def _documents(task: TaskItems) -> list[int]:
    """The position of each query's document."""
    of_instances = [instance.doc_id for instance in task.task.instances]
    # Gold solutions come last, one for each of the task's own requests.
    return (of_instances * 2)[: len(task.queries)]
