"""How the items that a study may score are shared out: the search, the race, the comparison.

A limit on items holds for the search and the race together: the search stops where what is left is
the race's. The comparison on held-out items comes on top: it chooses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.evaluation import ItemSet
from evomerge.recipe import METHODS
from evomerge.search.climbing import SLOPE_COST
from evomerge.search.finalists import MOST_BASELINES, RACE, draws_masks
from evomerge.search.legs import VAIN
from evomerge.search.parts import rounds_of
from evomerge.search.race import Race

if TYPE_CHECKING:
    from evomerge.search.preparation import Preparation

_SHARE = 8
"""The search leaves the race so large a part of a limit at most, one eighth."""

_MEANS = 1
"""So many finalists the sampler's distribution may give besides the best trials."""


@dataclass(frozen=True)
class Spending:
    """What may be scored, in items.

    Args:
        search: by the trials; None is no limit.
        race: by the race to come, at most; more only where the search ends before its limit.
        whole: what that race costs at most if every finalist runs to the end.
        holdout: by the comparison on held-out items, at most.
        raced: what earlier races of the study have scored.
        scored: what its trials have scored before.
        beyond: by the last trial beyond ``search``, at most, at the cost of the race. A study's
            first leg of a climb, which has its slopes too, is begun while anything is left. (One
            that comes after a leg in vain is expected to cost no slopes; should they be had after
            all, it goes further.)
        least: what the race has, by the same reckoning.
    """

    search: int | None
    race: int
    whole: int
    holdout: int
    raced: int = 0
    scored: int = 0
    beyond: int = 0
    least: int = 0


def spending(
    prepared: Preparation, items: int | None = None, *, raced: int = 0, scored: int = 0
) -> Spending:
    """The plan of a search.

    Args:
        prepared: the space.
        items: that search and race may score in all runs of the study; None is no limit.
        raced: what races have scored before.
        scored: what trials have scored before.
    """
    whole = _whole_race(prepared)
    relative = [one for one in prepared.floors if one.references]
    # Which baseline a floor hangs on may be known only by the task's scores.
    hung_on = {one.references if len(one.references) == 1 else one.name for one in relative}
    others = MOST_BASELINES + len(hung_on)
    compared = 1 + min(len(prepared.baselines), others)
    if prepared.space.several_goals:  # points of the front, and whom they have to pass
        compared = prepared.space.finals.candidates + len(prepared.baselines)
    held_out = compared * len(prepared.holdout_items or ())
    if items is None:
        return Spending(None, whole, whole, held_out, raced, scored)
    left = max(0, items - raced)
    race = min(whole, items // _SHARE, left)
    search = left - race
    beyond = _beyond(prepared, search) if scored < search else 0
    least = max(0, left - max(scored, search + beyond)) if whole else 0
    return Spending(search, race, whole, held_out, raced, scored, beyond, least)


def _beyond(prepared: Preparation, search: int) -> int:
    """How far the last trial may go beyond what the search may score."""
    full = len(prepared.search_items)
    baselines = len({one.recipe for one in prepared.baselines})
    stopped = prepared.plan.rungs and not prepared.floors
    if prepared.plan.neighbourhood is None or search <= full * (1 if stopped else baselines):
        return full - 1  # no leg is the last trial
    leg = full * (1 + SLOPE_COST)
    # A first leg that fails is tried again, and counts as a trial.
    first = (len(prepared.baselines) + VAIN - 1) * full + leg
    return max(full - 1, min(first - search, leg - 1))


def items_raced(facts: Mapping[str, Any]) -> int:
    """How many items all the races of a study have scored."""
    return races_before(facts) + int(facts.get(RACE, {}).get("items", 0))


def races_before(facts: Mapping[str, Any]) -> int:
    """The same without the last race."""
    return int(facts.get(RACE, {}).get("before", 0))


def items_of_round(items: ItemSet) -> int:
    """How many items a round of the race has at most."""
    rounds = rounds_of(items)
    return sum(-(-len(task.doc_ids) // rounds) for task in items.tasks)


def affordable(
    race: Race,
    costs: Mapping[str, int],
    left: int | None,
    baselines: Collection[str],
    more: bool = False,
) -> tuple[str, ...]:
    """Those of the remaining finalists that run a race's next round: as many as can be paid.

    The best of them, among which are always a searched one and a baseline if both remain. While
    other rounds are to come, half of what is left is spent, as by successive halving (Jamieson and
    Talwalkar 2016), unless that pays for less than two.

    Args:
        race: as it stands.
        costs: finalist → items of its round.
        left: items that may be scored; None is no limit.
        baselines: finalists that are baselines.
        more: whether other rounds are to come.

    Returns:
        In the race's order; empty where not even two can be paid.
    """
    if left is None:
        return race.remaining
    chosen = _paid(race, costs, left // 2, baselines) if more else ()
    return chosen or _paid(race, costs, left, baselines)


def _paid(
    race: Race, costs: Mapping[str, int], left: int, baselines: Collection[str]
) -> tuple[str, ...]:
    order = sorted(race.remaining, key=lambda name: -race.pooled(name))
    other = next((n for n in order if (n in baselines) != (order[0] in baselines)), order[0])
    chosen: set[str] = set()
    for name in dict.fromkeys([order[0], other, *order]):
        if costs[name] > left:
            break
        chosen.add(name)
        left -= costs[name]
    return tuple(name for name in race.remaining if name in chosen) if len(chosen) > 1 else ()


def _whole_race(prepared: Preparation) -> int:
    """What a race costs at most: nobody drops out, and the mean is scored first."""
    if prepared.race_items is None:
        return 0
    spec = prepared.space.finals
    entrants = spec.candidates + _MEANS + min(len(prepared.baselines), MOST_BASELINES)
    runs = entrants * (spec.mask_seeds if _masks(prepared) else 1)
    return runs * len(prepared.race_items) + len(prepared.search_items)


def _masks(prepared: Preparation) -> bool:
    """Whether a candidate or a baseline may draw masks."""
    drawing = (
        stage.genome.density is not None and any(METHODS[one].draws_masks for one in stage.methods)
        for _, stage in prepared.space.every_stage
    )
    return any(drawing) or any(draws_masks(one.recipe) for one in prepared.baselines)
