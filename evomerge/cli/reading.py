"""``evomerge best`` and ``evomerge export``: what a study says."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from evomerge.cli.output import AS_IT_IS, print_json, say, stderr
from evomerge.errors import EvomergeError


def show_best(study: str, storage: str | None, *, as_json: bool) -> None:
    """The best trial, the baselines, the outcome on the held-out items, the recipe."""
    from evomerge.api import load_study
    from evomerge.cli.goals import show_floors, show_front
    from evomerge.cli.searching import show_summary
    from evomerge.report import climb_words, race_words, verdict_words
    from evomerge.search.finalists import MEAN

    report = load_study(study, storage)
    if as_json:
        print_json(report.to_json())
        return
    best = report.trial()
    counts = ", ".join(f"{count} {state}" for state, count in sorted(report.counts.items()))
    say(f"Study {report.name}: {counts}")
    show_summary(report)
    raced = race_words(report)
    for words in (climb_words(report), raced):
        if words is not None:
            say(words)
    show_front(report)
    show_floors(report)
    if report.verdict is not None:
        say(verdict_words(report.verdict))
    elif report.front_verdict is None:
        say(
            "There is no held-out result for the present winner: the search has not come to its "
            "end, or nothing could be proved."
        )
    name = "The" if best.kind == MEAN else f"Trial {best.number}:"
    how = "chosen by the race" if raced else "the best so far by the search items"
    if report.goals:
        how = "the fittest of the front by the tasks' weights"
    told = f"fitness {best.fitness:.4f} on the search items, {how}"
    say(f"\n{name} {best.label or 'searched'}, {told}:")
    typer.echo(best.recipe or "")


def export_recipe(study: str, trial: int | None, output: Path | None, storage: str | None) -> None:
    """A trial's recipe, to a new file or to the terminal."""
    from evomerge.api import export
    from evomerge.arguments import read_recipes
    from evomerge.recipe import write_recipes

    recipes = read_recipes(export(study, output, trial=trial, storage=storage))
    if output is None:
        typer.echo(_sendable(write_recipes(recipes)))
    else:
        stderr.print(f"Written: {output}. The model: evomerge merge {output} OUT", **AS_IT_IS)


def _sendable(text: str) -> str:
    """The text, if stdout can carry it: a recipe with ``?`` in a model's name would be another."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError as problem:
        lost = text[problem.start]
        raise EvomergeError(
            f"the recipe has the character {lost!a}, which this output's encoding "
            f"({encoding}) lacks; write a file: --output FILE"
        ) from None
    return text
