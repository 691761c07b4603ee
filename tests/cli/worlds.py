"""The quickstart's models and tasks, copied; small spaces over them; the commands, run."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml
from click.testing import Result
from typer.testing import CliRunner

from evomerge.cli.app import app
from evomerge.search.pool import Evaluator, LocalPool

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart"
EVOMERGE = [sys.executable, "-c", "from evomerge.cli import main; main()"]
"""The command in a process of its own, of whatever environment the tests run in."""

SPACE: Mapping[str, Any] = {
    "base_model": "quickstart/models/base",
    "models": ["quickstart/models/add", "quickstart/models/most"],
    "merge_method": "task_arithmetic",
    "dtype": "float32",
    "genome": {"layers": {"groups": 2, "smooth": True}, "weight": [-0.2, 1.2]},
    "include_path": "quickstart/tasks",
    "tasks": [
        {"task": "quickstart_add", "items": 20, "holdout_task": "quickstart_add_heldout"},
        {"task": "quickstart_most", "items": 20, "holdout_task": "quickstart_most_heldout"},
    ],
    "holdout": {"items": 30},
    "search": {"sampler": "cmaes", "seed": 3, "population": 4, "scan": False, "rungs": "none"},
}
"""Four genes, four baselines (base, uniform, only add, only most); no trial is stopped early."""

BASELINES = 4


@dataclass(frozen=True)
class World:
    """A folder with the models, the tasks and search spaces; searches are run in it."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> World:
        shutil.copytree(QUICKSTART, root / "quickstart")
        return cls(root)

    @property
    def models(self) -> Path:
        return self.root / "quickstart" / "models"

    @property
    def tasks(self) -> Path:
        return self.root / "quickstart" / "tasks"

    def space(self, name: str = "small", **changes: Any) -> Path:
        """A space with other top-level values; None leaves a key out."""
        data = {**copy.deepcopy(dict(SPACE)), **changes}
        data = {key: value for key, value in data.items() if value is not None}
        return self.write(f"{name}.yaml", yaml.safe_dump(data, sort_keys=False))

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return path

    def study(self, name: str) -> Path:
        return self.root / "studies" / name

    def listing(self) -> set[str]:
        """Everything that lies in the folder."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}


class LocalWorkers(LocalPool):
    """Stands in for Ray's pool where a test is not about processes: one worker in this one.

    Like Ray's it builds the evaluator first of all, so that what is wrong with it shows there.
    """

    def __init__(
        self, make: Callable[[], Evaluator], _resources: object, *, address: str | None = None
    ) -> None:
        evaluator = make()
        super().__init__(lambda: evaluator)


def run(*words: object) -> Result:
    """A command in this process; whatever it raises beyond exiting is a defect."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def said(result: Result) -> str:
    """What a command printed on stdout, as one line, so that wrapping does not matter."""
    return " ".join(result.stdout.split())


def told(result: Result) -> str:
    """The same of stderr."""
    return " ".join(result.stderr.split())


def strict_json(text: str) -> Any:
    """JSON as other programs read it: no NaN, no Infinity."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def start(world: World, *words: object) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal would start it."""
    return subprocess.Popen(
        [*EVOMERGE, *(str(word) for word in words)],
        cwd=world.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def trials(study: Path | str, storage: str | None = None) -> list[tuple[Any, ...]]:
    """What must be the same in two runs of a study: all but the time that it took."""
    from evomerge.api import load_study

    return [
        (t.number, t.kind, t.label, t.state, t.fitness, dict(t.genome), t.recipe, t.scores)
        for t in load_study(study, storage).trials
    ]


def table(study: Path) -> pandas.DataFrame:
    return pandas.read_csv(study / "trials.csv", keep_default_na=True)


def tensors(folder: Path) -> dict[str, Any]:
    """A written model's tensors."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def same_bits(a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str] = ()) -> None:
    """Every tensor equal in type, shape and every bit."""
    import torch

    assert names or set(a) == set(b)
    for name in names or a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert torch.equal(
            a[name].contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)
        ), name
