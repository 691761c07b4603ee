"""Whole searches, compared at equal numbers of scored items."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.benchmarks.families import FAMILIES
from tests.benchmarks.searches import ours
from tests.benchmarks.searches.competitors import ANYTIME
from tests.benchmarks.searches.exploring import OTHERS as EXPLORED
from tests.benchmarks.searches.exploring import compare, heading
from tests.benchmarks.searches.picture import draw
from tests.benchmarks.searches.rows import Row, append, read, save
from tests.benchmarks.searches.running import BASELINE, BEST_HELD_OUT, Task, arena, run, wanted
from tests.benchmarks.searches.table import lines

QUICKSTART = Path(__file__).resolve().parents[2] / "search_spaces" / "quickstart.yaml"
OTHERS = (BASELINE, BEST_HELD_OUT, *ANYTIME)


def families(names: Sequence[str]) -> dict[str, Path]:
    """Name → space file; families that are not there yet are built."""
    return {n: QUICKSTART if n == "quickstart" else FAMILIES[n].build() for n in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet, then print the table."""
    options = _options(arguments)
    if options.landscapes:
        return _explore(options)
    if options.table:
        _tell([row for file in options.table for row in read(file)], options)
        return 0
    chosen = families(options.families)
    known = read(options.out)
    # One after the other within a family and seed: a process loads the models once for them.
    keys = {(name, seed): arena(file, seed).key for name, file in chosen.items() for seed in (0,)}
    tasks = list(wanted(_tasks(options, chosen), known, {n: key for (n, _), key in keys.items()}))
    context = multiprocessing.get_context("spawn")
    failed = 0
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        running = {pool.submit(run, task): task for task in tasks}
        for done in as_completed(running):
            task, problem = running[done], done.exception()
            if problem is not None:
                failed += 1
                told = f"{task.family} {task.competitor} seed {task.seed}: {problem!r}"
                print(told, file=sys.stderr, flush=True)
                continue
            for row in done.result():
                append(options.out, row)
    _tell(read(options.out), options)
    return 1 if failed else 0


def _explore(options: argparse.Namespace) -> int:
    print(heading(options.landscapes))
    budgets, jobs = sorted(options.budgets), options.jobs
    others = [name for name in EXPLORED if name in options.competitors]
    for line in compare(options.genes, options.landscapes, budgets, jobs, others):
        print(line, flush=True)
    return 0


def _tell(rows: Sequence[Row], options: argparse.Namespace) -> None:
    chosen = [row for row in rows if not options.only or row.competitor in options.only]
    print("\n".join(lines(chosen)))
    if options.picture:
        draw(chosen, options.picture)
    if options.keep:
        save(options.keep, chosen)


def _tasks(options: argparse.Namespace, files: dict[str, Path]) -> list[Task]:
    budgets = tuple(sorted(options.budgets))
    return [
        Task(family, file, name, seed, budgets, settings)
        for family, file in files.items()
        for seed in options.seeds
        for name, settings in (*((one, None) for one in options.competitors), *options.ours)
    ]


def _seeds(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(first)]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.search", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("search-bench.jsonl"), help="rows there are not run again")
    add("--table", type=Path, nargs="+", metavar="FILE", help="tell what rows say, run nothing")
    add("--picture", type=Path, metavar="FILE.png", help="draw the table's figures too")
    add("--keep", type=Path, metavar="FILE.csv", help="write the table's rows; --table reads them")
    add("--only", nargs="+", metavar="NAME", help="the competitors that are told of (all)")
    names = (*FAMILIES, "quickstart")
    add("--families", nargs="+", choices=names, default=list(FAMILIES), help="all but quickstart")
    add("--seeds", type=_seeds, default=list(range(10)), help="such as 3 or 0-9 (0-9)")
    add("--budgets", type=int, nargs="+", default=[25, 50, 100, 200], help="full trials")
    what = "formulas instead of models, so many repetitions (100)"
    add("--landscapes", type=int, nargs="?", const=100, metavar="N", help=what)
    add("--genes", type=int, nargs="+", choices=range(8, 33, 4), default=[8, 32], metavar="N")
    add("--competitors", nargs="*", choices=OTHERS, default=list(OTHERS), help="all of them")
    add("--ours", type=ours.parse, action="append", default=[], metavar="NAME=key:value,…")
    add("--jobs", type=int, default=2, help="processes (2)")
    add("--quick", action="store_true", help="one seed, budgets of 10 and 25")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.budgets = options.seeds[:1], [10, 25]
    return options


if __name__ == "__main__":
    sys.exit(main())
