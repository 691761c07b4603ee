"""A driver that dies between any two writings of a trial: the study goes on as if it had not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from sqlalchemy import event
from sqlalchemy.orm import Session

from evomerge.search.records import PlannedBaseline
from evomerge.search.sampler import make_sampler
from evomerge.search.storage import StudyStore, create_store

GENES = {f"weight/{i}": FloatDistribution(0.0, 1.0) for i in range(3)}
TRIALS = 9


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


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
    while True:
        finished = sum(record.finished for record in store.records())
        if finished >= TRIALS:
            return
        record = again.pop(0) if again else store.ask(GENES)
        store.tell(record.number, -sum((v - 0.7) ** 2 for v in record.genome.values()))


def found(store: StudyStore) -> list[Any]:
    return [(r.number, r.kind, r.label, r.state, r.fitness, r.genome) for r in store.records()]


@pytest.mark.parametrize("kind", ["cmaes", "tpe", "random"])
def test_killed_between_any_two_writings(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    whole = opened(tmp_path / "whole.db", kind)
    search(whole)
    assert [record.state for record in whole.records()] == ["complete"] * TRIALS

    left = [0]  # commits until the next death

    def committed(_session: Session) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    event.listen(Session, "after_commit", committed)
    request.addfinalizer(lambda: event.remove(Session, "after_commit", committed))
    deaths = 0
    while True:
        left[0] = 24 + deaths  # at another place each time; opening the study takes some
        try:
            store = opened(tmp_path / "cut.db", kind)
            search(store)
            break
        except Killed:
            deaths += 1
    assert deaths >= 5
    assert found(store) == found(whole)
