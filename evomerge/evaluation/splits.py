"""Which of a task's documents are asked: those that lm-eval evaluates on, or another split's.

A task on another split is the same task with its ``test_split`` replaced (and, where its examples
come from that split, its ``fewshot_split`` named, so that lm-eval leaves out the document that is
asked): ``simple_evaluate`` gives the same numbers for a definition that ``include``s the task's and
says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask

from evomerge.errors import TaskError
from evomerge.evaluation.scores import listed
from evomerge.evaluation.spec import Split

_KEYS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
_SHIPPED = Path(lm_eval.tasks.__file__).resolve().parent


@dataclass(frozen=True)
class Source:
    """Where the search items of a leaf task come from.

    Args:
        split: the data set's name of it; None where the definition does not say.
        evaluated: the split that lm-eval evaluates the task on, likewise; held-out items are its.
    """

    split: str | None
    evaluated: str | None

    @property
    def apart(self) -> bool:
        """Whether search and held-out items lie in different splits."""
        return self.split != self.evaluated


def find_source(name: str, task: Any, wanted: Split) -> Source:
    """The split that a leaf task is searched on.

    Args:
        name: the task's.
        task: lm-eval's ``Task``, the number of its examples set.
        wanted: ``auto`` is the validation split, else the training split, of a task that is
            evaluated on another; ``evaluation`` the one that lm-eval evaluates on.

    Raises:
        TaskError: the task has no such split; says which it has.
    """
    evaluated = evaluation_split(task)
    if wanted == "evaluation":
        return Source(evaluated, evaluated)
    if wanted == "auto":
        named = (task.get_config(_KEYS[role]) for role in ("validation", "train"))
        other = [split for split in named if split and split != evaluated]
        usable = [split for split in other if _changeable(task) and not _leaks(task, split)]
        return Source(usable[0] if usable else evaluated, evaluated)
    split = _named(task, wanted)
    if split is None or (split != evaluated and not _changeable(task)):
        there = [*other_splits(task, Source(None, None)), "evaluation"]
        raise TaskError.at(
            f"task {name}: split",
            f"{wanted!r}, but the task has none; write {listed(there, ' or ')}",
        )
    if split != evaluated and _leaks(task, split):
        raise TaskError.at(
            f"task {name}: split",
            f"{wanted!r}, but its examples come from there in another form, so that an item's own "
            "answer may stand before it; write another split, or num_fewshot: 0",
        )
    return Source(split, evaluated)


def other_splits(task: Any, source: Source) -> list[str]:
    """What could be written for a task's split, other than where ``source`` has it from."""
    if not _changeable(task):
        return []
    splits = {role: _named(task, role) for role in ("validation", "train")}
    taken = (None, source.split, source.evaluated)
    return [
        role for role, split in splits.items() if split not in taken and not _leaks(task, split)
    ]


def count_documents(task: Any, split: str | None) -> int:
    """How many documents a split of a task has, after the task's own ``process_docs``."""
    before = task.get_config("test_split")
    if split == evaluation_split(task):
        return len(task.eval_docs)
    task.set_config(key="test_split", value=split)
    try:
        return len(task.eval_docs)
    finally:
        task.set_config(key="test_split", value=before)


def ask_on(task: Any, split: str | None) -> None:
    """Let a task ask the documents of a split; its own are left as they are."""
    if split == evaluation_split(task):
        return
    examples = task.get_config("fewshot_config")
    if examples_split(task) == split:
        # lm-eval leaves the asked document out only where the examples' split is named.
        examples.split = split
    task.set_config(key="test_split", value=split)


def evaluation_split(task: Any) -> str | None:
    """The split that lm-eval evaluates a task on; None where its definition does not say."""
    return task.get_config("test_split") or task.get_config("validation_split")


def examples_split(task: Any) -> str | None:
    """The split that a task's examples are drawn from; None where they are written down."""
    config = task.get_config("fewshot_config")
    named = getattr(config, "split", None)
    if named is not None or getattr(config, "samples", None) is not None:
        return named
    return next((split for key in _KEYS.values() if (split := task.get_config(key))), None)


def search_notes(task: Any, source: Source) -> Iterator[str]:
    """What a user should know of the documents that a task is searched on."""
    if not source.apart and is_shipped(task):
        others = other_splits(task, source)
        instead = (
            f"write split: {' or '.join(others)}"
            if others
            else "it has no others, so go by the held-out items alone"
        )
        where = "" if source.split is None else f" ({source.split!r})"
        yield (
            f"is searched on the documents{where} that this public benchmark is scored on, so its "
            f"score on the search items is none to report; {instead}"
        )
    if source.apart and source.split == task.get_config("training_split"):
        yield (
            f"is searched on its training documents ({source.split!r}): a model that was trained "
            "on them looks better there than it is"
        )


def is_shipped(task: Any) -> bool:
    """Whether a leaf task's definition is one of lm-eval's own, a public benchmark."""
    metadata = task.get_config("metadata")
    source = metadata.get("config_source") if isinstance(metadata, dict) else None
    if source is None:
        return type(task).__module__.startswith("lm_eval.tasks.")
    return Path(source).resolve().is_relative_to(_SHIPPED)


def _named(task: Any, role: str) -> str | None:
    """The data set's name of a split: the definition's, else the role's own if there is one."""
    named: str | None = task.get_config(_KEYS[role])
    # A test split that the definition leaves out has no public answers.
    if named is None and role != "test" and role in getattr(task, "dataset", ()):
        return role
    return named


def _changeable(task: Any) -> bool:
    """Whether the definition alone says which documents are asked (a task's own code may)."""
    if not isinstance(task, ConfigurableTask) or evaluation_split(task) is None:
        return False
    names = ("eval_docs", "has_test_docs", "test_docs")
    return all(getattr(type(task), name) is getattr(ConfigurableTask, name) for name in names)


def _leaks(task: Any, split: str | None) -> bool:
    """Whether an item's own answer may stand before it, as an example that lm-eval cannot tell."""
    if not task.get_config("num_fewshot") or examples_split(task) != split:
        return False
    shown = task.get_config("fewshot_config").process_docs
    return shown is not task.get_config("process_docs")
