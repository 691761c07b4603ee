"""Floors in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.report import limit_words
from evomerge.search.records import TrialRecord
from evomerge.space import load_space

SPACE = """\
base_model: base
models: [a, b, c]
merge_method: linear
genome: {weight: [0.0, 1.0]}
tasks:
  - {task: arc_easy, min: best - 0.1}
  - {task: piqa, min: 0.5}
"""


def baseline(number: int, label: str, state: str, value: float = 0.0) -> TrialRecord:
    scores: Any = {task: {"acc,none": (value, 0.01)} for task in ("arc_easy", "piqa")}
    return TrialRecord(number, "baseline", state, value, label=label, scores=scores)


@pytest.mark.parametrize("failed", [(), ("only b",), ("only b", "only c")])
def test_a_limit_tells_which_models_it_leaves_out(failed: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    trials = [
        baseline(number, label, "failed" if label in failed else "complete", 0.6 + number / 10)
        for number, label in enumerate(("only a", "only b", "only c"))
    ]
    study: Any = SimpleNamespace(
        space=load_space(file), facts={"space": {}}, trials=trials, choice=None
    )
    [words] = limit_words(study)
    limit, whose = ("0.5000", "only a") if len(failed) > 1 else ("0.7000", "only c")
    left = f"; left out, as failed: {' and '.join(failed)}" if failed else ""
    told = f"Floors: arc_easy acc >= best - 0.1 ({limit}, of {whose}{left}); piqa acc >= 0.5. "
    assert words.startswith(told), words
