"""A request's documents: from which split of each leaf task, and which of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from evomerge.errors import Fault, TaskError
from evomerge.evaluation.choosing import DocIds, choose, choose_climb, choose_race
from evomerge.evaluation.gathering import Faults
from evomerge.evaluation.spec import Counts, Part, Split, TaskRequest
from evomerge.evaluation.splits import Source, count_documents, find_source, other_splits
from evomerge.evaluation.tasks import quiet

_ROLES: tuple[Split, ...] = ("validation", "train")


@dataclass(frozen=True)
class Drawn:
    """The documents of one leaf task.

    Args:
        doc_ids: their positions in the split, ascending.
        split: where they lie; None where the definition does not say.
        source: where the task's search items lie.
    """

    doc_ids: DocIds
    split: str | None
    source: Source


def draw(
    tasks: Mapping[str, Any], request: TaskRequest, part: Part, counts: Counts
) -> dict[str, Drawn]:
    """Choose the documents of each leaf task behind a request.

    Args:
        tasks: lm-eval's leaf tasks by name, the number of their examples set.
        request: how many, by which seed, from where.
        part: see :func:`~evomerge.evaluation.choosing.choose`.
        counts: of the other parts.

    Raises:
        TaskError: a task has no such split, or too few documents.
    """
    wanted: Split = request.split
    if wanted == "auto" and request.held_out_elsewhere:
        wanted = "evaluation"  # what is held out is said, so the task itself is there for searching
    sources = _sources(tasks, wanted)
    sizes = {name: _count(name, task, sources[name].split) for name, task in tasks.items()}
    held_out = {
        name: _count(name, task, sources[name].evaluated)
        for name, task in tasks.items()
        if sources[name].apart
    }
    try:
        if part == "race":
            chosen = choose_race(sizes, request, counts, held_out)
        elif part == "climb":
            chosen = choose_climb(sizes, request, counts, held_out)
        else:
            chosen = choose(sizes, request, part, counts.holdout_items, held_out)
    except TaskError as error:
        raise TaskError(_with_a_hint(fault, tasks, sources) for fault in error.faults) from None
    drawn = {}
    for name, doc_ids in chosen.items():
        source = sources[name]
        split = source.evaluated if part == "holdout" else source.split
        drawn[name] = Drawn(doc_ids, split, source)
    return drawn


def _sources(tasks: Mapping[str, Any], wanted: Split) -> dict[str, Source]:
    faults = Faults()
    found = {
        name: faults.attempt(partial(find_source, name, task, wanted))
        for name, task in tasks.items()
    }
    faults.check()
    return found


def _count(name: str, task: Any, split: str | None) -> int:
    try:
        with quiet():
            return count_documents(task, split)
    except Exception as error:  # the task's own code, which may know one split only
        reason = f"the documents of {split!r} cannot be read: {type(error).__name__}: {error}"
        raise TaskError.at(f"task {name}: split", f"{reason}; write split: evaluation") from error


def _with_a_hint(fault: Fault, tasks: Mapping[str, Any], sources: Mapping[str, Source]) -> Fault:
    """Where there are too few documents to search on, the splits that there are besides."""
    if not fault.place.endswith(": items"):
        return fault
    others = [other_splits(task, sources[name]) for name, task in tasks.items()]
    roles: list[Split] = [role for role in _ROLES if all(role in other for other in others)]
    if any(source.apart for source in sources.values()):
        roles.append("evaluation")
    told = []
    for role in roles:
        there = _sources(tasks, role)
        total = sum(_count(name, task, there[name].split) for name, task in tasks.items())
        told.append(f"{role} ({total} documents)")
    hint = f", or another split: {' or '.join(told)}" if told else ""
    return replace(fault, problem=fault.problem + hint)
