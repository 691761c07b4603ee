"""Who comes to the finals: the best searched trials, the end of the search, the best baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.recipe import read_recipes, write_recipes
from evomerge.search.race import Race, Z
from evomerge.search.records import TrialRecord
from evomerge.search.seeded import BASELINE

MEAN, MEAN_LABEL, NO_TRIAL = "mean", "end of the search", -1
RACE = "race"
"""The study's fact."""

MOST_BASELINES = 3
"""So many baselines are raced, and have to be beaten on the held-out items, at most."""


@dataclass(frozen=True)
class Decision:
    """What the search comes to.

    Args:
        choice: what is shipped.
        winner: the best searched candidate; None while none has succeeded.
        baselines: those that have to be beaten, the best first.
        raced: whether fresh items decided.
    """

    choice: TrialRecord
    winner: TrialRecord | None
    baselines: tuple[TrialRecord, ...]
    raced: bool


def mean_record(genome: Mapping[str, float], recipe: str, fitness: float | None) -> TrialRecord:
    """Where the search stands at its end, which is no trial of the study: the mean of the
    sampler's distribution, or the place that a climb has come to."""
    state = "running" if fitness is None else "complete"
    return TrialRecord(NO_TRIAL, MEAN, state, fitness, genome, MEAN_LABEL, recipe)


def name_of(record: TrialRecord) -> str:
    """A finalist's name in the race."""
    return MEAN if record.kind == MEAN else str(record.number)


