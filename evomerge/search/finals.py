"""The end of a search: the finalists are raced, the best is shipped, and judged by new items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.evaluation import Comparison, ItemSet, Scores, compare, fitness
from evomerge.recipe import read_recipes
from evomerge.references import ModelReference
from evomerge.search.finalists import (
    MEAN,
    RACE,
    Decision,
    decided,
    entrants_of,
    finished,
    mean_record,
    name_of,
)
from evomerge.search.floors import Constraints
from evomerge.search.judging import judge_goals
from evomerge.search.keeping import checks, models_of
from evomerge.search.parts import rounds_of
from evomerge.search.pool import Job, Outcome, Pool
from evomerge.search.preparation import Preparation
from evomerge.search.problem import Problem, summary
from evomerge.search.race import Race
from evomerge.search.records import TrialRecord, violation_of
from evomerge.search.rounds import Rounds
from evomerge.search.seeded import BASELINE
from evomerge.search.spending import affordable, items_raced
from evomerge.search.storage import StudyStore
from evomerge.search.verdict import VERDICT, Verdict, judge, judged_baselines, known_verdict

_MEAN_SHARE = 4  # times the search items must be left, that the mean is scored on them


@dataclass(frozen=True)
class Conclusion:
    """What a search comes to.

    Args:
        choice: what is shipped; None while no trial has succeeded.
        verdict: the held-out comparison; None if there is none, for the reason in ``no_verdict``.
        notes: what else the user should know.
    """

    choice: TrialRecord | None
    verdict: Verdict | None = None
    no_verdict: str | None = None
    notes: tuple[str, ...] = ()


class Finals:
    """Races the finalists of a study and judges the best.

    Every finished round is kept in the study, so that a race that was interrupted goes on; one that
    is finished is not run again until trials have been added.

    Args:
        prepared: the space.
        problem: the same, as the loop sees it.
        store: its study, whose trials are finished.
        pool: gives the workers; not called when there is nothing left to do.
        waiting: is called now and then.
        items: what the trials leave of the study's items, for all its races; None is no limit.
    """

    def __init__(
        self,
        prepared: Preparation,
        problem: Problem,
        store: StudyStore,
        pool: Callable[[], Pool],
        waiting: Callable[[], None],
        items: int | None = None,
    ) -> None:
        self._items = items
        self._prepared, self._store, self._waiting = prepared, store, waiting
        self._pool, self._problem = pool, problem
        self._rounds = Rounds(prepared, self._score)
        self._records = store.records()

    def run(self) -> Conclusion:
        """Race, choose, judge.

        Raises:
            StudyError: the storage fails.
            WorkerError: no worker can be had.
        """
        if self._prepared.race_items is not None:
            self._race(self._prepared.race_items)
        decision = decided(self._records, self._store.facts)
        if decision is None:
            return Conclusion(None, no_verdict="no trial has succeeded")
        if self._prepared.space.several_goals:
            return self._spread_out(decision.choice)
        verdict, reason = self._judge(decision)
        told = self._store.facts.get(RACE, {}).get("told", ())
        return Conclusion(decision.choice, verdict, reason, tuple(told))

    def _race(self, items: ItemSet) -> None:
        spec = self._prepared.space.finals
        terms = {
            "after": finished(self._records),
            "of": [items.digest(), spec.candidates, spec.mask_seeds],
        }
        facts = self._store.facts
        known = facts.get(RACE, {})
        if {key: known.get(key) for key in terms} != terms:
            before = items_raced(facts)
            known = {**terms, "before": before, **self._begun(spec.candidates, before)}
        if known["finished"] and not known.get("short"):
            self._store.remember(**{RACE: known})
            return
        self._run_rounds(known, rounds_of(items))

    def _run_rounds(self, known: dict[str, Any], rounds: int) -> None:
        """Go on with a race, and keep each of its rounds."""
        entrants, race = self._entrants(known), Race.from_json(known["race"])
        # What cut a round short stays told; a race that was stopped goes on.
        told = known.get("told", [])
        known = {**known, "told": told[:-1] if known.get("short") else told, "short": False}
        while len(race.rounds) < rounds and len(race.remaining) > 1:
            more = len(race.rounds) + 1 < rounds
            names = self._paid(race, entrants, known, more=more)
            if len(names) < len(race.remaining):
                known["told"] = [*known["told"], _shortage(race, rounds, len(names))]
            if not names:
                known["short"] = True
                break
            part = f"race {len(race.rounds) + 1}/{rounds}"
            result, scored = self._rounds.run(part, {name: entrants[name] for name in names})
            known["items"] += scored
            if not result.fitness:
                break
            race = replace(race, rounds=(*race.rounds, result))
            known = {**known, "finished": False, "race": race.to_json()}
            self._store.remember(**{RACE: known})
        self._store.remember(**{RACE: {**known, "finished": True}})

    def _left(self, raced: int) -> int | None:
        """Items that may still be raced on."""
        return None if self._items is None else max(0, self._items - raced)

    def _paid(
        self,
        race: Race,
        entrants: Mapping[str, TrialRecord],
        known: Mapping[str, Any],
        *,
        more: bool,
    ) -> tuple[str, ...]:
        """Who runs the next round."""
        costs = {name: self._rounds.cost(entrants[name]) for name in race.remaining}
        baselines = {name for name in costs if entrants[name].kind == BASELINE}
        left = self._left(known.get("before", 0) + known["items"])
        return affordable(race, costs, left, baselines, more)

    def _begun(self, candidates: int, raced: int) -> dict[str, Any]:
        """A race before its first round."""
        entrants = entrants_of(self._records, candidates)
        cost = 0
        mean: dict[str, Any] | None = None
        left = self._left(raced)
        # Where little is left, the others need it.
        paid = left is None or left > _MEAN_SHARE * self._problem.items
        paid = paid and any(one.kind != BASELINE for one in entrants)
        genome = self._store.mean() if paid else None
        recipe = self._problem.recipe(genome) if genome else None
        if genome and recipe and recipe not in [one.recipe for one in entrants]:
            outcome = self._score([Job(MEAN, recipe)])[MEAN]
            cost += outcome.items
            value = math.nan if outcome.scores is None else self._problem.fitness(outcome.scores)
            if math.isfinite(value) and self._may_race(outcome, entrants):
                mean = {"genome": genome, "recipe": recipe, "fitness": value}
                entrants.append(mean_record(**mean))
        # Of two that are equally good, the fitter on the search items is shipped.
        entrants.sort(key=lambda one: (-float(one.fitness or 0.0), one.number))
        fitness = {name_of(one): float(one.fitness or 0.0) for one in entrants}
        # The search has adapted to its items: only the fresh ones tell the finalists apart.
        race = Race(fitness, search_items=0)
        enough = len(entrants) > 1
        return {"race": race.to_json(), "mean": mean, "items": cost, "finished": not enough}

    def _may_race(self, outcome: Outcome, entrants: Sequence[TrialRecord]) -> bool:
        """Whether what no trial was breaks no floor that the others keep."""
        constraints = Constraints(self._problem.floors, self._records)
        assert outcome.scores is not None  # for the type checker: it has a fitness
        lacking = violation_of(constraints.of(summary(outcome.scores)))
        return lacking <= max((one.violation for one in entrants), default=0.0)

    def _entrants(self, known: Mapping[str, Any]) -> dict[str, TrialRecord]:
        mean = [mean_record(**known["mean"])] if known["mean"] else []
        everyone = {name_of(one): one for one in [*self._records, *mean]}
        return {name: self._located(everyone[name]) for name in known["race"]["searched"]}

    def _judge(self, decision: Decision) -> tuple[Verdict | None, str | None]:
        items = self._prepared.holdout_items
        winner, baselines = decision.winner, judged_baselines(decision)
        if winner is None and all(one.kind == BASELINE for one in self._records):
            return None, "the budget ended before the first searched trial: baselines come first"
        if winner is None or not baselines:
            reason = "no searched trial, or no baseline, was scored on all the search items"
            floored = winner is None and bool(self._problem.floors)
            return None, reason + (" and keeps the floors" if floored else "")
        if items is None:
            return None, "there are no held-out items"
        known = known_verdict(self._store.facts, decision, self._records)
        if known is not None:
            return known, None
        models = models_of(self._problem.floors, self._records)
        asked = {one.number: one for one in (winner, *baselines, *models.values())}
        outcomes = self._held_out_scores(asked.values())
        found = {number: one.scores for number, one in outcomes.items() if one.scores is not None}
        if len(found) < len(outcomes):
            failed = next(outcome.failure for outcome in outcomes.values() if outcome.failure)
            return None, f"the held-out items could not be scored: {failed}"
        verdict = judge(
            (winner, found[winner.number]),
            [(one, found[one.number]) for one in baselines],
            lambda a, b, confidence: self._compare(items, a, b, confidence),
            lambda scores: self._fitness(scores, items),
            len(items),
            kept=decision.choice.kind == BASELINE,
            after=finished(self._records),
            floors=checks(self._problem.floors, decision.choice, models, found, items.requests),
        )
        self._store.remember(**{VERDICT: verdict.to_json()})
        return verdict, None

    def _spread_out(self, choice: TrialRecord) -> Conclusion:
        """Judge points of the front; the fittest of them is shipped."""
        reason = judge_goals(self._prepared, self._store, self._records, self._held_out_scores)
        return Conclusion(choice, no_verdict=reason)

    def _held_out_scores(self, records: Iterable[TrialRecord]) -> dict[int, Outcome]:
        jobs = [Job(one.number, self._located(one).recipe or "", "holdout") for one in records]
        return {int(number): outcome for number, outcome in self._score(jobs).items()}

    def _located(self, record: TrialRecord) -> TrialRecord:
        """The trial, its recipe naming the models where they lie now, if they have moved."""
        held = {checkpoint.reference for checkpoint in self._prepared.checkpoints}
        recipes = read_recipes(record.recipe or "")
        made = {ModelReference(str(recipe.name)) for recipe in recipes[:-1]}
        if {model for recipe in recipes for model in recipe.models_named} <= held | made:
            return record
        planned = {baseline.label: baseline.recipe for baseline in self._prepared.baselines}
        recipe = planned.get(record.label or "")
        return replace(record, recipe=recipe or self._problem.recipe(record.genome))

    def _score(self, jobs: Sequence[Job]) -> dict[int | str, Outcome]:
        """Run jobs, as many at once as there are workers."""
        pool, waiting = self._pool(), list(jobs)
        outcomes: dict[int | str, Outcome] = {}
        while waiting or pool.busy:
            while waiting and pool.busy < pool.size:
                pool.submit(waiting.pop(0))
            for outcome in pool.wait(1.0):
                outcomes[outcome.job.key] = outcome
            self._waiting()
        return outcomes

    def _fitness(self, scores: Scores, items: ItemSet | None) -> float:
        requests = items.requests if items is not None else ()
        return fitness(scores, requests, plain_sum=self._prepared.space.plain_sum)

    def _compare(
        self, items: ItemSet | None, a: Scores, b: Scores, confidence: float
    ) -> Comparison:
        return compare(
            a,
            b,
            items.requests if items is not None else (),
            plain_sum=self._prepared.space.plain_sum,
            confidence=confidence,
        )


def _shortage(race: Race, rounds: int, paid: int) -> str:
    """That a round of the race could not be run, or not by all."""
    step, several = len(race.rounds) + 1, len(race.remaining)
    if paid:
        return (
            f"Of {several} finalists that were left, {paid} ran round {step} of {rounds} of the "
            "race: what --items leaves pays for no more."
        )
    if step > 1:
        return (
            f"The race ended before round {step} of {rounds}: what --items leaves pays for no "
            "more. A larger --items goes on."
        )
    return (
        "No race: what --items leaves does not pay for two finalists on fresh items, so the best "
        "score on the search items decides, which is partly luck. A larger --items goes on."
    )
