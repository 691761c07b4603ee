"""Several goals and floors in words and rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.search.floors import finished_baselines, floors_of
from evomerge.search.goals import spread
from evomerge.search.keeping import FloorCheck
from evomerge.search.seeded import BASELINE
from evomerge.search.tradeoffs import FrontVerdict, Point
from evomerge.search.verdict import FEWEST

if TYPE_CHECKING:
    from evomerge.report.study import StudyReport

FRONT_HEADERS = ("trial", "recipe", "fitness")
"""Of the front's table, before the goals."""

LEAD_HEADERS = ("trial", "goal", "held out", "best baseline", "lead", "interval")


def front_rows(study: StudyReport, most: int) -> list[list[str]]:
    """The front on the search items, a row for each point: trial, recipe, fitness, the goals.

    Args:
        study: the study.
        most: so many points at most, spread over the front.
    """
    return [
        [
            str(trial.number),
            trial.label or "searched",
            f"{trial.fitness:.4f}",
            *(f"{value:.3f}" for value in trial.values),
        ]
        for trial in spread(study.front, most)
    ]


def lead_rows(verdict: FrontVerdict, prefix: str = "") -> list[list[str]]:
    """The judged points on the held-out items, a row for each goal.

    Args:
        verdict: the outcome.
        prefix: what all goals' names begin with, and is left out.
    """
    rows = []
    for point in verdict.points:
        for place, lead in enumerate(point.leads):
            between = "" if lead.low is None else f"{lead.low:+.3f} to {lead.high:+.3f}"
            rows.append(
                [
                    str(point.number) if place == 0 else "",
                    lead.goal.removeprefix(prefix),
                    f"{point.values[place]:.3f}",
                    lead.baseline,
                    f"{lead.difference:+.3f}",
                    between,
                ]
            )
    return rows


def front_words(verdict: FrontVerdict) -> str:
    """Which points win, against what, and how sure that is."""
    wins = [point for point in verdict.points if verdict.wins(point)]
    points, goals = len(verdict.points), len(verdict.goals)
    against = f"{len(verdict.baselines)} baseline{'s' if len(verdict.baselines) > 1 else ''}"
    words = [
        _headline(wins),
        f"{points} point{'s' if points > 1 else ''} of the front and {against} were scored on "
        f"{verdict.items} held-out items. A point wins if over each of these baselines it has a "
        f"lead in some goal whose interval lies above 0 (each at {100 * verdict.confidence:.4g} %: "
        f"together at 95 %, for {points} point{'s' if points > 1 else ''} and {goals} goals): so "
        "none of them is as good as it in every goal.",
    ]
    if verdict.items < FEWEST:
        words.append(f"Fewer than {FEWEST} held-out items prove nothing.")
    words += [_open(point) for point in verdict.points if point not in wins]
    return " ".join(word for word in words if word)


def _headline(wins: Sequence[Point]) -> str:
    if not wins:
        return "No win: no point of the front is proved to be a trade-off that no baseline gives."
    named = _listed([point.label for point in wins])
    return f"{'A win' if len(wins) == 1 else f'{len(wins)} wins'}: {named}."


def _open(point: Point) -> str:
    """Why a point does not win."""
    broken = [floor.floor for floor in point.floors if floor.broken]
    if broken:
        return f"{point.label} breaks {_listed(broken)}."
    if not point.open:
        return ""
    beaten = f"; {_listed(point.beaten_by)} is nowhere worse" if point.beaten_by else ""
    return f"{point.label} is not surely ahead of {_listed(point.open)} in any goal{beaten}."


def floor_words(checks: Sequence[FloorCheck]) -> list[str]:
    """How a recipe stands to its floors on the held-out items, floor by floor; none without."""
    if not checks:
        return []
    return [f"Floors on the held-out items: {'; '.join(map(_floor, checks))}."]


def _floor(check: FloorCheck) -> str:
    between = "" if check.low is None else f", 95 % interval {check.low:+.4f} to {check.high:+.4f}"
    how = "broken" if check.broken else "kept" if check.sure else "not sure"
    return (
        f"{check.floor}: {how} ({check.value:.4f} against {check.limit:.4f}, a margin of "
        f"{check.margin:+.4f}{between})"
    )


def _listed(names: Sequence[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def limit_words(study: StudyReport) -> list[str]:
    """The floors' limits on the search items, and how what is shipped stands to them."""
    labels = [str(trial.label) for trial in study.trials if trial.kind == BASELINE]
    floors = floors_of(study.space, labels) if "space" in study.facts else ()
    if not floors:
        return []
    done = finished_baselines(study.trials)
    told = []
    for floor in floors:
        bound, model = floor.bound(done), None if floor.waits(done) else floor.reference(done)
        number = "not known yet" if bound is None else f"{bound:.4f}"
        whose = f", of {model.label}" if model is not None and floor.limit.of else ""
        failed = floor.failed(done)
        whose += f"; left out, as failed: {_listed(failed)}" if whose and failed else ""
        told.append(f"{floor.name} ({number}{whose})" if floor.limit.of else floor.name)
    kept = sum(1 for trial in study.trials if trial.state == "complete" and not trial.violation)
    complete = sum(1 for trial in study.trials if trial.state == "complete")
    words = f"Floors: {'; '.join(told)}. {kept} of {complete} complete trials keep them"
    choice = study.choice
    if choice is None or choice.number < 0 or choice.violation == 0:
        return [f"{words} on the search items."]
    broken = [name for name, lack in choice.constraints.items() if lack > 0]
    return [f"{words} on the search items; what is shipped breaks {_listed(broken)} the least."]
