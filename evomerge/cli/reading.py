"""``evomerge best`` and ``evomerge export``: what a study says."""

from __future__ import annotations

from pathlib import Path

import typer

from evomerge.cli.output import AS_IT_IS, print_json, stderr, stdout


def show_best(study: str, storage: str | None, *, as_json: bool) -> None:
    """The best trial, the baselines, the outcome on the held-out items, the recipe."""
    from evomerge.api import load_study
    from evomerge.cli.searching import summary_table
    from evomerge.report import verdict_words

    report = load_study(study, storage)
    if as_json:
        print_json(report.to_json())
        return
    best = report.trial()
    counts = ", ".join(f"{count} {state}" for state, count in sorted(report.counts.items()))
    stdout.print(f"Study {report.name}: {counts}", **AS_IT_IS)
    stdout.print(summary_table(report))
    if report.verdict is not None:
        stdout.print(verdict_words(report.verdict), highlight=False)
    else:
        stdout.print("The search has not come to its end: nothing is proved yet.")
    name = best.label or "searched"
    stdout.print(f"\nTrial {best.number} ({name}), fitness {best.fitness:.4f}:", **AS_IT_IS)
    typer.echo(best.recipe or "")


def export_recipe(study: str, trial: int | None, output: Path | None, storage: str | None) -> None:
    """A trial's recipe, to a new file or to the terminal."""
    from evomerge.api import export

    recipe = export(study, output, trial=trial, storage=storage)
    if output is None:
        typer.echo(recipe.to_yaml())
    else:
        stderr.print(f"Written: {output}. The model: evomerge merge {output} OUT", **AS_IT_IS)
