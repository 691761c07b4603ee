"""A model's answers → scores, by the tasks' own filters, metrics and aggregations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.metrics import acc_all, acc_all_stderr, mean, mean_stderr, sample_stddev
from lm_eval.api.registry import AGGREGATION_REGISTRY

from evomerge.errors import TrialError
from evomerge.evaluation.queries import Continuation, Query, Rolling
from evomerge.evaluation.scores import TaskScore, Value
from evomerge.evaluation.spec import MetricName
from evomerge.evaluation.targets import remember_targets

_TRIED_DOCUMENTS = 8
_CHUNK = 1000  # lm-eval's bootstrap starts a stream of random numbers per so many resamples

RawValues = dict[MetricName, list[tuple[int, Any]]]
"""Per metric: (position of the item, its value), for the items that report the metric."""


@dataclass(frozen=True)
class TaskItems:
    """The chosen documents of one leaf task, as lm-eval built them.

    Args:
        name: lm-eval's name.
        task: lm-eval's ``Task``, its requests built.
        doc_ids: the chosen documents, ascending.
        queries: one per lm-eval ``Instance`` of the task, in its order.
    """

    name: str
    task: Any
    doc_ids: tuple[int, ...]
    queries: tuple[Query, ...]

    def by_document(self) -> list[list[Any]]:
        """lm-eval's instances of each chosen document, in the order of their choices."""
        grouped: list[list[Any]] = [[] for _ in self.doc_ids]
        for instance in self.task.instances:
            grouped[instance.doc_id].append(instance)
        return [sorted(instances, key=lambda instance: instance.idx) for instances in grouped]


def judge(items: TaskItems, answers: Sequence[Sequence[Any]], *, bootstrap: int = 0) -> TaskScore:
    """One leaf task's scores.

    Args:
        items: what was asked.
        answers: per query the answers to its repeats.
        bootstrap: resamples for the standard errors of metrics that are no mean; 0 for none.

    Raises:
        TrialError: the task's own code fails on the answers.
    """
    remember_targets(items.task)
    try:
        raw = _raw_values(items, answers, len(items.doc_ids))
        metrics = {
            metric: _value(items.task, metric, [value for _, value in values], bootstrap)
            for metric, values in raw.items()
        }
    except Exception as error:  # filters and metrics may be any code of the task's author
        reason = f"task {items.name}: answers could not be judged: {type(error).__name__}: {error}"
        raise TrialError(reason) from error
    arrays = {metric: _array(values, len(items.doc_ids)) for metric, values in raw.items()}
    return TaskScore(
        metrics=metrics,
        items={metric: array for metric, array in arrays.items() if array is not None},
        doc_ids=items.doc_ids,
    )


def reported_metrics(items: TaskItems) -> tuple[MetricName, ...]:
    """The metrics that a leaf task will report, found by judging made-up answers."""
    made_up = [[_made_up(query)] for query in items.queries]
    try:
        return tuple(_raw_values(items, made_up, _TRIED_DOCUMENTS))
    except Exception:  # made-up answers may be too odd for a task's own code; then ask the task
        filters = items.task.instances[0].filtered_resps or {"none": None}
        return tuple(MetricName(name, key) for key in filters for name in items.task.aggregation())


def _made_up(query: Query) -> Any:
    if isinstance(query, Continuation):
        return (-1.0, False)
    return -1.0 if isinstance(query, Rolling) else ""


def _raw_values(items: TaskItems, answers: Sequence[Sequence[Any]], documents: int) -> RawValues:
    for instance, responses in zip(items.task.instances, answers, strict=True):
        instance.resps = list(responses)
        instance.filtered_resps = {}
    items.task.apply_filters()
    raw: RawValues = {}
    by_document = items.by_document()[:documents]
    for filter_name in items.task.instances[0].filtered_resps:
        for position, instances in enumerate(by_document):
            results = [instance.filtered_resps[filter_name] for instance in instances]
            for name, value in items.task.process_results(instances[0].doc, results).items():
                raw.setdefault(MetricName(name, filter_name), []).append((position, value))
    return raw


def _value(task: Any, metric: MetricName, values: list[Any], bootstrap: int) -> Value:
    aggregate = task.aggregation().get(metric.name, mean)
    return Value(
        value=float(aggregate(values)),
        stderr=_stderr(aggregate, values, bootstrap),
        higher_is_better=task.higher_is_better().get(metric.name, True) is not False,
        aggregation=_aggregation_name(aggregate),
    )


def _aggregation_name(aggregate: Callable[..., Any]) -> str:
    names = [name for name, known in AGGREGATION_REGISTRY.items() if known is aggregate]
    return names[0] if names else "custom"


def _stderr(aggregate: Callable[..., Any], values: list[Any], bootstrap: int) -> float | None:
    closed_forms = {mean: mean_stderr, acc_all: acc_all_stderr}
    if len(values) < 2:
        return None
    if aggregate in closed_forms:
        return float(closed_forms[aggregate](values))
    if bootstrap < 1:
        return None
    # The same streams as lm-eval's own bootstrap, without its pool of processes.
    chunk = min(_CHUNK, bootstrap)
    resampled = []
    for stream in range(bootstrap // chunk):
        generator = random.Random(stream)
        resampled += [aggregate(generator.choices(values, k=len(values))) for _ in range(chunk)]
    return float(sample_stddev(resampled))


def _array(values: list[tuple[int, Any]], items: int) -> np.ndarray | None:
    """Item values as numbers, NaN where an item reports none; ``None`` if they are not numbers."""
    widths = {_width(value) for _, value in values}
    if len(widths) != 1 or 0 in widths:
        return None
    shape = (items,) if widths == {1} else (items, 2)
    array = np.full(shape, np.nan)
    for position, value in values:
        array[position] = value
    return array


def _width(value: Any) -> int:
    """1 for a number, 2 for a pair of them, 0 for anything else."""
    if _is_number(value):
        return 1
    pair = isinstance(value, tuple) and len(value) == 2
    return 2 if pair and all(_is_number(part) for part in value) else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))
