"""The outcome of a search in plain words, also when it is no win."""

from __future__ import annotations

from evomerge.search.verdict import FEWEST, LOSS, WIN, Verdict


def verdict_words(verdict: Verdict) -> str:
    """Two or three sentences that a reader can act on."""
    winner, baseline = verdict.winner, verdict.baseline
    numbers = (
        f"On {verdict.items} held-out items the best searched recipe ({winner.label}) scores "
        f"{winner.fitness:.4f} and the best baseline ({baseline.label}) {baseline.fitness:.4f}: "
        f"a difference of {verdict.difference:+.4f}{_interval(verdict)}."
    )
    return f"{_headline(verdict)} {numbers} {_carried(verdict)}"


def _headline(verdict: Verdict) -> str:
    if verdict.outcome == WIN:
        return "A win: the searched recipe is better on items that the search never saw."
    if verdict.outcome == LOSS:
        return (
            "No win: the searched recipe is worse on items that the search never saw. "
            f"Use the baseline ({verdict.baseline.label}, trial {verdict.baseline.number})."
        )
    if verdict.items < FEWEST:
        return f"Open: fewer than {FEWEST} held-out items prove nothing."
    if verdict.low is None:
        return "Open: these metrics allow no interval, so nothing is proved."
    return (
        "Open: the held-out items do not tell the searched recipe from the best baseline. "
        "More held-out items or a longer search may."
    )


def _interval(verdict: Verdict) -> str:
    if verdict.low is None or verdict.high is None:
        return ""
    return f" (95 % interval {verdict.low:+.4f} to {verdict.high:+.4f}, paired item by item)"


def _carried(verdict: Verdict) -> str:
    """What the winner's lead was where it was chosen: the best of many noisy numbers."""
    lead = verdict.winner.search_fitness - verdict.baseline.search_fitness
    return (
        f"On the search items, where it was chosen, its lead was {lead:+.4f}: "
        f"{verdict.difference:+.4f} of that is left."
    )
