"""YAML with line numbers, so that an error can name the line of a key.

PyYAML's nodes carry positions that its plain loader drops; here they are kept beside the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from evomerge.errors import Fault, InputError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """One YAML document: its data and the line (from 1) of every key and list item.

    Args:
        data: plain Python data.
        lines: the line of each key path; ``()`` is the document itself.
        file: the name to use in messages.
    """

    data: Any
    lines: Mapping[KeyPath, int]
    file: str

    def place(self, path: Iterable[str | int]) -> str:
        """``file:line: key.path`` of the deepest part of ``path`` that the document has."""
        whole = tuple(path)
        known = whole
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        name = key_name(whole)
        return f"{self.file}:{line}: {name}" if name else f"{self.file}:{line}"

    def fault(self, path: Iterable[str | int], problem: str) -> Fault:
        """A fault at a key of this document."""
        return Fault(self.place(path), problem)


def key_name(path: Iterable[str | int]) -> str:
    """``models[1].parameters.weight``"""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{part}" if name else str(part)
    return name


def read_documents(text: str, file: str, error: type[InputError]) -> list[Document]:
    """Parse a YAML text of one or more documents.

    Args:
        text: the YAML.
        file: the name to use in messages.
        error: what to raise on a syntax error, a duplicate key or an unsafe tag.
    """
    loader = _Loader(text)
    documents: list[Document] = []
    try:
        while loader.check_node():
            node = loader.get_node()
            lines: dict[KeyPath, int] = {(): node.start_mark.line + 1}
            faults: list[Fault] = []
            _collect(node, (), lines, faults, file)
            if faults:
                raise error(faults)
            documents.append(Document(loader.construct_document(node), lines, file))
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        place = f"{file}:{mark.line + 1}" if mark else file
        raise error([Fault(place, f"not valid YAML: {problem.problem}")]) from problem
    except yaml.YAMLError as problem:
        raise error([Fault(file, f"not valid YAML: {problem}")]) from problem
    finally:
        loader.dispose()
    return [document for document in documents if document.data is not None]


def read_document(path: Path, error: type[InputError]) -> Document:
    """Read a file that must hold exactly one YAML document."""
    documents = read_documents(read_text(path, error), str(path), error)
    if len(documents) != 1:
        raise error([Fault(str(path), f"holds {len(documents)} YAML documents; 1 is expected")])
    return documents[0]


def read_text(path: Path, error: type[InputError]) -> str:
    """The text of a file, or ``error`` with the reason why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error([Fault(str(path), f"cannot be read: {problem.strerror}")]) from problem
    except UnicodeDecodeError as problem:
        raise error([Fault(str(path), "is not UTF-8 text")]) from problem


def validation_faults(problem: ValidationError, document: Document) -> list[Fault]:
    """Pydantic's errors as faults with the lines of the keys that they are about."""
    return [_validation_fault(detail, document) for detail in problem.errors()]


def _validation_fault(detail: Any, document: Document) -> Fault:
    path = tuple(part for part in detail["loc"] if _is_key(part, detail["loc"]))
    kind, found = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return document.fault(path, "unknown key")
    if kind == "missing":
        return document.fault(path, "is missing and required")
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if isinstance(found, (str, int, float, bool)) and repr(found) not in message:
        message = f"{found!r} is refused: {message}"
    return document.fault(path, message)


def _is_key(part: str | int, _loc: object) -> bool:
    # Pydantic puts the names of union members and validators among the keys.
    return isinstance(part, int) or not re.search(r"[\[\](]|^(function-|is-instance)", part)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as a number, as YAML 1.2 (and every reader's eye) does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _collect(
    node: yaml.Node,
    path: KeyPath,
    lines: dict[KeyPath, int],
    faults: list[Fault],
    file: str,
) -> None:
    """Record the line of every key below ``node``; report keys that stand twice."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                place = f"{file}:{line}: {key_name((*path, name))}"
                faults.append(Fault(place, f"stands twice; first on line {seen[name]}"))
            seen[name] = line
            lines[(*path, name)] = line
            _collect(value, (*path, name), lines, faults, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _collect(value, (*path, index), lines, faults, file)
