"""A model's answers → scores, by the tasks' own filters, metrics and aggregations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from lm_eval.api.metrics import acc_all, acc_all_stderr, mean, mean_stderr, sample_stddev
from lm_eval.api.registry import AGGREGATION_REGISTRY

from evomerge.errors import TrialError
from evomerge.evaluation.choices import Choices, choices_of, judged_by_lm_eval, refuse_uneven
from evomerge.evaluation.queries import Continuation, Query, Rolling
from evomerge.evaluation.scores import TaskScore, Value
from evomerge.evaluation.smooth import FILTER, SMOOTH, SmoothPlan
from evomerge.evaluation.spec import MetricName
from evomerge.evaluation.targets import remember_targets

_TRIED_DOCUMENTS = 8
_COMPARED_DOCUMENTS = 64
_COMPARED = ("acc", "acc_norm", "acc_bytes")
"""What lm-eval finds by comparing the choices' likelihoods alone."""
_SHARES = (*_COMPARED, "acc_mutual_info", "exact_match")
"""Means of what is right (1) or wrong (0), where lm-eval's own code makes them."""
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
        own_queries: one per lm-eval ``Instance`` of the task, in its order.
        smooth: the metrics that are asked of it besides its own; None for none.
        split: the data set's split that the documents are of; None where the task does not say.
        evaluated: whether that is the split that lm-eval evaluates the task on.
    """

    name: str
    task: Any
    doc_ids: tuple[int, ...]
    own_queries: tuple[Query, ...]
    smooth: SmoothPlan | None = None
    split: str | None = None
    evaluated: bool = True

    @property
    def queries(self) -> tuple[Query, ...]:
        """Everything that is put to the model: the task's own, then those of smooth metrics."""
        return self.own_queries + (self.smooth.queries if self.smooth else ())

    @property
    def repeats(self) -> tuple[int, ...]:
        """How many answers each query needs."""
        own = tuple(instance.repeats or 1 for instance in self.task.instances)
        return own + (1,) * (len(self.queries) - len(own))

    def by_document(self) -> list[list[Any]]:
        """lm-eval's instances of each chosen document, in the order of their choices."""
        grouped: list[list[Any]] = [[] for _ in self.doc_ids]
        for instance in self.task.instances:
            grouped[instance.doc_id].append(instance)
        return [sorted(instances, key=lambda instance: instance.idx) for instances in grouped]

    @cached_property
    def own_metrics(self) -> tuple[MetricName, ...]:
        """The metrics that the task reports by itself, found by judging made-up answers.

        Raises:
            TaskError: lm-eval cannot compute one of them on these documents.
        """
        refuse_uneven(self.name, self.task)
        invented = [
            [made_up(query)] * (instance.repeats or 1)  # some filters look at several answers
            for query, instance in zip(self.own_queries, self.task.instances, strict=True)
        ]
        try:
            return tuple(_raw_values(self, invented, _TRIED_DOCUMENTS))
        except Exception:  # made-up answers may be too odd for a task's own code; then ask the task
            filters = self.task.instances[0].filtered_resps or {"none": None}
            return tuple(
                MetricName(name, key) for key in filters for name in self.task.aggregation()
            )

    def aggregation(self, metric: MetricName) -> str:
        """lm-eval's name of what makes the metric of item values; ``custom`` for others."""
        if metric.name in SMOOTH and metric not in self.own_metrics:
            return SMOOTH[metric.name].aggregation
        return _aggregation_name(self.task.aggregation().get(metric.name, mean))

    def higher_is_better(self, metric: MetricName) -> bool:
        """Which way a metric is better, as the task says; higher where it says nothing."""
        if metric.name in SMOOTH and metric not in self.own_metrics:
            return SMOOTH[metric.name].higher_is_better
        return self.task.higher_is_better().get(metric.name, True) is not False

    def is_share(self, metric: MetricName) -> bool:
        """Whether a metric is known to lie in [0, 1], whatever the answers."""
        if metric.name in SMOOTH and metric not in self.own_metrics:
            return SMOOTH[metric.name].share
        if metric.name not in _SHARES or self.aggregation(metric) != "mean":
            return False
        listed = self.task.get_config("metric_list") or []
        own = {one["metric"].__name__ for one in listed if callable(one.get("metric"))}
        return metric.name not in own and judged_by_lm_eval(self.task)

    @cached_property
    def plain_choices(self) -> Choices | None:
        """The choices, where all that the task does with the answers is to compare them.

        Such answers are judged as arrays, by the same comparisons: lm-eval's own code takes as long
        for them as a small model takes to give them.
        """
        if self.task.OUTPUT_TYPE != "multiple_choice" or self.task.get_config("filter_list"):
            return None
        if set(self.task.aggregation()) - set(_COMPARED):
            return None
        try:
            choices = choices_of(self.name, self.task)
            return choices if _judged_alike(self, choices) else None
        except Exception:  # whatever is odd there, lm-eval's code has the last word
            return None


