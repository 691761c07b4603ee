"""What is written of trials is what Optuna writes, in as few transactions as there are batches."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, event

from evomerge.errors import StudyError
from evomerge.search.records import PlannedBaseline
from evomerge.search.storage import StudyStore, create_store, open_store

GENES = {f"weight/{i}": FloatDistribution(-0.2, 1.2) for i in range(3)}
FACTS = {"recipe": "merge_method: linear\n", "scores": {"add": {"acc": [0.5, None]}}}


def opened(path: Path) -> StudyStore:
    store = create_store("study", f"sqlite:///{path}")
    store.use(RandomSampler(seed=0))
    store.plan([PlannedBaseline("base", "merge_method: slerp", dict.fromkeys(GENES, 0.25))])
    return store


def by_optuna(path: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="study", storage=f"sqlite:///{path}").trials


def essence(trial: FrozenTrial) -> tuple[object, ...]:
    """All of a trial but its id and its times, and whether these are there and in order."""
    times = trial.datetime_start, trial.datetime_complete
    kept = (trial.number, trial.state, trial.values, trial.params, trial.distributions)
    took = (times[1] - times[0]).total_seconds() if all(times) else None
    return (*kept, trial.user_attrs, trial.system_attrs, took is None or 0 <= took < 60)


def test_optuna_reads_what_it_would_have_written(tmp_path: Path) -> None:
    ours = opened(tmp_path / "ours.db")
    opened(tmp_path / "theirs.db")
    theirs = optuna.load_study(
        study_name="study", storage=f"sqlite:///{tmp_path}/theirs.db", sampler=RandomSampler(seed=0)
    )
    for number, fitness in enumerate([0.5, -1e300, None, 0.75]):
        ours.ask(GENES)
        trial = theirs.ask(GENES)
        if "kind" not in trial.user_attrs:
            trial.set_user_attr("kind", "search")
        if fitness is None:
            ours.fail(number, "it broke", **FACTS)
            facts = {**FACTS, "failure": "it broke", "told": number}
        else:
            ours.tell(number, fitness, **FACTS)
            facts = {**FACTS, "told": number}
        for key, value in facts.items():
            trial.set_user_attr(key, value)
        theirs.tell(number, fitness, state=TrialState.FAIL if fitness is None else None)
    ours.ask(GENES)
    theirs.ask(GENES).set_user_attr("kind", "search")
    mine, its = (by_optuna(tmp_path / name) for name in ("ours.db", "theirs.db"))
    assert [essence(trial) for trial in mine] == [essence(trial) for trial in its]
    assert mine[0].user_attrs["recipe"] == "merge_method: linear\n", "instead of the planned one"
    assert mine[-1].state == TrialState.RUNNING
    began = abs((mine[3].datetime_start - its[3].datetime_start).total_seconds())
    assert began < 60, "both in the same zone of time"


def test_a_batch_is_one_transaction(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = opened(tmp_path / "study.db")
    first = store.ask(GENES)
    commits: list[Connection] = []
    append = commits.append
    event.listen(Engine, "commit", append)
    request.addfinalizer(lambda: event.remove(Engine, "commit", append))
    with store.batch():
        store.tell(first.number, 0.5, **FACTS)
        second = store.ask(GENES)
        assert [record.state for record in store.records()] == ["complete", "running"]
        assert commits == []
    assert len(commits) == 1
    kept = open_store("study", store.url).records()
    assert [record.state for record in kept] == ["complete", "running"]
    assert kept[1].genome == second.genome


def test_fitness_that_is_no_number_is_not_told(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    number = store.ask(GENES).number
    with pytest.raises(ValueError, match="trial 0: the fitness is inf"):
        store.tell(number, float("inf"))
    assert store.records()[number].state == "running"


def test_a_study_that_somebody_else_changes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    store = opened(path)
    store.ask(GENES)
    optuna.load_study(study_name="study", storage=store.url).ask()
    with pytest.raises(StudyError, match=r"study.db: .* changed by another .* not begun; run"):
        store.ask(GENES)
    assert [trial.number for trial in by_optuna(path)] == [0, 1]

    other = opened(tmp_path / "other.db")
    number = other.ask(GENES).number
    optuna.delete_study(study_name="study", storage=other.url)
    with pytest.raises(StudyError, match="trial 0 is gone"):
        other.tell(number, 0.5)
