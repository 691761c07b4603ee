"""Trials that come to the same recipe are run once: genes at a bound, genes without effect."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.search.records import TrialRecord


class Twins:
    """Recipes that were scored, and those that are being scored.

    Args:
        records: the trials of earlier runs.
    """

    def __init__(self, records: Sequence[TrialRecord]) -> None:
        self._scored: dict[str, TrialRecord] = {}
        self._running: dict[str, list[TrialRecord]] = {}
        for record in records:
            self._keep(record)

    @property
    def waiting(self) -> int:
        """Trials that wait for their twin's result."""
        return sum(map(len, self._running.values()))

    def scored(self, recipe: str) -> TrialRecord | None:
        """The trial that has this recipe's result already."""
        return self._scored.get(recipe)

    def waits(self, recipe: str, trial: TrialRecord) -> bool:
        """Whether the recipe is being scored for another trial, which this one now waits for.

        Else it is being scored for this one from now on.
        """
        if recipe in self._running:
            self._running[recipe].append(trial)
            return True
        self._running[recipe] = []
        return False

    def finished(self, record: TrialRecord) -> list[TrialRecord]:
        """Keep a result; the trials that have waited for it."""
        self._keep(record)
        return self._running.pop(record.recipe or "", [])

    def _keep(self, record: TrialRecord) -> None:
        if record.recipe is None or record.twin is not None:
            return
        if record.state not in ("complete", "pruned"):
            return
        known = self._scored.get(record.recipe)
        if known is None or (known.state, record.state) == ("pruned", "complete"):
            self._scored[record.recipe] = record