def best_searched(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """The fittest searched trials, without those whose recipe is another's, and without the legs
    of climbs, which :func:`best_climbed` gives.

    Those that keep their floors; where no trial does, those that break them the least.
    """
    found: dict[str, TrialRecord] = {}
    for record in _ranked(records):
        if record.kind != BASELINE and record.leg is None and len(found) < count:
            found.setdefault(record.recipe or str(record.number), record)
    return list(found.values())


def best_climbed(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The means of the climbs' last steps, their fittest trial, and the last one.

    They have adapted less to which items are answered rightly by luck than what came after them.
    """
    climb = [one for one in _ranked(records) if one.leg is not None]
    last = sorted(climb, key=lambda one: -one.number)[:1]
    means = [one for one in _ranked(records) if one.climbed is not None]
    return list({one.recipe: one for one in [*means, *climb[:1], *last]}.values())


def best_baselines(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The fittest baseline, and those that may be as good: a few, the fittest first.

    Of those that keep their floors; where none does, of all, as what is searched has to beat them.
    """
    baselines = _whole([record for record in records if record.kind == BASELINE])
    kept = [one for one in baselines if one.violation == 0]
    ranked = sorted(kept or baselines, key=lambda one: (-float(one.fitness or 0.0), one.number))
    return [one for one in ranked if _may_equal(one, ranked[0])][:MOST_BASELINES]


def entrants_of(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Who is raced, of the trials: so many searched ones, the climbs' best before all, and the best
    baselines.

    None that breaks floors which another trial keeps. Where no trial keeps them, who breaks them
    the least is the best, and there is no race.
    """
    ranked = _ranked(records)
    if ranked and ranked[0].violation > 0:
        return ranked[:1]
    allowed = {one.number for one in ranked}
    several = [*best_climbed(records), *best_searched(records, count)]
    searched = list({one.recipe or str(one.number): one for one in several}.values())[:count]
    baselines = [one for one in best_baselines(records) if one.number in allowed]
    return [*searched, *baselines]


def decided(
    records: Sequence[TrialRecord], facts: Mapping[str, Any], *, last: bool = False
) -> Decision | None:
    """What the search comes to, by its trials and by the race that was run after the last of them.

    Args:
        records: the study's trials.
        facts: of the study.
        last: what the last race came to, though trials have been added since.

    Returns:
        None while no trial has succeeded.
    """
    ranked = _ranked(records)
    if not ranked:
        return None
    found = race_of(records, facts, last=last)
    if found is None:
        winner = next((one for one in ranked if one.kind != BASELINE), None)
        return Decision(ranked[0], winner, tuple(best_baselines(records)), raced=False)
    race, mean = found
    known = {name_of(one): one for one in [*ranked, *([mean] if mean else [])]}
    order = sorted(race.searched, key=lambda name: (-_rounds(race, name), -race.pooled(name)))
    entered = [known[name] for name in order if name in known]
    # A baseline that the leader resembles drops out early, as their difference is soon sure: how
    # long one stays says nothing of which of them is the best.
    by_score = sorted(race.searched, key=lambda name: -race.pooled(name))
    baselines = [known[name] for name in by_score if name in known and known[name].kind == BASELINE]
    baselines = baselines or best_baselines(records)
    if entered[0].kind == BASELINE:
        baselines.remove(entered[0])
        baselines.insert(0, entered[0])
    searched = [one for one in entered if one.kind != BASELINE]
    return Decision(
        entered[0], searched[0] if searched else None, tuple(baselines), bool(race.rounds)
    )


def race_of(
    records: Sequence[TrialRecord], facts: Mapping[str, Any], *, last: bool = False
) -> tuple[Race, TrialRecord | None] | None:
    """The finished race of a study and the mean that took part; None if there is none now."""
    known = facts.get(RACE)
    if not known or not known["finished"]:
        return None
    if not last and known["after"] != finished(records):
        return None
    mean = known["mean"]
    return Race.from_json(known["race"]), mean_record(**mean) if mean else None


def finished(records: Sequence[TrialRecord]) -> int:
    """How many trials are: a race is run after so many of them."""
    return sum(1 for record in records if record.finished)


def draws_masks(recipe: str) -> bool:
    """Whether a recipe's result depends on its mask seed: at density 1 nothing is dropped."""
    recipes = read_recipes(recipe)
    return any(one.draws_masks and _least(one.to_mapping(), "density") < 1 for one in recipes)


def _least(data: Any, key: str) -> float:
    """The least number under a key, wherever it stands; 1 where it does not."""
    if isinstance(data, Mapping):
        found = [
            min(_numbers(value), default=1.0) if name == key else _least(value, key)
            for name, value in data.items()
        ]
    else:
        found = [_least(one, key) for one in data] if isinstance(data, list | tuple) else []
    return min(found, default=1.0)


def _numbers(data: Any) -> Iterator[float]:
    """All the numbers of a setting: one, a gradient's, those of its filters."""
    if isinstance(data, Mapping):
        yield from _numbers(data.get("value"))
    elif isinstance(data, list | tuple):
        for one in data:
            yield from _numbers(one)
    elif isinstance(data, int | float):
        yield float(data)


def under_seed(recipe: str, step: int) -> str:
    """A recipe with another seed of its masks; its own for step 0."""
    if step == 0:
        return recipe
    recipes = read_recipes(recipe)
    return write_recipes([replace(one, mask_seed=one.mask_seed + step) for one in recipes])


def _rounds(race: Race, name: str) -> int:
    return sum(1 for one in race.rounds if name in one.fitness)


def _ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those that have a fitness on all the search items and keep their floors, the fittest first;
    where none keeps them all, those that break them the least."""
    complete = _whole(records)
    ranked = [one for one in complete if one.violation == 0] or complete
    return sorted(ranked, key=lambda one: (one.violation, -float(one.fitness or 0.0), one.number))


def _whole(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [one for one in records if one.state == "complete" and one.fitness is not None]


def _may_equal(one: TrialRecord, best: TrialRecord) -> bool:
    """Whether noise may be all that lies between: by their standard errors, as if unpaired.

    That is a bound for the paired difference's, and needs no item scores.
    """
    gap = float(best.fitness or 0.0) - float(one.fitness or 0.0)
    if one.error is None or best.error is None:
        return True
    return gap <= Z * math.hypot(one.error, best.error)
