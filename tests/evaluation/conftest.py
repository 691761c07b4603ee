"""Fixtures of this room: one tokenizer, one model, a folder for tasks per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluation import shipped
from tests.evaluation.worlds import TaskFolder, make_model, make_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_dataset_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return make_model(tokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> TaskFolder:
    path = tmp_path / "tasks"
    path.mkdir()
    return TaskFolder(path)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[shipped.Hub]:
    """Data sets for lm-eval's own definitions, where the hub would have them."""
    path = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("HF_ALLOW_CODE_EVAL", "0")  # so that what is set meanwhile is taken back
        patch.delenv("HF_ALLOW_CODE_EVAL")
        patch.setenv("NLTK_DATA", str(shipped.make_punkt(path / "nltk")))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", path / "cache")
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(path / "modules"))
        yield shipped.make_hub(path)
