"""The outcome of a search in plain words, also when it is no win."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.report.goals import floor_words
from evomerge.search.seeded import BASELINE
from evomerge.search.verdict import BROKEN, FEWEST, KEPT, LOSS, WIN, Verdict

if TYPE_CHECKING:
    from evomerge.report.study import StudyReport


def race_words(study: StudyReport) -> str | None:
    """Who was raced, who won, and what its fitness is where it was not chosen; None without."""
    race = study.race
    if race is None or not race.rounds:
        return None
    winner = race.leader
    fresh, items = race.fresh(winner), sum(one.items for one in race.rounds)
    words = (
        f"The race: {len(race.searched)} finalists on {items} fresh items ({study.race_items} "
        f"scored): {study.finalist(winner)} came first, with {fresh:.4f} on them and "
        f"{race.searched[winner]:.4f} on the search items."
    )
    if race.seed_spread is None:
        return words
    spread = "" if race.spread is None else f" (the finalists differ by {race.spread:.4f})"
    return (
        f"{words} Another mask seed changes a recipe's fitness by {race.seed_spread:.4f} (standard "
        f"deviation){spread}; the mean over the seeds was raced. What is shipped keeps its seed; "
        "mergekit draws other masks of the same recipe."
    )


def climb_words(study: StudyReport) -> str | None:
    """Whether what was climbed stands for what is searched for; None without a climb."""
    found = study.agreement
    if found is None:
        vain = [one.no_slope for one in study.trials if one.no_slope is not None]
        climbed = any(one.walk is not None for one in study.trials)
        if climbed or not vain:
            return None
        words = f"No climb: {vain[-1]}."
        drawn = any(one.kind != BASELINE and one.leg is None for one in study.trials)
        return f"{words} CMA-ES searched by the fitness alone." if drawn else words
    words = (
        f"The climb: along its {found.legs} legs the smooth fitness whose slope is taken went from "
        f"{found.smooth[0]:.4f} to {found.smooth[1]:.4f}, the fitness from {found.fitness[0]:.4f} "
        f"to {found.fitness[1]:.4f}"
    )
    if found.correlation is None:
        return f"{words}."
    words = f"{words} (rank correlation {found.correlation:+.2f})."
    if found.disagree:
        words += " They disagree: sampler: cmaes searches by the fitness alone."
    return words


def verdict_words(verdict: Verdict) -> str:
    """Two or three sentences that a reader can act on."""
    winner, baseline = verdict.winner, verdict.baseline
    numbers = (
        f"On {verdict.items} held-out items the best searched recipe ({winner.label}) scores "
        f"{winner.fitness:.4f} and the best baseline ({baseline.label}) {baseline.fitness:.4f}: "
        f"a difference of {verdict.difference:+.4f}{_interval(verdict)}."
    )
    told = [*_others(verdict), _carried(verdict), *floor_words(verdict.floors)]
    if verdict.unbound:
        told.append("No baseline keeps all the floors on the search items.")
    return " ".join([_headline(verdict), numbers, *told])


def _headline(verdict: Verdict) -> str:
    name = _named(verdict)
    if verdict.outcome == WIN:
        return "A win: the searched recipe is better on items that the search never saw."
    if verdict.outcome == KEPT:
        return f"The search found nothing better than the baseline {name}, which is kept."
    if verdict.outcome == BROKEN:
        return (
            "No win: the searched recipe is better on items that the search never saw, but does "
            "not keep its floors."
        )
    if verdict.outcome == LOSS:
        worse = "No win: the searched recipe is worse on items that the search never saw"
        if verdict.unbound:
            return f"{worse} than the baseline {name}, which does not keep the floors."
        return f"{worse}. Use the baseline {name}."
    if verdict.items < FEWEST:
        return f"Open: fewer than {FEWEST} held-out items prove nothing."
    if verdict.low is None:
        return "Open: these metrics allow no interval, so nothing is proved."
    unbeaten = [one.baseline.label for one in verdict.others if not one.beaten]
    if verdict.low > 0 and unbeaten:
        return (
            "Open: the searched recipe beats the best baseline of the search, but not "
            f"{' and '.join(unbeaten)} on items that the search never saw."
        )
    return (
        "Open: the held-out items do not tell the searched recipe from the best baseline. "
        "More held-out items or a longer search may."
    )


def _named(verdict: Verdict) -> str:
    return f"({verdict.baseline.label}, trial {verdict.baseline.number})"


def _interval(verdict: Verdict) -> str:
    if verdict.low is None or verdict.high is None:
        return ""
    test = "" if verdict.p_value is None else f"; McNemar's test p = {verdict.p_value:.2g}"
    return f" (95 % interval {verdict.low:+.4f} to {verdict.high:+.4f}, paired item by item{test})"


def _others(verdict: Verdict) -> list[str]:
    """What the lead is over baselines that might be the best one."""
    told = [
        f"{one.baseline.label} {one.difference:+.4f}"
        + ("" if one.low is None else f" ({one.low:+.4f} to {one.high:+.4f})")
        for one in verdict.others
    ]
    return [f"Over other baselines (90 % intervals): {', '.join(told)}."] if told else []


def _carried(verdict: Verdict) -> str:
    """What the winner's lead was where it was chosen: the best of many noisy numbers."""
    lead = verdict.winner.search_fitness - verdict.baseline.search_fitness
    if lead <= 0:
        return f"On the search items the difference was {lead:+.4f}."
    if verdict.luck > 0:
        left = f"{verdict.difference:+.4f} of that is left; {verdict.luck:+.4f} was luck"
    else:
        left = "all of that is left"
    return f"On the search items, where it was chosen, its lead was {lead:+.4f}: {left}."
