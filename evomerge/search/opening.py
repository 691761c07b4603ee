"""Opening the study of a search: a new one, or the one that is to be gone on with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.documents import read_text
from evomerge.errors import EvomergeWarning, Fault, StudyError
from evomerge.search.folder import ROOT, StudyFolder, write_json, write_whole
from evomerge.search.informed import remember_items
from evomerge.search.ownership import check_free
from evomerge.search.preparation import Preparation
from evomerge.search.provenance import check_unchanged, provenance
from evomerge.search.storage import (
    StudyStore,
    create_store,
    delete_study,
    has_study,
    open_store,
    quiet,
    rename_study,
)

if TYPE_CHECKING:
    from evomerge.space import SearchSpace

DIGEST, SPACE, PROVENANCE, SAMPLER, ITEMS, RACED = (
    "digest",
    "space",
    "provenance",
    "sampler",
    "items",
    "race_items",
)

_AS_SEARCHED = "as many as are searched on"


def study_folder(name: str) -> StudyFolder:
    """Where a study's files lie: ``studies/<name>/`` below the current directory.

    Raises:
        StudyError: the name is no folder's name.
    """
    usable = name.isprintable() and len(name.encode()) <= 200 and "/" not in name
    if not name or name in (".", "..") or not usable:
        raise StudyError.at("study", f"{name!r} is no name; it becomes a folder in {ROOT}/")
    return StudyFolder(ROOT / name)


def set_aside(folder: StudyFolder, name: str, storage: str | None) -> str | None:
    """Make room for a fresh study: the old one gets another name. Returns it, or None.

    Its folder goes too where the study itself lies elsewhere.
    """
    moved = str(folder.set_aside()) if folder.exists else None
    if storage is not None and has_study(name, storage):
        moved = f"{name}.{datetime.now():%Y%m%d-%H%M%S}"
        rename_study(name, moved, storage)
    return moved


def open_for_search(
    prepared: Preparation, folder: StudyFolder, name: str, storage: str | None
) -> StudyStore:
    """The study of a prepared space: created, or checked to be of the same space and models.

    Args:
        prepared: the space, checked.
        folder: for the files (the caller holds its lock).
        name: the study's.
        storage: an Optuna storage URL; None is the folder's own database.

    Raises:
        StudyError: the study was made from another space or from other weights.
    """
    quiet()
    url = storage or folder.url
    if has_study(name, url):
        before = open_store(name, url)
        check_free(before)
        if _never_began(before):
            # Refused before its first trial: nothing was found that a new space could contradict.
            delete_study(name, url)
    store = create_store(name, url, prepared.goals)
    _check_same(store, prepared.space, name)
    facts = store.facts
    now = provenance(
        prepared.checkpoints,
        prepared.search_items.versions,
        _seeds(prepared.space),
        prepared.search_items.splits,
        facts.get(PROVENANCE),
    )
    if PROVENANCE in facts:
        check_unchanged(facts[PROVENANCE], now, name)
        climbed = any(one.walk is not None for one in store.records())
        _check_items(facts, prepared, name, climbed)
        _tell_changes(store, prepared.space, now)
    remember_items(store, prepared)
    if DIGEST not in facts:
        _record(store, prepared, now)
    if DIGEST not in facts or not folder.provenance.exists():
        write_json(folder.provenance, store.facts[PROVENANCE])
        write_whole(folder.space, read_text(Path(prepared.space.source), StudyError))
    return store


def _record(store: StudyStore, prepared: Preparation, now: dict[str, Any]) -> None:
    space = prepared.space
    store.remember(
        **{
            SPACE: space.model_dump_json(),
            PROVENANCE: now,
            "genes": [gene.name for gene in prepared.genes],
            ITEMS: prepared.search_items.digest(),
            RACED: _raced(prepared),
            SAMPLER: _sampling(space),
            DIGEST: space.digest(),  # last: a study with a digest has everything else
        }
    )


def _never_began(store: StudyStore) -> bool:
    """Whether it is a study of ours in which nothing but its baselines was queued."""
    return DIGEST in store.facts and all(r.state == "waiting" for r in store.records())


def _tell_changes(store: StudyStore, space: SearchSpace, now: Mapping[str, Any]) -> None:
    """Warn of what does not make results incomparable, but the trials to come others."""
    before = {**store.facts[PROVENANCE]["versions"], **store.facts.get(SAMPLER, {})}
    after = {**now["versions"], **_sampling(space)}
    changes = [
        f"{name} is {after.get(name)}, was {value}"
        for name, value in before.items()
        if after.get(name) != value
    ]
    if changes:
        warnings.warn(
            f"study {store.name} goes on under other conditions ({'; '.join(changes)}): its next "
            "trials are not those that the first run would have made",
            EvomergeWarning,
            stacklevel=2,
        )
        store.remember(**{SAMPLER: _sampling(space)})


def _sampling(space: SearchSpace) -> dict[str, Any]:
    """What the next trial hangs on besides the study; when to stop is nobody's loss."""
    return space.search.model_dump(mode="json", exclude={"patience"})


