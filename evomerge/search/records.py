"""What a study remembers of a trial, and what is to be tried first; plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the study remembers it.

    Args:
        number: the trial's number, from 0.
        kind: ``baseline`` or ``search``.
        state: ``waiting``, ``running``, ``complete``, ``pruned`` or ``failed``.
        fitness: what the sampler was told; None while there is none.
        genome: gene name → value; empty for a baseline outside the genome.
        label: a baseline's name (``base``, ``uniform``, ``only <model>``).
        recipe: the recipe as YAML; None until the trial was dispatched.
        scores: task → {metric: [value, standard error]}.
        seconds: where the time went: ``merge``, ``score``.
        failure: why it failed.
        told: its place in the order in which results arrived.
        items: how many items were scored for it; None where that was not kept, and of a failed
            trial, of which nobody knows how far it came.
        asks_slope: whether the sampler asked for its slope.
        slope: gene → d smooth fitness / d gene; None where there is none.
        smooth: the smooth fitness, where there is a slope.
    """

    number: int
    kind: str
    state: str
    fitness: float | None = None
    genome: Mapping[str, float] = field(default_factory=dict)
    label: str | None = None
    recipe: str | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    told: int | None = None
    items: int | None = None
    asks_slope: bool = False
    slope: Mapping[str, float] | None = None
    smooth: float | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("complete", "failed", "pruned")


@dataclass(frozen=True)
class PlannedBaseline:
    """A baseline to be scored before the search: its name, its recipe, its genome if it has one."""

    label: str
    recipe: str
    genome: Mapping[str, float] | None
