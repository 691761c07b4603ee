"""The files that a study keeps current beside its database."""

from __future__ import annotations

import time

from evomerge.report.study import StudyReport
from evomerge.search.budget import Progress
from evomerge.search.finalists import name_of
from evomerge.search.folder import StudyFolder, write_json, write_whole
from evomerge.search.race import Race
from evomerge.search.records import TrialRecord
from evomerge.search.storage import StudyStore

_PAUSE = 2.0
"""Seconds between two writings of the table, at least."""
_SHARE = 0.01
"""Of the driver's time goes into them, at most: the table grows with the study."""


class StudyFiles:
    """Keeps ``best.yaml`` and ``trials.csv`` current while a search runs.

    Args:
        folder: where they lie.
        store: the study.
    """

    def __init__(self, folder: StudyFolder, store: StudyStore) -> None:
        self._folder, self._store = folder, store
        self._best: int | None = None
        self._due = 0.0

    def update(self, progress: Progress) -> None:
        """Write what a finished trial has changed."""
        best = progress.best
        if best is not None and best.number != self._best:
            write_best(self._folder, best, self._store.name)
            self._best = best.number
        if time.monotonic() >= self._due:
            self._write_trials()

    def finish(self, progress: Progress) -> None:
        """Write everything as it stands at the end."""
        self.update(progress)
        self._write_trials()
        report = StudyReport(self._store)
        if report.choice is not None:
            write_best(self._folder, report.choice, self._store.name, report.race)
        if report.verdict is not None:
            write_json(self._folder.held_out, report.verdict.to_json())
        elif report.front_verdict is not None:
            write_json(self._folder.held_out, report.front_verdict.to_json())

    def _write_trials(self) -> None:
        began = time.monotonic()
        write_trials(self._folder, StudyReport(self._store))
        now = time.monotonic()
        self._due = now + max(_PAUSE, (now - began) / _SHARE)


def write_best(
    folder: StudyFolder, trial: TrialRecord, study: str, race: Race | None = None
) -> None:
    """Replace ``best.yaml`` by a trial's recipe, and say whether a race has chosen it."""
    what = trial.label or f"trial {trial.number}"
    fresh = None if race is None else race.fresh(name_of(trial))
    raced = "" if fresh is None else f" and {fresh:.6g} on the race's, which it won"
    head = f"# {study}: {what}, fitness {trial.fitness:.6g} on the search items{raced}\n"
    write_whole(folder.best, head + (trial.recipe or ""))


def write_trials(folder: StudyFolder, report: StudyReport) -> None:
    """Replace ``trials.csv`` by the study's table."""
    write_whole(folder.trials, report.table().to_csv(index=False))
