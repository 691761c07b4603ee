"""The folder of a study: where its files lie, who may write them, how they are replaced whole."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from evomerge.errors import Fault, StudyError

ROOT = Path("studies")
"""Studies lie here, below the current directory."""


class StudyFolder:
    """``studies/<name>/``: the database, the space, ``best.yaml``, ``trials.csv``, item scores,
    provenance.

    Args:
        path: the folder; it is made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "study.db"
        self.space = path / "space.yaml"
        self.best = path / "best.yaml"
        self.trials = path / "trials.csv"
        self.items = path / "items.scores"
        self.provenance = path / "provenance.json"
        self.held_out = path / "heldout.json"
        self.log = path / "search.log"

    @property
    def url(self) -> str:
        """The default storage: SQLite in the folder."""
        return f"sqlite:///{self.database.resolve()}"

    @property
    def exists(self) -> bool:
        """Whether there is anything in it."""
        return self.path.is_dir() and any(self.path.iterdir())

    def make(self) -> None:
        """Make the folder.

        Raises:
            StudyError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise StudyError([Fault(str(self.path), f"cannot be made: {problem}")]) from problem

    def set_aside(self) -> Path:
        """Rename the folder, so that a fresh study loses nothing; returns the new place."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.name}.{stamp}")
        try:
            os.rename(self.path, aside)
        except OSError as problem:
            raise StudyError(
                [Fault(str(self.path), f"cannot be set aside: {problem}")]
            ) from problem
        return aside

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for one search at a time; the system lets go of it when a driver dies.

        The lock lies beside the folder, so that it holds while the folder is set aside.

        Raises:
            StudyError: another search holds it.
        """
        self.make()
        place = self.path.with_name(f".{self.path.name}.lock")
        try:
            opened = place.open("a+")
        except OSError as problem:
            fault = Fault(str(place), f"cannot be written: {problem.strerror}")
            raise StudyError([fault]) from problem
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as problem:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise StudyError(
                    [Fault(str(self.path), f"is being searched already, by {holder}")]
                ) from problem
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield


def write_whole(path: Path, text: str) -> None:
    """Replace a file by a whole new one: a reader or a crash never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise StudyError([Fault(str(path), f"cannot be written: {problem.strerror}")]) from problem


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file whole."""
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
