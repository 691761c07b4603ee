"""``evomerge evaluate``: a model's or a recipe's scores, and the difference of two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cli.output import print_json, quiet_libraries, say, show_table, stderr, tell_note
from evomerge.errors import Fault

if TYPE_CHECKING:
    from evomerge.evaluation import Comparison, TaskRequest
    from evomerge.search.assessment import Evaluation


def run_evaluate(
    model: str,
    tasks: str,
    *,
    compare: str | None,
    as_json: bool,
    metric: Sequence[str],
    **options: Any,
) -> None:
    """Score and print, every metric with its standard error."""
    from evomerge.assessing import evaluate_models

    quiet_libraries()
    metrics = [name.strip() for name in metric]
    models = [model] if compare is None else [model, compare]
    requests, faults = _requests(tasks, options)
    found = evaluate_models(models, requests, metrics=metrics, faults=faults, **options)
    difference = found[0].against(found[1]) if compare is not None else None
    if as_json:
        print_json(_report(models, found, difference, {**options, "metrics": metrics}))
        return
    for note in dict.fromkeys(note for evaluation in found for note in evaluation.notes):
        tell_note(note, stderr)
    if difference is None:
        _show(found[0], metrics)
    else:
        _show_difference(models, difference)


def _requests(tasks: str, options: Mapping[str, Any]) -> tuple[list[TaskRequest], list[Fault]]:
    """``a,b=50``: tasks, some with a number of items of their own, and the numbers that are none.

    A task whose number is none is asked for all the same, so that what else is wrong with it is
    found.
    """
    from evomerge.evaluation import TaskRequest

    requests, faults = [], []
    for text in filter(None, (part.strip() for part in tasks.split(","))):
        name, equals, number = (part.strip() for part in text.partition("="))
        items = options["items"]
        if equals and not (number.isascii() and number.isdigit() and int(number) > 0):
            problem = f"{number!r} items; write {name}=100, or {name} alone"
            faults.append(Fault(f"task {name}", problem))
        elif equals:
            items = int(number)
        request = TaskRequest(
            name, items=items, num_fewshot=options["num_fewshot"], seed=options["seed"]
        )
        requests.append(request)
    return requests, faults


def _show(evaluation: Evaluation, metrics: Sequence[str]) -> None:
    """Every row, or those of the metrics that were asked for; a filter may be left open."""
    from evomerge.evaluation import MetricName

    wanted = [MetricName.parse(name) for name in metrics]
    rows: list[tuple[str, ...]] = []
    for task, score in evaluation.scores.tasks.items():
        count = str(len(score.doc_ids)) if score.doc_ids else ""
        for metric, value in score.metrics.items():
            if not wanted or metric in wanted or MetricName(metric.name) in wanted:
                error = "" if value.stderr is None else f"{value.stderr:.4f}"
                rows.append((task, count, str(metric), f"{value.value:.4f}", error))
    show_table(("task", "items", "metric", "value", "± standard error"), rows, numbers=(1, 3, 4))


def _show_difference(models: Sequence[str], difference: Comparison) -> None:
    rows = []
    for one in difference.tasks:
        interval = "" if one.low is None else f"{one.low:+.4f} to {one.high:+.4f}"
        counts = f"{one.wins}/{one.losses}/{one.ties}"
        values = f"{one.b:.4f}", f"{one.a:.4f}", f"{one.difference:+.4f}"
        rows.append((one.task, one.metric.removesuffix(",none"), *values, interval, counts))
    first, second = models
    say(f"A: {first}\nB: {second}")
    headers = ("task", "metric", "A", "B", "A ahead by", "95 % interval", "won/lost/tied")
    show_table(headers, rows, numbers=range(2, 7))
    say(
        "Paired item by item: won, lost and tied count the items on which A did better, worse, the "
        "same. Where an interval holds 0, these items do not tell the two apart."
    )


def _report(
    models: Sequence[str],
    found: Sequence[Evaluation],
    difference: Comparison | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    from evomerge.search.provenance import versions

    report: dict[str, Any] = {
        "model": models[0],
        "tasks": _tasks(found[0]),
        "settings": {name: _plain(value) for name, value in options.items()},
        "items_digest": found[0].digest,
        "versions": versions(),
        "notes": list(found[0].notes),
    }
    if difference is not None:
        report["other"] = {"model": models[1], "tasks": _tasks(found[1])}
        report["differences"] = [
            {
                "task": one.task,
                "metric": one.metric,
                "value": one.b,
                "other": one.a,
                "better_by": one.difference,
                **{name: asdict(one)[name] for name in ("low", "high", "p_value")},
                "better": one.wins,
                "worse": one.losses,
                "same": one.ties,
            }
            for one in difference.tasks
        ]
    return dict(_plain(report))


def _tasks(evaluation: Evaluation) -> dict[str, Any]:
    return {
        task: {
            "items": len(score.doc_ids),
            "version": evaluation.versions.get(task),
            "num_fewshot": evaluation.shots.get(task),
            "metrics": {
                str(metric): {
                    "value": value.value,
                    "stderr": value.stderr,
                    "higher_is_better": value.higher_is_better,
                }
                for metric, value in score.metrics.items()
            },
        }
        for task, score in evaluation.scores.tasks.items()
    }


def _plain(value: Any) -> Any:
    """As JSON has it: paths are texts, what is no number is null."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
