"""Reading a search space from YAML: evomerge's shape, or mergekit-evolve's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from evomerge.documents import (
    Document,
    read_documents,
    read_text,
    shown,
    validation_problems,
)
from evomerge.errors import EvomergeWarning, Fault, SpaceError
from evomerge.space.draft import Draft
from evomerge.space.evolve import is_evolve, translate
from evomerge.space.model import SearchSpace
from evomerge.space.objectives import fill_sampler
from evomerge.space.origin import Origin
from evomerge.space.searching import read_settings, unread_settings
from evomerge.space.stage import Stage
from evomerge.space.staging import check_stages


class SpaceWarning(EvomergeWarning):
    """A space can be searched, but says something that has no effect, or not the likely one."""


def load_space(path: str | Path) -> SearchSpace:
    """Read a search space, evomerge's or mergekit-evolve's, and check all that needs no model.

    Relative folders of models and tasks are seen from the file's folder (those of a
    mergekit-evolve configuration from the current directory first, as that command does). A model
    that is no folder is the hub's.

    A file of several YAML documents is a space of several stages: each but the last says a merge,
    and has a ``name`` by which those after it may take its result as a model or as their base. What
    is scored and how it is searched stands in the last.

    Args:
        path: a YAML file.

    Raises:
        SpaceError: everything that is wrong with it, each with its line.

    Warns:
        SpaceWarning: something in it has no effect.
    """
    file = Path(path).expanduser()
    documents = read_documents(read_text(file, SpaceError), str(file), SpaceError)
    if not documents:
        raise SpaceError([Fault(str(file), "is empty")])
    faults = [_not_a_mapping(one) for one in documents if not isinstance(one.data, Mapping)]
    if faults:
        raise SpaceError(faults)
    faults = check_stages(documents)
    made = {str(one.data.get("name")) for one in documents[:-1]}
    stages: list[Stage] = []
    for document in documents[:-1]:
        draft = _stage_draft(document, file.resolve(), made)
        read = _validated(Stage, draft, Origin(document, draft.renamed), faults)
        stages += [read] if read is not None else []
    draft = _draft(documents[-1], file.resolve(), made)
    draft.data["stages"] = stages
    space = _validated(SearchSpace, draft, Origin(documents[-1], draft.renamed), faults)
    if faults or space is None:
        raise SpaceError(dict.fromkeys(faults))
    for stage in (*stages, space):
        for note in _notes(stage):
            warnings.warn(str(note), SpaceWarning, stacklevel=2)
    return space


def _not_a_mapping(document: Document) -> Fault:
    return document.fault((), f"{shown(document.data)} is refused: a mapping is expected")


def _draft(document: Document, file: Path, made: set[str]) -> Draft:
    """The data of the only document, or of the last."""
    if is_evolve(document.data):
        draft = translate(document.data)
        draft.locate([Path.cwd(), file.parent])
    else:
        draft = Draft(dict(document.data))
        draft.locate([file.parent], made)
        for key in ("source", "stages"):
            if key in draft.data:
                draft.faults.append(((key,), "is refused: it is what the file itself says"))
        fill_sampler(draft.data)
        if "search" in draft.data:
            draft.faults += unread_settings(draft.data["search"])
            draft.data["search"] = read_settings(draft.data["search"])
    draft.drop_base()
    draft.data["source"] = file
    draft.data.setdefault("name", file.stem.lstrip(".") or "search")
    return draft


def _stage_draft(document: Document, file: Path, made: set[str]) -> Draft:
    """The data of an earlier document."""
    draft = Draft(dict(document.data))
    draft.locate([file.parent], made)
    draft.drop_base()
    for key in list(draft.data):
        if key in SearchSpace.model_fields and key not in Stage.model_fields:
            draft.faults.append(((key,), "is refused here: it stands in the last document"))
            del draft.data[key]
    return draft


Read = TypeVar("Read", bound=Stage)


def _validated(kind: type[Read], draft: Draft, origin: Origin, faults: list[Fault]) -> Read | None:
    """The stage or space of a draft, or None; adds each fault once, in the order of the file."""
    problems = list(draft.faults)
    made: Read | None = None
    try:
        made = kind.model_validate(draft.data)
    except ValidationError as problem:
        found = validation_problems(problem)
        problems += [(origin.trace(path), text) for path, text in found]
    ordered = sorted(problems, key=lambda problem: origin.document.line(problem[0]))
    faults += dict.fromkeys(origin.document.fault(path, text) for path, text in ordered)
    if made is not None:
        made.remember(origin, draft.notes)
    return made


def _notes(stage: Stage) -> list[Fault]:
    """What has no effect, or not the likely one."""
    reads = {key for name in stage.methods for key in stage.reads(name)}
    if "density" not in reads or stage.genome.density is not None:
        return list(stage.notes)
    problem = (
        f"{' or '.join(stage.methods)} without density keeps task vectors whole (density 1); "
        "write density: [0.1, 1.0] to search it"
    )
    return [*stage.notes, stage.fault(("genome",), problem)]
