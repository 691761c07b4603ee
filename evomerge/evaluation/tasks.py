"""The door to lm-eval's task definitions: names → loaded tasks, groups and tags."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from evomerge.errors import Fault, TaskError
from evomerge.evaluation.scores import listed

# lm-eval's index of its fourteen thousand names takes seconds to build: once per process.
_INDEXES: dict[tuple[str, ...], TaskManager] = {}


@dataclass(frozen=True)
class Loaded:
    """What one name stands for.

    Args:
        name: as it was asked for.
        tasks: the leaf tasks, lm-eval ``Task`` objects by name; at least one.
        groups: lm-eval ``Group`` objects by name: the group itself and those inside it; empty for a
            plain task and for a tag.
    """

    name: str
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]

    @property
    def is_task(self) -> bool:
        """A single task, neither group nor tag."""
        return tuple(self.tasks) == (self.name,) and not self.groups


class TaskLibrary:
    """lm-eval's own tasks and those of the folders in ``include_path`` (which win).

    Raises:
        TaskError: a folder does not exist.
    """

    def __init__(self, include_path: tuple[Path, ...] = ()) -> None:
        faults = [
            Fault("include_path", f"{str(folder)!r} is no folder")
            for folder in include_path
            if not Path(folder).is_dir()
        ]
        if faults:
            raise TaskError(faults)
        self._folders = tuple(str(folder) for folder in include_path)
        # A study with tasks of its own never needs lm-eval's.
        self._own = TaskManager(include_path=list(self._folders), include_defaults=False)
        self._fresh = False

    def load(self, name: str) -> Loaded:
        """The tasks behind a name, their data sets read.

        Raises:
            TaskError: the name is unknown (says which names are near), or its data cannot be read.
        """
        if name in self._own.task_index:
            # Its own group may still hold lm-eval's tasks: then the narrow index cannot load it.
            with contextlib.suppress(Exception):
                return _load(self._own, name)
        manager = self._manager_of(name)
        if name not in manager.task_index and not Path(name).is_file():
            raise TaskError.at(f"task {name}", self._unknown(name, manager))
        try:
            return _load(manager, name)
        except Exception as error:  # a data set may fail in any way: offline, moved, malformed
            reason = f"could not be loaded: {type(error).__name__}: {error}"
            raise TaskError.at(f"task {name}", reason) from error

    def _manager_of(self, name: str) -> TaskManager:
        known = self._folders in _INDEXES and name in _INDEXES[self._folders].task_index
        if not known and not self._fresh:  # the folders may have changed since
            _INDEXES[self._folders] = TaskManager(include_path=list(self._folders))
            self._fresh = True
        return _INDEXES[self._folders]

    def _unknown(self, name: str, manager: TaskManager) -> str:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.75)
        hint = f"; near names are {listed(near)}" if near else ""
        where = f" nor a task of {listed(self._folders)}" if self._folders else ""
        return f"is no task, group or tag of lm-eval{where}{hint}"


def _load(manager: TaskManager, name: str) -> Loaded:
    with quiet():
        found = manager.load([name])
    return Loaded(name, dict(found["tasks"]), dict(found.get("groups", {})))


def document_count(task: Any) -> int:
    """How many documents lm-eval would evaluate a task on."""
    with quiet():
        return len(task.eval_docs)


def refusal(name: str, task: Any, confirm_unsafe: bool) -> Fault | None:
    """Why a leaf task may not or cannot be scored, if so."""
    place = f"task {name}"
    if getattr(task, "MULTIMODAL", False):
        return Fault(place, "asks about images or sound; only text models can be scored")
    if getattr(task, "UNSAFE_CODE", False) and not confirm_unsafe:
        return Fault(
            place,
            "runs code that the model writes; allow it explicitly (confirm_unsafe) on a machine "
            "where that does no harm",
        )
    return None


def set_fewshot(task: Any, num_fewshot: int | None, seed: int) -> None:
    """Give a task its examples as ``simple_evaluate`` does: a task that fixes 0 keeps it."""
    fixed = task.get_config("num_fewshot")
    if num_fewshot is not None and fixed != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)
    # lm-eval draws examples in the order of the documents, so every build starts the draw anew.
    task.set_fewshot_seed(seed=seed)


def notes_on(name: str, task: Any, num_fewshot: int | None) -> list[str]:
    """What a user should know of a leaf task whose examples are set: no faults.

    Args:
        name: the task's.
        task: after :func:`set_fewshot`.
        num_fewshot: as it was asked for.
    """
    notes = []
    shots = task.get_config("num_fewshot") or 0
    if num_fewshot and not shots:
        notes.append(f"task {name}: shows no examples, whatever num_fewshot says")
    if shots and _examples_split(task) == _evaluation_split(task):
        notes.append(
            f"task {name}: draws its examples from the documents that are scored; the search may "
            "see held-out items as examples"
        )
    return notes


def _evaluation_split(task: Any) -> str | None:
    return task.get_config("test_split") or task.get_config("validation_split")


def _examples_split(task: Any) -> str | None:
    config = task.get_config("fewshot_config")
    if getattr(config, "samples", None) is not None:
        return None
    splits = ("training_split", "validation_split", "test_split")
    named: list[str | None] = [getattr(config, "split", None), *map(task.get_config, splits)]
    return next((split for split in named if split), None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's and datasets' progress bars off the terminal: only the CLI may print."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
