"""The door to lm-eval's task definitions: names → loaded tasks, groups and tags."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from evomerge.errors import Fault, TaskError
from evomerge.evaluation.scores import listed
from evomerge.evaluation.splits import evaluation_split, examples_split


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
        self._own = TaskManager(include_path=list(self._folders), include_defaults=False)

    def load(self, name: str) -> Loaded:
        """The tasks behind a name, their data sets read.

        Raises:
            TaskError: the name is unknown (says which names are near), or its data cannot be read.
        """
        manager = self._manager_of(name)
        if name not in manager.task_index and not Path(name).is_file():
            raise TaskError.at(f"task {name}", self._unknown(name))
        try:
            return _load(manager, name)
        except Exception as error:  # a data set may fail in any way: offline, moved, malformed
            reason = f"could not be loaded: {type(error).__name__}: {error}"
            raise TaskError.at(f"task {name}", reason) from error

    def unsafe(self, name: str) -> list[str]:
        """The leaf tasks behind a name whose definitions say that they run the model's code.

        Nothing is loaded: some of them run code as soon as they are.
        """
        leaves = _leaves(name, self._manager_of(name).task_index)
        return [leaf for leaf, config in leaves.items() if (config or {}).get("unsafe_code")]

    def _manager_of(self, name: str) -> TaskManager:
        """The narrowest index that holds all that a name stands for."""
        # A study with tasks of its own never needs lm-eval's.
        own, is_file = self._own.task_index, Path(name).is_file()
        if None not in _leaves(name, own).values():
            return self._own
        whole = _lm_eval().task_index
        unknown = name not in own and name not in whole
        apart = name not in own and not set(own) & set(whole)
        return _lm_eval() if (unknown or apart) and not is_file else self._both

    @functools.cached_property
    def _both(self) -> TaskManager:
        return TaskManager(include_path=list(self._folders)) if self._folders else _lm_eval()

    def _unknown(self, name: str) -> str:
        names = {*self._own.all_tasks, *_lm_eval().all_tasks}
        near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.75)
        hint = f"; near names are {listed(near)}" if near else ""
        where = f" nor a task of {listed(self._folders)}" if self._folders else ""
        return f"is no task, group or tag of lm-eval{where}{hint}"


@functools.cache
def _lm_eval() -> TaskManager:
    """lm-eval's fourteen thousand names, which take seconds to read: once per process."""
    return TaskManager()


def _leaves(name: str, index: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """The definitions of the leaf tasks behind a name; ``None`` for what the index does not know.

    Args:
        name: of a task, a group or a tag.
        index: lm-eval's ``task_index``.
    """
    entry = index.get(name)
    if entry is None:
        return {name: None}
    if entry.cfg is None:  # a tag
        members: Any = sorted(entry.tags)
    elif "group" in entry.cfg:
        members = entry.cfg.get("task") or ()
    else:
        return {name: entry.cfg}
    leaves: dict[str, Mapping[str, Any] | None] = {}
    for member in members:
        if isinstance(member, str):
            leaves |= _leaves(member, index)
            continue
        # Written out in the group: a task with changes, or one that is defined there and then.
        own = str(member.get("task") or member.get("group"))
        found = _leaves(own, index) if own in index else {own: member}
        leaves |= {leaf: {**(config or {}), **member} for leaf, config in found.items()}
    return leaves


def _load(manager: TaskManager, name: str) -> Loaded:
    with quiet():
        found = manager.load([name])
    return Loaded(name, dict(found["tasks"]), dict(found.get("groups", {})))


def unsafe_fault(name: str) -> Fault:
    """Why a leaf task that runs the model's code is refused."""
    return Fault(
        f"task {name}",
        "runs code that the model writes; allow it explicitly (confirm_unsafe: true in a space, "
        "--confirm-unsafe) on a machine where that does no harm",
    )


def refusal(name: str, task: Any, confirm_unsafe: bool) -> Fault | None:
    """Why a leaf task may not or cannot be scored, if so."""
    if getattr(task, "MULTIMODAL", False):
        return Fault(f"task {name}", "asks about images or sound; only text models can be scored")
    if getattr(task, "UNSAFE_CODE", False) and not confirm_unsafe:
        return unsafe_fault(name)
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


def fewshot_notes(task: Any, num_fewshot: int | None, *, apart: bool) -> Iterator[str]:
    """What a user should know of the examples of a leaf task that is ready to ask: no faults.

    Args:
        task: after :func:`set_fewshot` and :func:`~evomerge.evaluation.splits.ask_on`.
        num_fewshot: as it was asked for.
        apart: whether other documents are held out than those of the split that is searched on.
    """
    shots = task.get_config("num_fewshot") or 0
    if num_fewshot and not shots:
        yield "shows no examples, whatever num_fewshot says"
    if shots and not apart and examples_split(task) == evaluation_split(task):
        yield (
            "draws its examples from the documents that are scored; the search may see held-out "
            "items as examples"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's and datasets' progress bars off the terminal: only the CLI may print."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
