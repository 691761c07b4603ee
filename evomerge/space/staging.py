"""Several documents as one space: names that later documents take results by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.documents import Document, KeyPath, shown
from evomerge.errors import Fault
from evomerge.references import ModelReference
from evomerge.space.evolve import is_evolve
from evomerge.space.genes import METHOD
from evomerge.space.methods import PARAMETERS


def check_stages(documents: Sequence[Document]) -> list[Fault]:
    """What is wrong with the names of the stages, and with who takes whose result.

    Args:
        documents: each one's data is a mapping; the last is the space's own.
    """
    if len(documents) == 1:
        return []
    faults = [
        one.fault((), "is mergekit-evolve's configuration, which has no stages")
        for one in documents
        if is_evolve(one.data)
    ]
    first: dict[str, Document] = {}
    for document in documents[:-1]:
        name = document.data.get("name")
        problem = _name_problem(name)
        if problem is None and name in first:
            problem = f"{name!r} is refused: the stage at {first[name].place(())} is called so"
        if problem:
            faults.append(document.fault(("name",), problem))
        else:
            first[name] = document
    return [*faults, *_misused(documents, list(first))]


def _name_problem(name: Any) -> str | None:
    if name is None:
        return "is missing: only the last document may be without one; others are named by it"
    usable = isinstance(name, str) and name.strip() and not set(name) & set("/\\+@")
    if not usable or name.startswith("."):
        return (
            f"{shown(name)} is refused: a name is not empty, has no / + @, and begins with no dot"
        )
    if name in (*PARAMETERS, METHOD):
        return f"{name!r} is refused: the genes of the last stage are called so"
    return None


def _misused(documents: Sequence[Document], names: Sequence[str]) -> Iterator[Fault]:
    """Results that are taken before they are made, or by nobody."""
    made: set[str] = set()
    used: set[str] = set()
    for document in documents:
        for path, model in _models(document.data):
            if model.path not in names:
                continue
            used.add(model.path)
            if model.path not in made:
                yield document.fault(
                    path, f"{model.path!r} is a stage that is not made before this"
                )
            elif model != ModelReference(model.path):
                problem = (
                    f"'{model}' is the result of a stage, which has no revision and no adapter"
                )
                yield document.fault(path, problem)
        made.add(str(document.data.get("name")))
    for document in documents[:-1]:
        name = document.data.get("name")
        if name in names and name not in used:
            yield document.fault(("name",), f"no later stage takes {name!r}")


def _models(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, ModelReference]]:
    """The models that a document names, and where; what names none is somebody else's to refuse."""
    models = data.get("models")
    listed: list[tuple[KeyPath, Any]] = [(("base_model",), data.get("base_model"))]
    if isinstance(models, list):
        listed += [(("models", index), model) for index, model in enumerate(models)]
    for path, value in listed:
        model = _reference(value)
        if model is not None:
            yield path, model


def _reference(value: Any) -> ModelReference | None:
    try:
        return ModelReference.parse(value)
    except ValueError:
        return None
