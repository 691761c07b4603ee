"""What decides how a family is built: a digest of it names the family's folder."""

from __future__ import annotations

import ast
import hashlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_QUICKSTART = Path(__file__).resolve().parents[3] / "search_spaces" / "quickstart"
_SHARED = (
    *(_HERE / name for name in ("building.py", "training.py", "writing.py")),
    *(_QUICKSTART / name for name in ("skills.py", "train.py", "tasks/data.py")),
)


@dataclass(frozen=True)
class Origin:
    """What a family is made from.

    Args:
        plan: what is trained and searched, as far as no file says it.
        files: scripts, of which the code counts and comments do not, and data.
        versions: name → version of all that shapes the result.
    """

    plan: str
    files: tuple[Path, ...]
    versions: Mapping[str, str]

    def digest(self) -> str:
        """Ten hexadecimal digits that change with any of it."""
        found = hashlib.sha256()
        for part in self._parts():
            found.update(len(part).to_bytes(8, "big"))  # where one ends is part of what is hashed
            found.update(part)
        return found.hexdigest()[:10]

    def _parts(self) -> Iterator[bytes]:
        yield self.plan.encode()
        for path in self.files:
            yield path.name.encode()
            script = path.suffix == ".py"
            yield ast.dump(ast.parse(path.read_bytes())).encode() if script else path.read_bytes()
        for name, number in sorted(self.versions.items()):
            yield f"{name} {number}".encode()


def of_skilled(what: Any) -> Origin:
    """Of a family on the quickstart's skills.

    Args:
        what: its :class:`~tests.benchmarks.families.skilled.Skilled`.
    """
    items = sorted((_QUICKSTART / "tasks" / "items").glob("*.jsonl"))
    return Origin(repr(what), (*_SHARED, *items), _versions())


def of_text() -> Origin:
    """Of the family from text, which is the standard library's, torch's and lm-eval's."""
    sources = {"stdlib": platform.python_version(), "lm_eval": version("lm_eval")}
    return Origin("text", (*_SHARED, _HERE / "texts.py"), {**_versions(), **sources})


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: version(name) for name in ("torch", "transformers")}}
