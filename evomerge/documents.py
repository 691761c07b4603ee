"""YAML with line numbers, so that an error can name the line of a key.

PyYAML's nodes carry positions that its plain loader drops; here they are kept beside the data.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from evomerge.errors import Fault, InputError

KeyPath = tuple[str | int, ...]

UNKNOWN_KEY = "unknown_key"
"""The type of a validation error whose message says all there is to say about a key."""


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
        name = key_name(whole)
        place = f"{self.file}:{self.line(whole)}"
        return f"{place}: {name}" if name else place

    def line(self, path: Iterable[str | int]) -> int:
        """The line of the deepest part of ``path`` that the document has."""
        known = tuple(path)
        while known and known not in self.lines:
            known = known[:-1]
        return self.lines.get(known, 1)

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


def shown(value: Any) -> str:
    """A value as messages show it: on one line, cut where it is long."""
    return _SHORT.repr(value)


def near(name: str, allowed: Iterable[str]) -> str:
    """``did you mean 'density'? `` for a misspelt name; empty where nothing is close."""
    names = {one.lower(): one for one in allowed}
    close = difflib.get_close_matches(str(name).lower(), names, n=1)
    return f"did you mean {names[close[0]]!r}? " if close else ""


def unknown_key(name: str, allowed: Iterable[str]) -> str:
    """What to say of a key that does not exist."""
    names = list(allowed)
    return f"unknown key; {near(name, names)}allowed: {', '.join(names)}"


def read_documents(text: str, file: str, error: type[InputError]) -> list[Document]:
    """Parse a YAML text of one or more documents.

    Args:
        text: the YAML.
        file: the name to use in messages.
        error: what to raise on a syntax error, a duplicate key or an unsafe tag.
    """
    documents: list[Document] = []
    faults: list[Fault] = []
    try:
        loader = _Loader(text)
        while loader.check_node() and (node := loader.get_node()) is not None:
            lines: dict[KeyPath, int] = {(): node.start_mark.line + 1}
            found = len(faults)
            _collect(node, (), lines, faults, file)
            if len(faults) == found:
                documents.append(Document(loader.construct_document(node), lines, file))
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        place = f"{file}:{mark.line + 1}" if mark else file
        text = " ".join(part for part in (problem.context, problem.problem) if part)
        faults.append(Fault(place, f"not valid YAML: {text}"))
    except (yaml.YAMLError, ValueError) as problem:  # such as the date 2024-13-45
        faults.append(Fault(file, f"not valid YAML: {' '.join(str(problem).split())}"))
    if faults:
        raise error(faults)
    return [document for document in documents if document.data is not None]


def read_document(path: Path, error: type[InputError]) -> Document:
    """Read a file that must hold exactly one YAML document."""
    documents = read_documents(read_text(path, error), str(path), error)
    if not documents:
        raise error([Fault(str(path), "is empty")])
    if len(documents) > 1:
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
    return [document.fault(path, text) for path, text in validation_problems(problem)]


def validation_problems(problem: ValidationError) -> list[tuple[KeyPath, str]]:
    """Pydantic's errors: key paths and what is wrong there, in this program's words."""
    return [_validation_problem(detail) for detail in problem.errors()]


def _validation_problem(detail: Any) -> tuple[KeyPath, str]:
    path = tuple(part for part in detail["loc"] if not _is_tag(part))
    kind, message, found = detail["type"], detail["msg"], detail.get("input")
    if kind == "extra_forbidden":
        return path, "unknown key"
    if kind == "missing":
        return path, "is missing and required"
    for theirs, ours in _WORDS:
        message = re.sub(theirs, ours, message)
    if kind in (UNKNOWN_KEY, "conflict") or "is refused" in message:
        return path, message
    return path, f"{shown(found)} is refused: {message}"


_WORDS = (
    (r"^Value error, ", ""),
    (r"^Input should (?=\S)", "must "),
    (r"^(String|List|Tuple|Dictionary) should ", "must "),
    (r"a valid (tuple|list|array)$", "a list"),
    (r"a valid dictionary( or instance of \w+)?$", "a mapping"),
    (r"a valid boolean(, .*)?$", "true or false"),
    (r"a valid integer(, .*)?$", "a whole number"),
    (r"a valid number(, .*)?$", "a number"),
    (r"a valid string(, .*)?$", "a string"),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"greater than", "above"),
    (r"less than", "below"),
    (r" after validation, not \d+$", ""),
)
"""Pydantic's words and ours."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6


def _is_tag(part: str | int) -> bool:
    # Pydantic puts the names of union members and validators among the keys.
    return isinstance(part, str) and bool(_TAG.match(part))


_TAG = re.compile(
    r"(function-\w+|is-instance|list|tuple|set|dict|union|literal|chain|[\w-]+-or-\w+)\["
)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as a number, as YAML 1.2 (and every reader's eye) does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _collect(
    node: yaml.Node,
    path: KeyPath,
    lines: dict[KeyPath, int],
    faults: list[Fault],
    file: str,
    above: tuple[yaml.Node, ...] = (),
) -> None:
    """Record the line of every key below ``node``; report keys that stand twice, and circles."""
    if any(node is other for other in above):
        place = f"{file}:{lines[path]}: {key_name(path)}"
        faults.append(Fault(place, "refers to itself"))
        return
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                place = f"{file}:{line}: {key_name((*path, name))}"
                faults.append(Fault(place, f"stands twice; first on line {seen[name]}"))
            seen[name] = line
            lines[(*path, name)] = line
            _collect(value, (*path, name), lines, faults, file, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _collect(value, (*path, index), lines, faults, file, above)
