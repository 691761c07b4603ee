"""Several goals and floors on the terminal: the front, what its points came to, the limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.cli.output import common_prefix, say, show_table

if TYPE_CHECKING:
    from evomerge.report import StudyReport

_MOST = 12
"""Points of a front that are shown, spread over it; all stand in trials.csv."""


def show_front(study: StudyReport) -> None:
    """The front on the search items, and how points of it did on the held-out ones."""
    from evomerge.report import FRONT_HEADERS, LEAD_HEADERS, front_rows, front_words, lead_rows

    rows = front_rows(study, _MOST)
    if not rows:
        return
    prefix = common_prefix(study.goals)
    headers = [*FRONT_HEADERS, *(goal.removeprefix(prefix) for goal in study.goals)]
    of = f" of {prefix}…" if prefix else ""
    number = len(study.front)
    some = f"{len(rows)} points, spread over the" if len(rows) < number else "the"
    title = f"{study.name}: {some} front of {number} trials on the search items{of}"
    numbers = [index for index in range(len(headers)) if index != 1]
    show_table(headers, rows, numbers=numbers, title=title)
    if len(rows) < len(study.front):
        say("The whole front stands in trials.csv (column front).")
    verdict = study.front_verdict
    if verdict is None:
        return
    title = f"{study.name}: points of the front on {verdict.items} held-out items"
    show_table(LEAD_HEADERS, lead_rows(verdict, prefix), numbers=(0, 2, 4, 5), title=title)
    say(front_words(verdict))


def show_floors(study: StudyReport) -> None:
    """The floors' limits, and whether what is shipped keeps them on the search items."""
    from evomerge.report import limit_words

    for line in limit_words(study):
        say(line)
