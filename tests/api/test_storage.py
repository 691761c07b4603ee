"""A driver that dies between any two writings of a trial: the study goes on as if it had not."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from sqlalchemy import Connection, Engine, event

from evomerge.search.records import PlannedBaseline
from evomerge.search.sampler import make_sampler
from evomerge.search.storage import StudyStore, create_store

GENES = {f"weight/{i}": FloatDistribution(0.0, 1.0) for i in range(3)}
TRIALS = 9


def opened(path: Path, kind: str) -> StudyStore:
    store = create_store("study", f"sqlite:///{path}")
    start = dict.fromkeys(GENES, 0.5)
    store.use(make_sampler(kind, GENES, start, seed=1, sigma=0.2, population=4))
    inside = PlannedBaseline("base", "merge_method: linear", dict.fromkeys(GENES, 0.25))
    store.plan([inside, PlannedBaseline("outside", "merge_method: linear", None)])
    return store


def search(store: StudyStore) -> None:
    """A search with one worker, in the loop's order of calls."""
    again = store.interrupted(GENES)
    record = None
    while True:
        with store.batch():
            if record is not None:
                store.tell(record.number, -sum((v - 0.7) ** 2 for v in record.genome.values()))
            if sum(record.finished for record in store.records()) >= TRIALS:
                return
            record = again.pop(0) if again else store.ask(GENES)


def killed_at_commit(number: int, path: Path, kind: str) -> bool:
    """A driver of its own, gone at its n-th commit, as by kill -9; False if it came to the end."""
    commits = iter(range(1, number + 1))

    def commit(_connection: Connection) -> None:
        if next(commits) == number:
            os._exit(9)

    def drive() -> None:
        event.listen(Engine, "commit", commit)
        search(opened(path, kind))
        os._exit(0)

    driver = multiprocessing.get_context("fork").Process(target=drive)
    driver.start()
    driver.join()
    assert driver.exitcode in (0, 9)
    return driver.exitcode == 9


def found(store: StudyStore) -> list[Any]:
    return [(r.number, r.kind, r.label, r.state, r.fitness, r.genome) for r in store.records()]


@pytest.mark.parametrize("kind", ["cmaes", "tpe", "random"])
def test_killed_between_any_two_writings(tmp_path: Path, kind: str) -> None:
    whole = opened(tmp_path / "whole.db", kind)
    search(whole)
    assert [record.state for record in whole.records()] == ["complete"] * TRIALS

    deaths = 0
    while killed_at_commit(1 + deaths, tmp_path / "cut.db", kind):
        deaths += 1  # the next one comes a commit further: first while the study is opened
    assert deaths >= 10
    store = opened(tmp_path / "cut.db", kind)
    assert found(store) == found(whole)
