"""What a study remembers of a trial, and what is to be tried first; plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        leg: of a trial of the ascent, where its leg of the climb begins, as ``climbing.Place``
            writes it.
        walk: what came of the leg, as ``climbing.Walk`` writes it; None where nothing did.
        no_slope: why nothing came of the leg, where it was scored.
        climbed: of one that is the mean of a climb's last steps, which climb, from 0.
        error: the fitness's standard error; None where it is not known, and of a pruned one.
        estimate: of a pruned one, what it would have scored: the incumbent's fitness plus the
            paired difference on the items that were scored.
        rival: the trial that was the incumbent when this one began, which it was compared with.
        twin: the trial with the same recipe whose result this one has; it was not run itself.
        incumbent: of one that was the best when it finished, what each item adds to its fitness, as
            ``evaluation.incumbent`` packs it.
        gain: whether it was better than all before it beyond noise.
        values: where a study has several goals, what each came to, all of them to be maximised.
        constraints: floor → what the score lacks of its limit; 0 or less keeps it. Empty where
            there are no floors, or while their limits are not known.
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
    leg: Mapping[str, Any] | None = None
    walk: Mapping[str, Any] | None = None
    no_slope: str | None = None
    climbed: int | None = None
    estimate: float | None = None
    rival: int | None = None
    twin: int | None = None
    incumbent: Mapping[str, Any] | None = None
    gain: bool = False
    error: float | None = None
    values: tuple[float, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("complete", "failed", "pruned")

    @property
    def violation(self) -> float:
        """By how much it breaks its floors, in sum; 0 where it keeps them all."""
        return violation_of(self.constraints)


def violation_of(constraints: Mapping[str, float]) -> float:
    """What is lacking in sum, in the metrics' units: as Optuna adds constraints up."""
    return sum(max(0.0, lack) for lack in constraints.values())


def in_order(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Trials in the order in which their results arrived."""
    return sorted(records, key=lambda record: -1 if record.told is None else record.told)


@dataclass(frozen=True)
class PlannedBaseline:
    """A baseline to be scored before the search: its name, its recipe, its genome if it has one."""

    label: str
    recipe: str
    genome: Mapping[str, float] | None
