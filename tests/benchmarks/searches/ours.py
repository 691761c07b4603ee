"""Our search as a user would run it, in this process: ``Session`` with one local worker.

Its budget is in scored items: stopped trials, slopes and the finals' race cost what they score.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from evomerge.search.budget import Budget, best_of, nobody
from evomerge.search.pool import LocalPool
from evomerge.search.preparation import Preparation, prepare
from evomerge.search.records import TrialRecord
from evomerge.search.session import SearchOutcome, Session
from evomerge.search.storage import StudyStore, create_store, quiet
from evomerge.space import load_space

OURS = "ours"

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What a search of ours ended with.

    Args:
        recipe: what it ships.
        items: scored, its finals' included.
        seconds: of everything.
        verdict: ``win``, ``loss`` or ``open``; None if it says nothing.
        trials: how many were begun.
    """

    recipe: str
    items: int
    seconds: float
    verdict: str | None
    trials: int


def search(file: Path, settings: Settings, seed: int, trials: int) -> Found:
    """Search a space for so many full trials.

    Args:
        file: the space.
        settings: keys of its ``search:`` section, or dotted ones from its top
            (``genome.layers``), with other values.
        seed: of the search.
        trials: the budget, as many times the search items.

    Raises:
        RuntimeError: the search ended without a recipe.
    """
    quiet()
    began = time.perf_counter()
    with TemporaryDirectory(prefix="evomerge-bench-") as folder:
        changed = Path(folder) / "space.yaml"
        changed.write_text(yaml.safe_dump(_changed(file, settings, seed)))
        prepared = prepare(load_space(changed))
        store = create_store("bench", f"sqlite:///{folder}/study.db")
        plan = replace(prepared.plan, threads=1, device="cpu")
        # Trials that are stopped early cost less: items alone end it.
        budget = Budget(50 * trials, items=trials * len(prepared.search_items))
        outcome = Session(prepared, store, lambda: LocalPool(plan), budget, nobody).run()
        records = store.records()
        recipe = _shipped(outcome, records)
        items = _items(records, prepared, store)
    seconds = time.perf_counter() - began
    verdict = outcome.verdict.outcome if outcome.verdict else None
    return Found(recipe, items, seconds, verdict, len(records))


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME=key:value,key:value`` → the name and the settings; values are YAML.

    Raises:
        ValueError: it does not look like that.
    """
    name, equals, rest = text.partition("=")
    pairs = [pair.partition(":") for pair in rest.split(",") if pair]
    if not name or (equals and not pairs) or not all(key and value for key, _, value in pairs):
        raise ValueError(f"{text!r} is refused: write NAME or NAME=key:value,key:value")
    return name, {key: yaml.safe_load(value) for key, _, value in pairs}


def _changed(file: Path, settings: Settings, seed: int) -> dict[str, Any]:
    """The space's data with other settings, its folders named from the root."""
    data: dict[str, Any] = yaml.safe_load(file.read_text())
    folder = file.resolve().parent

    def placed(name: Any) -> Any:
        return str(folder / name) if isinstance(name, str) and (folder / name).exists() else name

    for key in ("base_model", "include_path", "models"):
        if key in data:
            value = data[key]
            data[key] = [placed(one) for one in value] if isinstance(value, list) else placed(value)
    for key, value in {"search.seed": seed, **settings}.items():
        *way, last = key.split(".") if "." in key else ("search", key)
        node = data
        for part in way:
            node = node.setdefault(part, {})
        node[last] = value
    return data


def _shipped(outcome: SearchOutcome, records: list[TrialRecord]) -> str:
    choice = outcome.choice or best_of(records)
    if choice is None or choice.recipe is None:
        raise RuntimeError(f"nothing was found: {outcome.no_verdict}")
    return str(choice.recipe)


def _items(records: list[TrialRecord], prepared: Preparation, store: StudyStore) -> int:
    """Scored in trials, and by what chose between the finalists."""
    whole = len(prepared.search_items)
    ran = [record for record in records if record.state in ("complete", "pruned")]
    counted = [getattr(record, "items", None) for record in ran]
    finals = store.facts.get("race", {}).get("items", 0)
    return sum(whole if one is None else int(one) for one in counted) + int(finals)
