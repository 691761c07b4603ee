"""Results as JSON lines: one row per family, competitor, seed and budget, never run twice.

Without their recipes they are small enough to be kept with the project, as CSV.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

VERSION = 1
"""Of the harness: rows of another version are not taken for this one's."""


@dataclass(frozen=True)
class Row:
    """What one competitor would have shipped.

    Args:
        version: the harness's.
        family, key: the family, and a hash of its models, tasks and space.
        competitor: its name.
        settings: what its results hang on besides, as text; empty for the others' searches.
        seed: of the items and of the search.
        budget: full trials that it was allowed.
        recipe: what it ships.
        search: its fitness on the search items, by the family's metric.
        held_out: on the held-out items.
        baseline, baseline_held_out: the best baseline on the search items; its held-out fitness.
        difference, low, high: to that baseline, paired item by item, 95 %.
        items: scored.
        seconds: of the search.
        verdict: what the search itself says; None for those that say nothing.
    """

    version: int
    family: str
    key: str
    competitor: str
    settings: str
    seed: int
    budget: int
    recipe: str
    search: float
    held_out: float
    baseline: str
    baseline_held_out: float
    difference: float
    low: float
    high: float
    items: int
    seconds: float
    verdict: str | None = None

    @property
    def identity(self) -> tuple[Any, ...]:
        """What a row's result hangs on."""
        return (*self.place, self.key, self.settings, self.version)

    @property
    def place(self) -> tuple[str, str, int, int]:
        """Where it stands in the table."""
        return self.family, self.competitor, self.seed, self.budget

    @property
    def claimed(self) -> bool:
        """Whether a win is claimed: by the search itself, else by the interval."""
        return self.verdict == "win" if self.verdict is not None else self.low > 0


def read(file: Path) -> list[Row]:
    """The rows of this version; of two that are the same, and of two for one place, the later.

    Args:
        file: JSON lines, or what :func:`save` wrote if it is named ``.csv``.
    """
    if not file.exists():
        return []
    found: dict[tuple[Any, ...], Row] = {}
    for data in _table_lines(file) if file.suffix == ".csv" else _whole_lines(file):
        if data.get("version") == VERSION:
            row = Row(**data)
            found[row.identity] = row
    return list(found.values())


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row for each place in the table: the last that was written."""
    return list({row.place: row for row in rows}.values())


def shared(rows: Sequence[Row], *names: str) -> set[int]:
    """The seeds that each of these competitors has at all of its budgets: one family's rows."""
    found = [_whole([row for row in rows if row.competitor == name]) for name in names]
    return set.intersection(*found) if found else set()


def _whole(rows: Sequence[Row]) -> set[int]:
    budgets = {row.budget for row in rows}
    have = {seed: {row.budget for row in rows if row.seed == seed} for seed in seeds(rows)}
    return {seed for seed, there in have.items() if there == budgets}


def seeds(rows: Iterable[Row]) -> set[int]:
    """Whose rows these are."""
    return {row.seed for row in rows}


def append(file: Path, row: Row) -> None:
    """Write one row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torn = file.exists() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
    with file.open("a") as stream:
        stream.write(("\n" if torn else "") + json.dumps(asdict(row)) + "\n")


def save(file: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV, sorted, without their recipes."""
    names = [one.name for one in fields(Row) if one.name != "recipe"]
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for row in sorted(latest(rows), key=lambda one: one.place):
            table.writerow({name: _short(value) for name, value in asdict(row).items()})


def _short(value: Any) -> Any:
    """Scores to six digits: a held-out set has some thousands of items."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _table_lines(file: Path) -> Iterator[dict[str, Any]]:
    kinds = {one.name: str(one.type) for one in fields(Row)}
    with file.open(newline="", encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            told = {name: _MAKE.get(kinds[name], str)(text) for name, text in line.items()}
            yield {**told, "recipe": "", "verdict": line["verdict"] or None}


_MAKE: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float}


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        # The last line of a run that was killed is torn.
        with suppress(json.JSONDecodeError):
            yield json.loads(line)
