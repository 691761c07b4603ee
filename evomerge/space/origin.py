"""Where the keys of a space stand in the file that it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.documents import Document, KeyPath
from evomerge.errors import Fault


def trace(path: KeyPath, renamed: Mapping[KeyPath, KeyPath]) -> KeyPath:
    """The document's path of a key of the space; see ``Origin``."""
    for length in range(len(path), 0, -1):
        there = renamed.get(path[:length])
        if there is not None:
            return (*there, *path[length:])
    return path


@dataclass(frozen=True)
class Origin:
    """A space's document, and where its keys are called something else.

    Args:
        document: the file's.
        renamed: key path of the space → key path of the document. It holds for everything below
            the path too; the longest one that fits wins.
    """

    document: Document
    renamed: Mapping[KeyPath, KeyPath] = field(default_factory=dict)

    def trace(self, path: KeyPath) -> KeyPath:
        """The document's path of a key of the space."""
        return trace(path, self.renamed)

    def fault(self, path: KeyPath, problem: str) -> Fault:
        """A fault at a key of the space, as the document calls it."""
        return self.document.fault(self.trace(path), problem)
