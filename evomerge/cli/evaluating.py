"""``evomerge evaluate``: a model's or a recipe's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evomerge.cli.output import print_json, quiet_libraries, show_table

if TYPE_CHECKING:
    from evomerge.evaluation import Scores


def run_evaluate(model: str, tasks: Sequence[str], *, as_json: bool, **options: Any) -> None:
    """Score and print, every metric with its standard error."""
    from evomerge.api import evaluate

    quiet_libraries()
    scores = evaluate(model, tasks, **options)
    if as_json:
        print_json({"model": model, "tasks": _as_json(scores)})
        return
    rows: list[tuple[str, ...]] = []
    for task, score in scores.tasks.items():
        for metric, value in score.metrics.items():
            error = "" if value.stderr is None else f"{value.stderr:.4f}"
            count = str(len(score.doc_ids)) if score.doc_ids else ""
            rows.append((task, count, str(metric), f"{value.value:.4f}", error))
    show_table(("task", "items", "metric", "value", "± standard error"), rows, numbers=(1, 3, 4))


def _as_json(scores: Scores) -> dict[str, Any]:
    return {
        task: {
            "items": len(score.doc_ids),
            "metrics": {
                str(metric): {"value": value.value, "stderr": value.stderr}
                for metric, value in score.metrics.items()
            },
        }
        for task, score in scores.tasks.items()
    }
