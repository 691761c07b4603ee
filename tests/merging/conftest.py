"""Fixtures of this room: a family of tiny models in two types, and the quickstart's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.merging.worlds import Family, write_family

_QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart" / "models"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models in float32; do not change them."""
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def half_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models in bfloat16; do not change them."""
    return write_family(tmp_path_factory.mktemp("half"), torch.bfloat16)


@pytest.fixture
def own_family(tmp_path: Path) -> Family:
    """Models in float32, to be damaged."""
    return write_family(tmp_path / "models")


@pytest.fixture(scope="session")
def quickstart() -> Family:
    """The trained models that are shipped."""
    found = sorted(path.parent for path in _QUICKSTART.glob("*/config.json"))
    tuned = tuple(path for path in found if path.name != "base")
    return Family(_QUICKSTART / "base", tuned[:3])
