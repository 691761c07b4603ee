"""Groups and tags: several tasks' scores → one, by lm-eval's own aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig

from evomerge.evaluation.scores import TaskScore, Value
from evomerge.evaluation.smooth import FILTER, SMOOTH
from evomerge.evaluation.spec import MetricName
from evomerge.evaluation.tasks import Loaded

_NOT_AVAILABLE = "N/A"  # lm-eval's word for a missing standard error


def declared_groups(loaded: Iterable[Loaded]) -> set[str]:
    """The groups that say how their tasks' scores become one."""
    return {
        name for found in loaded for name, group in found.groups.items() if group.has_aggregation
    }


def groups_of(
    loaded: Iterable[Loaded],
    reported: Mapping[str, Sequence[MetricName]],
    asked: Mapping[str, Sequence[str]],
) -> tuple[Any, ...]:
    """The groups to be scored; a tag, or a group without aggregation, becomes a plain mean.

    Args:
        loaded: what was asked for.
        reported: leaf task → the metrics that it reports.
        asked: name that was asked for → the names of its metrics.
    """
    groups: dict[str, Any] = {}
    for found in loaded:
        smooth = [metric for metric in asked.get(found.name, ()) if metric in SMOOTH]
        groups |= {
            name: _widened(group, smooth)
            for name, group in found.groups.items()
            if group.has_aggregation
        }
        if not found.is_task and found.name not in groups:
            first, *others = (reported[leaf] for leaf in found.tasks)
            shared = [metric for metric in first if all(metric in other for other in others)]
            groups[found.name] = _averaging_group(found.name, found.tasks, shared)
    return tuple(groups.values())


def _widened(group: Group, metrics: Sequence[str]) -> Group:
    """A group that aggregates these smooth metrics too, weighted as it weights its own."""
    own = list(group.aggregate_metric_list or ())
    known = {config.metric for config in own}
    added = [
        AggMetricConfig(metric=metric, filter_list=[FILTER], weight_by_size=own[0].weight_by_size)
        for metric in dict.fromkeys(metrics)
        if metric not in known
    ]
    return replace(group, aggregate_metric_list=[*own, *added])


def _averaging_group(name: str, tasks: Mapping[str, Any], metrics: Sequence[MetricName]) -> Group:
    """A group for a name that has no aggregation of its own (every tag): the plain mean.

    Args:
        name: of the tag, or of the group that declares no aggregation.
        tasks: its leaf tasks.
        metrics: those that every leaf task reports.
    """
    names = dict.fromkeys(metric.name for metric in metrics)
    filters = {name: sorted({str(m.filter) for m in metrics if m.name == name}) for name in names}
    group = Group(
        name=name,
        aggregate_metric_list=[
            AggMetricConfig(metric=name, filter_list=filters[name], weight_by_size=False)
            for name in names
        ],
    )
    for task in tasks.values():
        group.add(task)
    return group


def group_shares(
    group: Group, reported: Mapping[str, Sequence[MetricName]], sizes: Mapping[str, int]
) -> dict[MetricName, dict[str, float]]:
    """Per metric that a group aggregates: its leaf tasks, and what each adds of the whole.

    Args:
        group: with its aggregation.
        reported: leaf task → the metrics that it reports.
        sizes: leaf task → number of items.
    """
    leaves = [task.task_name for task in group.get_all_tasks()]
    shares: dict[MetricName, dict[str, float]] = {}
    for config in group.aggregate_metric_list or ():
        found = {metric for leaf in leaves for metric in reported[leaf]}
        filters = config.filter_list or sorted(
            str(metric.filter) for metric in found if metric.name == config.metric
        )
        for metric in (MetricName(config.metric, filter_name) for filter_name in filters):
            holders = [leaf for leaf in leaves if metric in reported[leaf]]
            sizes_of = {leaf: sizes[leaf] if config.weight_by_size else 1 for leaf in holders}
            total = sum(sizes_of.values())
            if holders:
                shares[metric] = {leaf: size / total for leaf, size in sizes_of.items()}
    return shares


def judge_group(group: Group, scores: Mapping[str, TaskScore]) -> TaskScore:
    """A group's scores from its leaf tasks', by lm-eval's own aggregation."""
    leaves = {task.task_name: scores[task.task_name] for task in group.get_all_tasks()}
    sizes = {leaf: len(score.doc_ids) for leaf, score in leaves.items()}
    reported = {leaf: tuple(score.metrics) for leaf, score in leaves.items()}
    shares = group_shares(group, reported, sizes)
    results = group.aggregate({leaf: _lm_eval_results(score) for leaf, score in leaves.items()})
    metrics = {}
    for metric, holders in shares.items():
        stderr = results.get(f"{metric.name}_stderr,{metric.filter}", _NOT_AVAILABLE)
        better = {leaves[leaf].metrics[metric].higher_is_better for leaf in holders}
        metrics[metric] = Value(
            value=float(results[f"{metric.name},{metric.filter}"]),
            stderr=None if stderr == _NOT_AVAILABLE else float(stderr),
            higher_is_better=better != {False},
            aggregation="group",
        )
    return TaskScore(metrics=metrics, shares=shares)


def _lm_eval_results(score: TaskScore) -> dict[str, Any]:
    results: dict[str, Any] = {"sample_len": len(score.doc_ids)}
    for metric, value in score.metrics.items():
        stderr = _NOT_AVAILABLE if value.stderr is None else value.stderr
        results[f"{metric.name},{metric.filter}"] = value.value
        results[f"{metric.name}_stderr,{metric.filter}"] = stderr
    return results
