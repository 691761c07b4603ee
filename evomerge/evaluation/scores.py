"""Scores: what a model got, per task and per item, and their compact JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.errors import Fault, TaskError
from evomerge.evaluation.spec import MetricName


@dataclass(frozen=True)
class Value:
    """One metric over all the items of a task.

    Args:
        value: lm-eval's aggregate, in the metric's own unit.
        stderr: its standard error, where one was computed.
        higher_is_better: as the task says.
        aggregation: lm-eval's name of the function that turned item values into ``value``
            (``mean``, ``perplexity``…); ``group`` for groups and tags, ``custom`` for a task's own.
    """

    value: float
    stderr: float | None = None
    higher_is_better: bool = True
    aggregation: str = "mean"


@dataclass(frozen=True)
class TaskScore:
    """The scores of one task, or of a group or tag of tasks.

    Args:
        metrics: every metric that the task reported, each under its filter's name.
        items: per metric one row per item, aligned with ``doc_ids``: shape ``[items]``, or
            ``[items, 2]`` where lm-eval's item value is a pair of numbers (log-likelihood and
            bytes); NaN where an item does not report it. Metrics whose item values are not numbers
            (texts, for bleu) are left out.
        doc_ids: positions in the documents of the split that was asked, ascending.
        shares: groups and tags only: per metric the member tasks and their shares of the value.
    """

    metrics: Mapping[MetricName, Value]
    items: Mapping[MetricName, np.ndarray] = field(default_factory=dict)
    doc_ids: tuple[int, ...] = ()
    shares: Mapping[MetricName, Mapping[str, float]] = field(default_factory=dict)

    def find(self, metric: MetricName) -> MetricName:
        """The reported metric that ``metric`` names; its filter may be left open.

        Raises:
            TaskError: none, or more than one, is meant; lists what is reported.
        """
        return find_metric(metric, self.metrics)


@dataclass(frozen=True)
class Scores:
    """One model's scores on one set of items: tasks, and the groups and tags that hold them."""

    tasks: Mapping[str, TaskScore]

    def value(self, task: str, metric: MetricName) -> Value:
        """One task's metric.

        Raises:
            TaskError: the task was not scored or does not report the metric.
        """
        score = self.task(task)
        return score.metrics[score.find(metric)]

    def task(self, task: str) -> TaskScore:
        """One task, group or tag by its name.

        Raises:
            TaskError: it was not scored.
        """
        if task not in self.tasks:
            raise TaskError.at(f"task {task}", f"was not scored; there is {listed(self.tasks)}")
        return self.tasks[task]

    def shares(self, task: str, metric: MetricName) -> Mapping[str, float]:
        """The tasks that hold the items of ``task``, and their shares of its value."""
        score = self.task(task)
        return score.shares.get(score.find(metric)) or {task: 1.0}

    def to_json(self) -> str:
        """Compact JSON; arrays of 0 and 1 become a string of digits."""
        packed = {name: _pack(score) for name, score in self.tasks.items()}
        return json.dumps({"tasks": packed}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """The inverse of :meth:`to_json`, to the last bit."""
        packed = json.loads(text)["tasks"]
        return cls({name: _unpack(score) for name, score in packed.items()})


def find_metric(
    metric: MetricName, reported: Mapping[MetricName, Any], also: Sequence[str] = ()
) -> MetricName:
    """The one of ``reported`` that ``metric`` names.

    Args:
        metric: its filter may be left open.
        reported: the metrics that there are.
        also: names that could have been asked for besides, for the message.

    Raises:
        TaskError: none or several; lists them.
    """
    found = [
        name
        for name in reported
        if name.name == metric.name and metric.filter in (None, name.filter)
    ]
    if len(found) == 1:
        return found[0]
    reason = f"{str(metric)!r} is not reported; the task reports {listed(reported)}"
    further = [name for name in also if name not in {known.name for known in reported}]
    if further:
        reason += f"; allowed besides: {', '.join(further)}"
    if found:
        reason = f"{str(metric)!r} is reported by several filters; write {listed(found, ' or ')}"
    raise TaskError([Fault("metric", reason)])


def listed(names: Any, last: str = " and ") -> str:
    """``'a', 'b' and 'c'``"""
    words = [repr(str(name)) for name in names]
    return last.join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _pack(score: TaskScore) -> dict[str, Any]:
    return {
        "metrics": {
            str(name): [v.value, v.stderr, v.higher_is_better, v.aggregation]
            for name, v in score.metrics.items()
        },
        "items": {str(name): _pack_array(array) for name, array in score.items.items()},
        "doc_ids": list(score.doc_ids),
        "shares": {str(name): dict(shares) for name, shares in score.shares.items()},
    }


def _unpack(packed: Mapping[str, Any]) -> TaskScore:
    return TaskScore(
        metrics={MetricName.parse(name): Value(*v) for name, v in packed["metrics"].items()},
        items={MetricName.parse(name): _unpack_array(v) for name, v in packed["items"].items()},
        doc_ids=tuple(packed["doc_ids"]),
        shares={MetricName.parse(name): shares for name, shares in packed["shares"].items()},
    )


def _pack_array(array: np.ndarray) -> str | list[Any]:
    if array.ndim == 1 and np.isin(array, (0.0, 1.0)).all():
        return "".join("1" if value else "0" for value in array)
    return list(array.tolist())


def _unpack_array(packed: str | list[Any]) -> np.ndarray:
    if isinstance(packed, str):
        return np.array([float(digit) for digit in packed])
    return np.array(packed, dtype=np.float64)
