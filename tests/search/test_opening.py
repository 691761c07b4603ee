"""Opening the study of a search: whose it is, and what has changed since."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import warnings
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from evomerge.errors import EvomergeWarning, StudyError
from evomerge.evaluation import ItemSet
from evomerge.report import StudyReport
from evomerge.search.folder import StudyFolder
from evomerge.search.opening import open_for_search
from evomerge.search.ownership import SILENCE, Ownership
from evomerge.search.preparation import Preparation, prepare
from evomerge.search.storage import StudyStore
from evomerge.space import load_space

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"


@pytest.fixture(scope="module")
def prepared() -> Preparation:
    return prepare(load_space(SPACES / "quickstart.yaml"), hold_out=False)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "quickstart")
    folder.make()
    return folder


def begun(prepared: Preparation, folder: StudyFolder) -> StudyStore:
    """A study with one finished baseline."""
    store = open_for_search(prepared, folder, "quickstart", None)
    store.plan(prepared.baselines)
    store.tell(store.ask({}).number, 0.5)
    return store


def test_race_items_stay_fresh_to_the_climb(prepared: Preparation, folder: StudyFolder) -> None:
    """It learns from what the race leaves, so that a larger race would know what it judges by."""
    some = prepared
    more = replace(prepared, plan=replace(prepared.plan, race_items=300))
    store = begun(some, folder)
    store = open_for_search(more, folder, "quickstart", None)
    number = store.ask({}).number
    store.tell(number, 0.5, walk={"any": 1})
    problem = r"finals\.items: 300 items of each task; .*began with as many as are searched on"
    with pytest.raises(StudyError, match=problem):
        open_for_search(more, folder, "quickstart", None)
    # What is the default may be written out; another number may not.
    written = replace(prepared, plan=replace(prepared.plan, race_items=200))
    open_for_search(written, folder, "quickstart", None)
    # Without a race the climb keeps off its items too.
    open_for_search(replace(some, race_items=None), folder, "quickstart", None)
    # An earlier version kept how many there were in all.
    store.remember(race_items=len(some.race_items or ()))
    open_for_search(some, folder, "quickstart", None)
    store.remember(race_items=1)
    with pytest.raises(StudyError, match="began with 1,"):
        open_for_search(some, folder, "quickstart", None)


def test_study_of_somebody_else_is_refused_and_kept(
    prepared: Preparation, folder: StudyFolder
) -> None:
    foreign = optuna.create_study(study_name="quickstart", storage=folder.url)
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(StudyError, match="not made by evomerge"):
        open_for_search(prepared, folder, "quickstart", None)
    kept = optuna.load_study(study_name="quickstart", storage=folder.url)
    assert [trial.value for trial in kept.trials] == [1.0]


def test_a_searched_study_gets_no_more_baselines(
    prepared: Preparation, folder: StudyFolder
) -> None:
    """One that came later could move the start of what was drawn."""
    store = open_for_search(prepared, folder, "quickstart", None)
    store.plan(prepared.baselines[:1])
    store.tell(store.ask({}).number, 0.5)
    store.plan(prepared.baselines[:2])
    assert [record.label for record in store.records()] == ["base", "uniform"]
    store.tell(store.ask({}).number, 0.5)
    store.tell(store.ask({}).number, 0.5)
    store.plan(prepared.baselines)
    assert [record.kind for record in store.records()] == ["baseline", "baseline", "search"]


def test_other_sampler_settings_are_told_once(prepared: Preparation, folder: StudyFolder) -> None:
    begun(prepared, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvomergeWarning)
        open_for_search(prepared, folder, "quickstart", None)
    wider = prepared.space.search.model_copy(update={"sigma": 0.4})
    space = prepared.space.model_copy(update={"search": wider})
    changed = Preparation(**{**vars(prepared), "space": space})
    with pytest.warns(EvomergeWarning, match=r"sigma is 0\.4, was 0\.25"):
        open_for_search(changed, folder, "quickstart", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvomergeWarning)
        open_for_search(changed, folder, "quickstart", None)


def test_verdict_on_other_finalists_is_no_longer_told(
    prepared: Preparation, folder: StudyFolder
) -> None:
    store = begun(prepared, folder)
    for _ in prepared.baselines[1:]:
        store.tell(store.ask({}).number, 0.4)
    genes = {
        gene.name: optuna.distributions.FloatDistribution(gene.low, gene.high)
        for gene in prepared.genes
    }
    first = store.ask(genes).number
    store.tell(first, 0.7)
    finalist = {
        "number": first,
        "label": f"trial {first}",
        "kind": "search",
        "search_fitness": 0.7,
        "fitness": 0.6,
        "scores": {},
    }
    baseline = {**finalist, "number": 0, "label": "base", "kind": "baseline"}
    numbers = {"outcome": "win", "difference": 0.1, "low": 0.05, "high": 0.15, "items": 100}
    verdict = {**numbers, "winner": finalist, "baseline": baseline, "tasks": []}
    store.remember(verdict=verdict)
    assert StudyReport(store).verdict is not None
    store.tell(store.ask(genes).number, 0.8)
    assert StudyReport(store).verdict is None


def test_second_driver_on_one_storage_is_refused_until_the_first_is_gone(
    prepared: Preparation, folder: StudyFolder
) -> None:
    store = begun(prepared, folder)
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        sign = {"host": socket.gethostname(), "process": sleeper.pid, "time": time.time()}
        store.remember(driver=sign)
        with pytest.raises(StudyError, match=f"already, by process {sleeper.pid} on"):
            open_for_search(prepared, folder, "quickstart", None)
        with pytest.raises(StudyError, match="already"):
            Ownership(store)
    finally:
        sleeper.kill()
        sleeper.wait()
    owner = Ownership(store)
    assert store.facts["driver"]["process"] == os.getpid()
    owner.release()
    store.remember(driver={"host": "elsewhere", "process": 1, "time": time.time()})
    with pytest.raises(StudyError, match="process 1 on elsewhere"):
        Ownership(store)
    store.remember(driver={"host": "elsewhere", "process": 1, "time": time.time() - SILENCE - 1})
    Ownership(store).release()


def test_changed_items_are_refused(prepared: Preparation, folder: StudyFolder) -> None:
    begun(prepared, folder)
    items = prepared.search_items
    fewer = ItemSet(items.requests, items.tasks[:-1], items.groups)
    assert fewer.digest() != items.digest()
    changed = Preparation(**{**vars(prepared), "search_items": fewer})
    with pytest.raises(StudyError, match="items, prompts or tokenizer have changed"):
        open_for_search(changed, folder, "quickstart", None)
