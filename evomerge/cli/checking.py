"""``evomerge check``: everything about a space that can be known before a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from evomerge.cli.output import (
    capitalised,
    duration,
    print_json,
    quiet_libraries,
    say,
    show_table,
    size,
    stdout,
    tell_error,
    tell_note,
)
from evomerge.cli.planned import spending_words
from evomerge.errors import InputError
from evomerge.references import labels

if TYPE_CHECKING:
    from evomerge.search.estimate import Estimate
    from evomerge.search.preparation import Preparation
    from evomerge.search.spending import Spending


def run_check(
    space: Path,
    include_path: Sequence[Path],
    workers: int | None,
    trials: int,
    items: int | None,
    *,
    as_json: bool,
) -> None:
    """Check, print, exit with 1 on any fault."""
    from evomerge.api import check, estimate_search, plan_search
    from evomerge.search.spending import spending

    quiet_libraries()
    try:
        prepared = plan_search(check(space, include_path=include_path), workers=workers)
    except InputError as problem:
        if as_json:
            faults = [{"place": f.place, "problem": f.problem} for f in problem.faults]
            print_json({"ok": False, "faults": faults})
        else:
            tell_error(problem)
        raise typer.Exit(1) from None
    limits, share = estimate_search(prepared, trials=trials, workers=workers)
    plan = spending(prepared, items)
    if as_json:
        print_json(_as_json(prepared, limits, share, plan))
    else:
        _show(prepared, limits, share, trials)
        say(spending_words(plan, items))
        for note in prepared.notes:
            tell_note(note, stdout)
        stdout.print("[green]Everything fits.[/]")


def _as_json(
    prepared: Preparation, limits: Estimate, workers: int, plan: Spending
) -> dict[str, Any]:
    held_out = prepared.holdout_items
    return {
        "ok": True,
        "space": str(prepared.space.source),
        "merge_method": prepared.space.methods_named,
        "models": [
            {
                "model": str(checkpoint.reference),
                "bytes": checkpoint.nbytes,
                "layers": checkpoint.num_layers,
                "vocabulary": checkpoint.vocab_size,
            }
            for checkpoint in prepared.checkpoints
        ],
        "genes": [
            {"name": gene.name, "low": gene.low, "high": gene.high} for gene in prepared.genes
        ],
        "baselines": [baseline.label for baseline in prepared.baselines],
        "items": {
            "search": len(prepared.search_items),
            "race": len(prepared.race_items or ()),
            "holdout": len(held_out or ()),
        },
        "at_most": {
            "search_items": plan.search,
            "race_items": plan.whole if plan.search is None else plan.race,
            "holdout_items": plan.holdout,
        },
        "objective": prepared.space.objective,
        "goals": list(prepared.goals),
        "floors": [floor.name for floor in prepared.floors],
        "tasks": dict(prepared.search_items.versions),
        "splits": prepared.search_items.splits,
        "workers": workers,
        "at_least": {
            "worker_bytes": limits.worker_bytes,
            "trial_seconds": limits.trial_seconds,
            "search_seconds": limits.search_seconds,
        },
        "residency": None if prepared.residency is None else vars(prepared.residency),
        "notes": list(prepared.notes),
    }


def _show(prepared: Preparation, limits: Estimate, workers: int, trials: int) -> None:
    names = labels(checkpoint.reference for checkpoint in prepared.checkpoints)
    models = [
        (names[one.reference], size(one.nbytes), str(one.num_layers), str(one.vocab_size))
        for one in prepared.checkpoints
    ]
    headers = ("model", "size", "layers", "vocabulary")
    show_table(headers, models, numbers=(1, 2, 3), title="models")
    counts = {name: len(ids) for name, ids in prepared.search_items.samples.items()}
    tasks = [
        (
            one.task,
            str(one.metric),
            f"{one.weight:g}",
            str(counts.get(one.task, one.items)),
            ", ".join(prepared.search_items.splits_of(one.task)),
        )
        for one in prepared.search_items.requests
    ]
    of_tasks = ("task", "metric", "weight", "search items", "of split")
    show_table(of_tasks, tasks, numbers=(2, 3), title="tasks")
    held_out = prepared.holdout_items
    say(
        f"{len(prepared.genes)} genes: {_some([gene.name for gene in prepared.genes])}\n"
        f"{len(prepared.baselines)} baselines: {_some([b.label for b in prepared.baselines])}\n"
        f"{len(prepared.search_items)} search items, {len(prepared.race_items or ())} race items, "
        f"{len(held_out or ())} held-out items\n{_asked(prepared)}"
        f"At least {size(limits.worker_bytes)} of memory for the models of each of {workers} "
        f"workers, {limits.trial_seconds:.2g} s per trial, {duration(limits.search_seconds)} for "
        f"{trials} trials (arithmetic and bytes alone, at this machine's measured "
        f"{limits.rate / 1e9:.0f} GFLOP/s and {limits.bandwidth / 1e9:.1f} GB/s per worker)"
    )
    if prepared.residency is not None:
        say(capitalised(prepared.residency.message))


def _asked(prepared: Preparation) -> str:
    """Lines on several goals and on floors; nothing of what there is not."""
    goals = f"{len(prepared.goals)} goals: {_some(prepared.goals)}\n"
    floors = f"Floors: {'; '.join(floor.name for floor in prepared.floors)}\n"
    several, floored = prepared.space.several_goals, bool(prepared.floors)
    return (goals if several else "") + (floors if floored else "")


def _some(names: Sequence[str], most: int = 8) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join(names[:most]) + f" and {len(names) - most} more"
