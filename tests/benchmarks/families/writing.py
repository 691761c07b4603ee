"""Writes a family's items, lm-eval tasks and space."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.families.quickstart import FOLDER
from tests.benchmarks.families.quickstart import skills as questions

SEARCH, HELDOUT = "search", "heldout"

_CHOICE = {
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "prompt",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ],
    "metadata": {"version": 1.0},
}
_ROLLING = {
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    ],
    "metadata": {"version": 1.0},
}


def skill_items(skill: str, part: str, number: int) -> list[dict[str, Any]]:
    """The quickstart's questions; no prompt stands in two parts (see :func:`reserved`)."""
    name = {SEARCH: "search", HELDOUT: "heldout"}[part]
    lines = (FOLDER / "tasks" / "items" / f"{skill}.{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:number]]


def reserved() -> frozenset[str]:
    """The prompts of all items: nothing of them is trained on."""
    parts = ((SEARCH, 300), (HELDOUT, 1000))
    return frozenset(
        item["prompt"]
        for skill in questions.SKILLS
        for p in parts
        for item in skill_items(skill, *p)
    )


def write_task(
    folder: Path, name: str, items: Sequence[Mapping[str, Any]], *, rolling: bool, gap: str
) -> None:
    """A task definition and its items; ``gap`` stands between a prompt and a choice."""
    (folder / "items").mkdir(parents=True, exist_ok=True)
    shutil.copy(FOLDER / "tasks" / "data.py", folder / "data.py")
    text = "".join(json.dumps(item) + "\n" for item in items)
    (folder / "items" / f"{name}.jsonl").write_text(text)
    task = {"task": name, "dataset_kwargs": {"items": name}, **(_ROLLING if rolling else _CHOICE)}
    if not rolling:
        task["target_delimiter"] = gap
    written = yaml.safe_dump(task, sort_keys=False) + "custom_dataset: !function data.load\n"
    (folder / f"{name}.yaml").write_text(written)


def write_space(
    folder: Path,
    models: Sequence[str],
    tasks: Sequence[Mapping[str, Any]],
    genome: Mapping[str, Any],
    merge_method: str = "task_arithmetic",
) -> None:
    """``space.yaml`` of models and tasks beside it."""
    space = {
        "base_model": "./models/base",
        "models": [f"./models/{name}" for name in models],
        "merge_method": merge_method,
        "dtype": "float32",
        "genome": dict(genome),
        "include_path": "tasks",
        "tasks": [dict(task) for task in tasks],
        "holdout": {"items": 1000},
        "search": {"sampler": "cmaes", "seed": 0},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
