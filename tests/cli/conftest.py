"""The quickstart's world, once for reading and once for each test that changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.worlds import LocalWorkers, World, run


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that no test changes, with the study ``small``: four baselines, four more trials."""
    world = World.make(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(world.root)
        patch.setattr("evomerge.search.workers.RayPool", LocalWorkers)
        result = run("search", world.space(), "--trials", 8)
        assert result.exit_code == 0, result.stderr
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of the test's own."""
    return World.make(tmp_path / "world")


@pytest.fixture(autouse=True)
def surroundings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, in the world's folder, with the one local worker."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("world", "shared"):
        if name in request.fixturenames:
            monkeypatch.chdir(request.getfixturevalue(name).root)
            break
    monkeypatch.setattr("evomerge.search.workers.RayPool", LocalWorkers)
