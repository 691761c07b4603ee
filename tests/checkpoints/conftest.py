from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints.worlds import make, save


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single-file Llama in float32; do not change it."""
    return save(make("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A single-file Llama of one's own to damage."""
    return save(make("llama"), tmp_path / "model")
