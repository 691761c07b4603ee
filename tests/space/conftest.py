"""A folder with models (empty ones: a space never looks inside) and a way to write a space."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.space import SearchSpace, load_space

SMALL = """
base_model: models/base
models: [models/math, models/code, models/chat]
merge_method: dare_ties
genome:
  density: [0.1, 1.0]
tasks: [arc_easy]
"""

Write = Callable[..., Path]
Load = Callable[[str], SearchSpace]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "math", "code", "chat"):
        (tmp_path / "models" / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Write:
    def _write(text: str, name: str = "space.yaml") -> Path:
        path = folder / name
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    return _write


@pytest.fixture
def load(write: Write) -> Load:
    """Loads a space's text; a warning is an error, so that none goes unnoticed."""

    def _load(text: str) -> SearchSpace:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return load_space(write(text))

    return _load


@pytest.fixture
def small() -> str:
    return SMALL
