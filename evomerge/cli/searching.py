"""``evomerge search``: the live display, Ctrl-C, and the closing words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from evomerge.cli.goals import show_floors, show_front
from evomerge.cli.output import (
    AS_IT_IS,
    INTERRUPTED,
    capitalised,
    common_prefix,
    duration,
    quiet_libraries,
    say,
    show_table,
    size,
    stderr,
    stdout,
    tell_note,
    wrapping,
)
from evomerge.cli.planned import spending_words

if TYPE_CHECKING:
    from evomerge.api import SearchResult
    from evomerge.report import StudyReport
    from evomerge.search.budget import Progress
    from evomerge.search.preparation import Preparation
    from evomerge.search.records import TrialRecord


_FILES = ("best.yaml", "trials.csv", "items.scores", "heldout.json", "provenance.json")


_ENDS = {
    "patience": "The search stopped as nothing was gained beyond noise for as long as --patience "
    "bears; the same command with a larger one goes on.",
    "exhausted": "The search stopped as the sampler drew only recipes that were scored before: the "
    "genes have no further effect; widen their ranges, or let more of them vary.",
}


def run_search(space: Path, **options: Any) -> None:
    """Search, show, and say how it ended."""
    from evomerge.api import search

    quiet_libraries()
    say("Checking models and tasks …", stderr)
    display = Display(options.get("items"))
    try:
        with display:
            result = search(space, observer=display.observe, announce=display.announce, **options)
    except KeyboardInterrupt:
        say(f"Stopped. {_how_to_go_on(**options)}", stderr)
        raise typer.Exit(INTERRUPTED) from None
    close(result, **options)
    if result.outcome.stopped == "asked":
        raise typer.Exit(INTERRUPTED)


class Display:
    """One line that is kept current, and a line for each trial that matters.

    Args:
        items: what ``--items`` says.
    """

    def __init__(self, items: int | None = None) -> None:
        self._items = items
        self._live = Live(console=stderr, refresh_per_second=4, transient=True)
        self._best: int | None = None
        self._shown = False

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._live.stop()

    def announce(self, prepared: Preparation, study: StudyReport) -> None:
        """Say what is about to be searched, and how far an earlier run came."""
        from evomerge.search.budget import cost
        from evomerge.search.spending import items_raced, spending

        for note in prepared.notes:
            tell_note(note)
        held_out, race, space = prepared.holdout_items, prepared.race_items, prepared.space
        models = len(prepared.checkpoints) - 1 if space.stages else len(space.models)
        say(
            f"{space.methods_named} of {models} models, "
            f"{len(prepared.genes)} genes, {len(prepared.search_items)} search items, "
            f"{len(race) if race else 'no'} race items, "
            f"{len(held_out) if held_out else 'no'} held-out items, "
            f"{size(prepared.worker_bytes)} of models per worker",
            stderr,
        )
        full = len(prepared.search_items)
        scored = sum(cost(trial, full) for trial in study.trials if trial.finished)
        raced = items_raced(study.facts)
        plan = spending(prepared, self._items, raced=raced, scored=scored)
        if plan.whole or plan.holdout or self._items:
            say(spending_words(plan, self._items), stderr)
        if prepared.residency is not None:
            say(capitalised(prepared.residency.message), stderr)
        done = sum(1 for trial in study.trials if trial.finished)
        name = f"[bold]{escape(study.name)}[/]"
        begun = f"Going on with study {name}: {done} trials are finished."
        words = begun if done else f"Study {name}: starting the workers …"
        stderr.print(words, highlight=False, **wrapping(stderr))
        self._best = study.best.number if study.best else None
        self._live.start()
        self._shown = True

    def observe(self, record: TrialRecord | None, progress: Progress) -> None:
        """A trial is finished, or time has passed."""
        if record is not None:
            self._line(record, progress)
        self._live.update(_status(progress))

    def _line(self, record: TrialRecord, progress: Progress) -> None:
        name = record.label or f"trial {record.number}"
        if record.state == "failed":
            stderr.print(f"  [red]{escape(name)} failed:[/]", end=" ")
            stderr.print(record.failure, **AS_IT_IS)
            return
        best = progress.best is not None and progress.best.number != self._best
        if best and progress.best is not None:
            self._best = progress.best.number
        if best or record.kind == "baseline":
            mark = "[green]best so far[/]" if best else "[dim]baseline[/]"
            seconds = sum(record.seconds.values())
            stderr.print(
                f"  {record.number:>4}  {escape(f'{name:<24}')} {_reached(record):>7}  {mark}"
                f"  [dim]{seconds:.2f} s{_stopped(record)}[/]",
                highlight=False,
                **wrapping(stderr),
            )


def _how_to_go_on(fresh: bool = False, **_: object) -> str:
    return f"The same command{' without --fresh' if fresh else ''} goes on where it stopped."


def close(result: SearchResult, storage: str | None = None, **options: Any) -> None:
    """The closing words: what was found, whether it is a win, what to do next."""
    from evomerge.report import climb_words, race_words, verdict_words

    outcome, study = result.outcome, result.study
    command = f"evomerge best {study.name}" + (f" --storage {storage}" if storage else "")
    done = outcome.progress
    if outcome.stopped == "asked":
        say(
            f"Stopped after {_counted(done.finished, done.total, 'trials', ' of ')}; all "
            f"of them are kept. {_how_to_go_on(**options)}",
            stderr,
        )
        return
    show_summary(study)
    if outcome.stopped in _ENDS:
        say(_ENDS[outcome.stopped])
    raced = race_words(study)
    for words in (climb_words(study), raced):
        if words is not None:
            say(words)
    show_front(study)
    show_floors(study)
    for note in outcome.notes:
        tell_note(note, stdout)
    if outcome.verdict is not None:
        say(verdict_words(outcome.verdict))
    elif outcome.no_verdict is not None:
        say(f"Not proved: {outcome.no_verdict}.")
    there = [name for name in _FILES if (result.folder / name).is_file()]
    lines = [f"\nFiles: {result.folder}/ ({', '.join(there)})"]
    if study.best is not None:
        lines += [f"Again: {command}", f"Model: evomerge merge {result.folder}/best.yaml OUT"]
        if study.goals:
            lines[-1] += "  (the fittest of the front by the tasks' weights)"
            lines += [f"Any other point: evomerge export {study.name} --trial N"]
    else:
        lines += [f"No trial has succeeded. {_how_to_go_on(**options)}"]
    stdout.print("\n".join(lines), **AS_IT_IS)


def show_summary(study: StudyReport) -> None:
    """Baselines and the best trials, with their scores on the search items."""
    trials = [trial for trial in study.trials if trial.state == "complete"]
    if not trials:
        return
    shown = ("complete", "pruned")
    baselines = [one for one in study.trials if one.kind == "baseline" and one.state in shown]
    searched = [trial for trial in trials if trial.kind != "baseline"]
    searched.sort(key=lambda trial: (trial.violation, -(trial.fitness or 0.0)))
    tasks = list(trials[0].scores)
    prefix = common_prefix(tasks)
    title = f"{study.name}: scores on the search items"
    headers = ["trial", "recipe", "fitness", *(task.removeprefix(prefix) for task in tasks)]
    rows = [
        [
            str(trial.number),
            trial.label or "searched",
            _reached(trial),
            *(_first(trial.scores.get(task, {})) for task in tasks),
        ]
        for trial in [*baselines, *searched[:3]]
    ]
    numbers = [index for index in range(len(headers)) if index != 1]
    show_table(headers, rows, numbers=numbers, title=f"{title} of {prefix}…" if prefix else title)
    if any(trial.state == "pruned" for trial in baselines):
        say(
            "~: almost surely not the best baseline, on these items and others like them, after a "
            "part of them, so the rest was saved; an estimate, and the tasks' scores on that part."
        )


def _reached(trial: TrialRecord) -> str:
    """A trial's fitness, or what it would be of one that was stopped early."""
    return f"{trial.fitness:.4f}" if trial.estimate is None else f"~{trial.estimate:.4f}"


def _stopped(trial: TrialRecord) -> str:
    if trial.twin is not None:
        return f", the recipe of trial {trial.twin}"
    return "" if trial.estimate is None else f", stopped after {trial.items} items"


def _status(progress: Progress) -> Text:
    parts: Sequence[str] = [
        _counted(progress.finished, progress.total, "trials", "/"),
        _counted(progress.items, progress.items_total, "items", "/") if progress.items else "",
        f"best {progress.best.fitness:.4f}" if progress.best else "no result yet",
        f"best baseline {progress.best_baseline.fitness:.4f}" if progress.best_baseline else "",
        f"{duration(progress.elapsed)} gone",
        f"about {duration(progress.remaining)} left" if progress.remaining is not None else "",
    ]
    return Text("  " + " · ".join(part for part in parts if part))


def _counted(number: int, total: int | None, what: str, of: str) -> str:
    return f"{number}{of}{total} {what}" if total is not None else f"{number} {what}"


def _first(metrics: Any) -> str:
    for value, _stderr in metrics.values():
        return f"{value:.3f}"
    return ""