def _check_items(facts: Mapping[str, Any], prepared: Preparation, name: str, climbed: bool) -> None:
    if facts.get(ITEMS) not in (None, prepared.search_items.digest()):
        problem = (
            "its tasks' items, prompts or tokenizer have changed since it began, so that scores "
            "cannot be compared; put them back, or begin another study (--study NAME, or --fresh)"
        )
        if "splits" not in facts.get(PROVENANCE, {}):
            problem += (
                "; it was begun when every task was searched on what lm-eval evaluates it on: "
                "split: evaluation says so of a task"
            )
        raise StudyError([Fault(f"study {name}", problem)])
    _check_fresh(facts, prepared, climbed)


def _raced(prepared: Preparation) -> str:
    """How many items of each task are kept for a race, whether there is one or not."""
    items = prepared.plan.race_items
    return _AS_SEARCHED if items is None else f"{items} items of each task"


def _as_searched(prepared: Preparation) -> str:
    """The same in numbers where the space names none; empty where its tasks have unlike ones."""
    counts = {request.items for request in prepared.plan.requests}
    return f"{counts.pop()} items of each task" if len(counts) == 1 else ""


def _check_fresh(facts: Mapping[str, Any], prepared: Preparation, climbed: bool) -> None:
    """A climb learns from what the race leaves: other race items would not be fresh to it."""
    before, now = facts.get(RACED), _raced(prepared)
    same = before in (None, now) or {before, now} == {_AS_SEARCHED, _as_searched(prepared)}
    if isinstance(before, int):  # as an earlier version wrote it: how many there were in all
        same = before == len(prepared.race_items or ())
    if climbed and not same:
        place = prepared.space.fault(("finals", "items"), "").place
        problem = (
            f"{now}; the study began with {before}, and its climb has learnt from the rest, so "
            "that no others are fresh. Put it back, or begin another study (--study NAME; --fresh "
            "sets the old one aside)"
        )
        raise StudyError([Fault(place, problem)])


def _check_same(store: StudyStore, space: SearchSpace, name: str) -> None:
    digest = store.facts.get(DIGEST)
    if digest is None and store.records():
        problem = "is in the storage, but was not made by evomerge; choose another name (--study)"
        raise StudyError.at(f"study {name}", problem)
    if digest in (None, space.digest()):
        return
    before = type(space).model_validate(json.loads(store.facts[SPACE]))
    changes = space.describe_changes(before)
    raise StudyError(
        Fault(
            f"study {name}",
            f"was made from another space: {change}. Put it back, or begin another study "
            "(--study NAME; --fresh sets the old one aside)",
        )
        for change in changes
    )


def _seeds(space: SearchSpace) -> dict[str, int]:
    return {"search": space.search.seed, "masks": space.mask_seed}