def judge(items: TaskItems, answers: Sequence[Sequence[Any]], *, bootstrap: int = 0) -> TaskScore:
    """One leaf task's scores.

    Args:
        items: what was asked.
        answers: per query the answers to its repeats.
        bootstrap: resamples for the standard errors of metrics that are no mean; 0 for none.

    Raises:
        TrialError: the task's own code fails on the answers.
    """
    own = answers[: len(items.own_queries)]
    remember_targets(items.task)
    try:
        score = _own_score(items, own, bootstrap)
    except Exception as error:  # filters and metrics may be any code of the task's author
        reason = f"task {items.name}: answers could not be judged: {type(error).__name__}: {error}"
        raise TrialError(reason) from error
    smooth = items.smooth.values(answers) if items.smooth else {}
    metrics, arrays = dict(score.metrics), dict(score.items)
    for name, values in smooth.items():
        metric = MetricName(name, FILTER)
        metrics[metric] = _smooth_value(name, values, bootstrap)
        arrays[metric] = values
    return TaskScore(metrics=metrics, items=arrays, doc_ids=items.doc_ids)


def reported_metrics(items: TaskItems) -> tuple[MetricName, ...]:
    """The metrics that a leaf task will report, those that are asked of it besides included."""
    asked = items.smooth.metrics if items.smooth else ()
    return (*items.own_metrics, *(MetricName(name, FILTER) for name in asked))


def _own_score(items: TaskItems, answers: Sequence[Sequence[Any]], bootstrap: int) -> TaskScore:
    """The metrics that the task reports by itself."""
    task = items.task
    if items.plain_choices is not None:
        compared = _compared(items, items.plain_choices, answers)
        metrics = {m: _value(task, m, values.tolist(), bootstrap) for m, values in compared.items()}
        return TaskScore(metrics, compared, items.doc_ids)
    raw = _raw_values(items, answers, len(items.doc_ids))
    metrics = {
        metric: _value(task, metric, [value for _, value in values], bootstrap)
        for metric, values in raw.items()
    }
    arrays = {metric: _array(values, len(items.doc_ids)) for metric, values in raw.items()}
    found = {metric: array for metric, array in arrays.items() if array is not None}
    return TaskScore(metrics, found, items.doc_ids)


def _smooth_value(name: str, values: np.ndarray, bootstrap: int) -> Value:
    metric = SMOOTH[name]
    aggregate = AGGREGATION_REGISTRY[metric.aggregation]
    given = list(map(tuple, values.tolist())) if values.ndim == 2 else values.tolist()
    return Value(
        value=float(aggregate(given)),
        stderr=_stderr(aggregate, given, bootstrap),
        higher_is_better=metric.higher_is_better,
        aggregation=metric.aggregation,
    )


def _compared(
    items: TaskItems, choices: Choices, answers: Sequence[Sequence[Any]]
) -> dict[MetricName, np.ndarray]:
    """Per metric 1.0 for each item whose likeliest choice is right: lm-eval's own comparisons."""
    likelihoods = choices.likelihoods(answers)
    lengths = {"acc": None, "acc_norm": choices.chars, "acc_bytes": choices.utf8}
    rows = np.arange(len(likelihoods))
    values = {}
    for metric in items.own_metrics:
        length = lengths[metric.name]
        with np.errstate(divide="ignore"):
            compared = likelihoods if length is None else likelihoods / length
        values[metric] = choices.right[rows, compared.argmax(axis=1)].astype(np.float64)
    return values


def _judged_alike(items: TaskItems, choices: Choices) -> bool:
    """Whether comparing arrays gives what lm-eval's code gives, on made-up likelihoods."""
    draw = np.random.default_rng(0).normal(-20.0, 8.0, len(items.own_queries))
    answers = [[(float(value), False)] for value in draw]
    raw = _raw_values(items, answers, _COMPARED_DOCUMENTS)
    mine = _compared(items, choices, answers)
    return all(
        [mine[metric][position] for position, _ in values] == [value for _, value in values]
        for metric, values in raw.items()
    )


def made_up(query: Query) -> Any:
    """An answer of the kind that a model gives, where none is to be had."""
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
