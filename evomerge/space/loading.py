"""Reading a search space from YAML: evomerge's shape, or mergekit-evolve's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from evomerge.documents import Document, read_document, shown, validation_problems
from evomerge.errors import EvomergeWarning, Fault, SpaceError
from evomerge.space.draft import Draft
from evomerge.space.evolve import is_evolve, translate
from evomerge.space.methods import METHODS
from evomerge.space.model import SearchSpace
from evomerge.space.origin import Origin
from evomerge.space.strict import Conflict


class SpaceWarning(EvomergeWarning):
    """A space can be searched, but says something that has no effect, or not the likely one."""


def load_space(path: str | Path) -> SearchSpace:
    """Read a search space, evomerge's or mergekit-evolve's, and check all that needs no model.

    Relative folders of models and tasks are seen from the file's folder (those of a
    mergekit-evolve configuration from the current directory first, as that command does). A model
    that is no folder is the hub's.

    Args:
        path: a YAML file.

    Raises:
        SpaceError: everything that is wrong with it, each with its line.

    Warns:
        SpaceWarning: something in it has no effect.
    """
    file = Path(path).expanduser()
    document = read_document(file, SpaceError)
    if not isinstance(document.data, Mapping):
        problem = f"{shown(document.data)} is refused: a mapping is expected"
        raise SpaceError([document.fault((), problem)])
    whole = file.resolve()
    if is_evolve(document.data):
        draft = translate(document.data)
        draft.locate([Path.cwd(), whole.parent])
    else:
        draft = Draft(dict(document.data))
        draft.locate([whole.parent])
        if "source" in draft.data:
            draft.faults.append((("source",), "is refused: it is where the space was read from"))
    draft.drop_base()
    draft.data["source"] = whole
    draft.data.setdefault("name", whole.stem.lstrip(".") or "search")
    origin = Origin(document, draft.renamed)
    space = _validated(draft, origin)
    space.remember(origin)
    for place, text in (*draft.notes, *_notes(space, origin)):
        warnings.warn(str(document.fault(place, text)), SpaceWarning, stacklevel=2)
    return space


def _validated(draft: Draft, origin: Origin) -> SearchSpace:
    problems = list(draft.faults)
    space: SearchSpace | None = None
    try:
        space = SearchSpace.model_validate(draft.data)
    except ValidationError as problem:
        found = validation_problems(problem)
        problems += [(origin.trace(path), text) for path, text in found]
    if problems or space is None:
        raise SpaceError(_faults(problems, origin.document))
    return space


def _faults(problems: list[Conflict], document: Document) -> list[Fault]:
    """Each problem once, in the order of the file."""
    ordered = sorted(problems, key=lambda problem: document.line(problem[0]))
    return list(dict.fromkeys(document.fault(path, text) for path, text in ordered))


def _notes(space: SearchSpace, origin: Origin) -> list[Conflict]:
    if METHODS[space.merge_method].sparsifies and space.genome.density is None:
        problem = (
            f"{space.merge_method} without density keeps task vectors whole (density 1); "
            "write density: [0.1, 1.0] to search it"
        )
        return [(origin.trace(("genome",)), problem)]
    return []
