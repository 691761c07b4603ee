"""Their side: what mergekit-evolve's default strategy does for a trial.

It merges to disk, loads what it wrote and evaluates that with ``lm_eval.simple_evaluate``
(``OnDiskMergeEvaluator`` of mergekit 0.1.5). Its command does not start beside lm-eval 0.4.13, so
that its three steps are called here one after the other, with the options that it gives them; but
in float32 (it would take bfloat16, which is slower on a CPU and gives other scores) and with a
batch size (it leaves that at 1).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


@dataclass(frozen=True)
class TheirTrial:
    """What a trial took and found.

    Args:
        merge: seconds of the merge to disk.
        whole: seconds of everything.
        scores: task → its accuracy.
    """

    merge: float
    whole: float
    scores: dict[str, float]


class Strategy:
    """Runs trials one after the other.

    Args:
        folder: models are written below, and removed after their trial.
        tasks: folders of task definitions.
        samples: task → the documents that are asked.
        batch_size: of the evaluation.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[Path],
        samples: Mapping[str, Sequence[int]],
        batch_size: int,
    ) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        logging.getLogger("mergekit").setLevel(logging.ERROR)
        self._folder, self._batch_size = folder, batch_size
        self._samples = {task: list(numbers) for task, numbers in samples.items()}
        self._manager = TaskManager(include_path=[str(path) for path in tasks])
        self._options = MergeOptions(quiet=True, lazy_unpickle=True)

    def trial(self, recipe: str) -> TheirTrial:
        """Merge a recipe, load the model, evaluate it."""
        began = time.perf_counter()
        with TemporaryDirectory(prefix="merged", dir=self._folder) as merged:
            config = MergeConfiguration.model_validate(yaml.safe_load(recipe))
            run_merge(config, out_path=merged, options=self._options)
            wrote = time.perf_counter()
            found = self._evaluate(merged)
        names = self._samples
        scores = {name: float(found[name]["acc,none"]) for name in names}
        return TheirTrial(wrote - began, time.perf_counter() - began, scores)

    def _evaluate(self, model: str) -> dict[str, Any]:
        evaluate: Callable[..., Any] = lm_eval.simple_evaluate
        found = evaluate(
            model="hf",
            model_args={"pretrained": model, "dtype": "float32", "device": "cpu"},
            tasks=list(self._samples),
            samples=self._samples,
            batch_size=self._batch_size,
            task_manager=self._manager,
            log_samples=False,
            verbosity="WARNING",
        )
        return dict(found["results"])
