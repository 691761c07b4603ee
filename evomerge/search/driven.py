"""A study as its only driver knows it: in memory, where the sampler looks, and in the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.search.records import TrialRecord
from evomerge.search.seeded import (
    CLIMBED,
    ERROR,
    ESTIMATE,
    KIND,
    LEG,
    SEARCH,
    TOLD,
    WALK,
    GeneSampler,
)
from evomerge.search.tables import TrialTables

FITNESS, VALUES, CONSTRAINTS = "fitness", "values", "constraints"

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class DrivenStudy:
    """What is asked and told, known at once and written when it is saved.

    Args:
        trials: what the storage holds.
        tables: where it is written.
        sampler: draws candidates.
        goals: how many numbers a trial is told with.
    """

    def __init__(
        self,
        trials: Sequence[FrozenTrial],
        tables: TrialTables,
        sampler: BaseSampler | None,
        goals: int = 1,
    ) -> None:
        self._tables, self._goals = tables, goals
        self._sampler = sampler or optuna.samplers.RandomSampler(seed=0)
        self._hold([_seen(trial) for trial in trials])
        self._told = 1 + max((trial.user_attrs.get(TOLD, -1) for trial in trials), default=-1)
        self._unsaved: dict[int, None] = {}
        self._amended: dict[int, None] = {}

    def _hold(self, trials: Sequence[FrozenTrial]) -> None:
        """Hold these in memory, as they are, instead of what was held."""
        self._storage = InMemoryStorage()
        self._study = optuna.create_study(
            storage=self._storage,
            study_name="searched",
            directions=["maximize"] * self._goals,
            sampler=self._sampler,
        )
        self._study_id = self._storage.get_study_id_from_name("searched")
        self._study.add_trials(trials)

    def trials(self, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    def drawn(
        self, number: int | None, distributions: Mapping[str, FloatDistribution]
    ) -> TrialRecord:
        """The next trial (None), or one that was begun, with all its genes."""
        begun = None if number is None else optuna.Trial(self._study, self._identity(number))
        trial = begun or self._study.ask()
        self._unsaved[trial.number] = None
        attributes = trial.user_attrs
        if KIND not in attributes:
            trial.set_user_attr(KIND, SEARCH)
        genome = {
            name: trial.suggest_float(name, gene.low, gene.high)
            for name, gene in distributions.items()
            if attributes.get("in_genome", True)
        }
        searched = attributes.get(KIND, SEARCH) == SEARCH
        if begun is None and searched:
            for key, value in self._facts(trial.number).items():
                trial.set_user_attr(key, value)
        return TrialRecord(
            number=trial.number,
            kind=attributes.get(KIND, SEARCH),
            state="running",
            genome=genome,
            label=attributes.get("label"),
            recipe=attributes.get("recipe"),
            leg=trial.user_attrs.get(LEG),
            climbed=trial.user_attrs.get(CLIMBED),
            rival=attributes.get("rival"),
        )

    def _facts(self, number: int) -> dict[str, Any]:
        sampler = self._study.sampler
        return sampler.facts(self._study, number) if isinstance(sampler, GeneSampler) else {}

    def mean(self) -> dict[str, float] | None:
        """The mean of the sampler's distribution; None where it keeps none."""
        sampler = self._study.sampler
        return sampler.mean(self._study) if isinstance(sampler, GeneSampler) else None

    def foresees(self) -> bool:
        """Whether the next draw is the same whatever the running trials come to: the draw, not
        whom it is compared with, so that no baseline is drawn ahead."""
        sampler = self._study.sampler
        if self.trials((TrialState.WAITING,)) or not isinstance(sampler, GeneSampler):
            return False
        return sampler.foresees(self._study)

    def climbs(self) -> bool:
        """Whether the next draw takes a leg of a climb; baselines that are queued come before."""
        sampler = self._study.sampler
        if self.trials((TrialState.WAITING,)) or not isinstance(sampler, GeneSampler):
            return False
        return sampler.climbs(self._study)

    def note(self, number: int, **facts: Any) -> None:
        """Keep facts of a trial that was begun."""
        for key, value in facts.items():
            self._storage.set_trial_user_attr(self._identity(number), key, value)
        self._unsaved[number] = None

    def tell(self, number: int, facts: Mapping[str, Any], fitness: float | None = None) -> None:
        """A trial's result; without a fitness it has failed.

        Where there are several goals, what each came to is among the facts, as ``values``; the
        fitness then is a fact like others.

        With an ``estimate`` among the facts, which is then its fitness, it was pruned. With
        ``constraints`` they are what its scores lack of their floors.
        """
        if fitness is not None and not math.isfinite(fitness):
            raise ValueError(f"trial {number}: the fitness is {fitness}, not a finite number")
        told: float | Sequence[float] | None = fitness
        facts = {**facts, TOLD: self._told}
        trial = optuna.Trial(self._study, self._identity(number))
        for key, value in facts.pop(CONSTRAINTS, {}).items():
            trial.set_constraint(key, value)
        if fitness is not None and len(self._study.directions) > 1:
            told = facts.pop(VALUES)
            facts[FITNESS] = fitness
        for key, value in facts.items():
            self._storage.set_trial_user_attr(self._identity(number), key, value)
        self._told += 1
        state = TrialState.FAIL if fitness is None else TrialState.COMPLETE
        self._study.tell(number, told, state=state)
        self._unsaved[number] = None

    def constrain(self, constraints: Mapping[int, Mapping[str, float]]) -> None:
        """The constraints of trials that were finished before their floors were known.

        Optuna changes no finished trial, so that those in memory are taken in anew.
        """
        trials = [copy(trial) for trial in self.trials()]
        for number, of in constraints.items():
            trials[number].system_attrs = dict(trials[number].system_attrs)
            for key, value in of.items():
                trials[number].set_constraint(key, value)
            self._amended[number] = None
        self._hold(trials)

    def save(self) -> None:
        """Write what was drawn, told and amended since the last time, in the order of numbers."""
        if self._unsaved or self._amended:
            trials = self.trials()
            amended = [trials[number] for number in sorted(self._amended.keys() - self._unsaved)]
            written = [_kept(trials[number]) for number in sorted(self._unsaved)]
            self._tables.write(written, amended)
            self._unsaved.clear()
            self._amended.clear()

    def close(self) -> None:
        self._tables.close()

    def _identity(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def _seen(trial: FrozenTrial) -> FrozenTrial:
    """A trial as the sampler sees it: a pruned one is worth its estimate.

    Optuna's samplers pass over pruned trials, or take all of them for worse than the others.
    """
    if trial.state == TrialState.PRUNED and ESTIMATE in trial.user_attrs:
        trial = copy(trial)
        trial.state, trial.values = TrialState.COMPLETE, [trial.user_attrs[ESTIMATE]]
    return trial


def _kept(trial: FrozenTrial) -> FrozenTrial:
    """A trial as it is written: the inverse."""
    if trial.state == TrialState.COMPLETE and ESTIMATE in trial.user_attrs:
        trial = copy(trial)
        trial.state, trial.values = TrialState.PRUNED, None
    return trial


def record_of(trial: FrozenTrial) -> TrialRecord:
    """A trial, seen or kept, in our words."""
    trial, facts = _kept(trial), trial.user_attrs
    return TrialRecord(
        number=trial.number,
        kind=facts.get(KIND, SEARCH),
        state=_STATES[trial.state],
        fitness=facts.get(FITNESS, trial.values[0]) if trial.values else None,
        values=tuple(trial.values or ()) if FITNESS in facts else (),
        constraints=dict(trial.constraints),
        genome=dict(trial.params),
        label=facts.get("label"),
        recipe=facts.get("recipe"),
        scores=_mapping(facts.get("scores")),
        seconds=_mapping(facts.get("seconds")),
        failure=facts.get("failure"),
        told=facts.get(TOLD),
        items=facts.get("items"),
        leg=facts.get(LEG),
        walk=facts.get(WALK),
        no_slope=facts.get("no_slope"),
        climbed=facts.get(CLIMBED),
        estimate=facts.get(ESTIMATE),
        rival=facts.get("rival"),
        twin=facts.get("twin"),
        incumbent=facts.get("incumbent"),
        gain=facts.get("gain", False),
        error=facts.get(ERROR),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        return dict(json.loads(value))
    return dict(value or {})
