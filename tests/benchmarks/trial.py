"""What a trial of the quickstart costs, beside one of mergekit-evolve's default strategy.

``python -m tests.benchmarks.trial --help``. Our side is ``evomerge.search`` on
``search_spaces/quickstart.yaml`` in steady state: models held, tasks built, baselines and the first
trials over. Then the other side does some of the same trials: the same recipes, tasks and items.

What is counted as spent in forward passes and in the merge's arithmetic: the processor time of the
workers' threads within the model's own forward calls, and within the merge's kernels (compiled or
not). The share is of all that the workers could have used: their number times the clock. What the
driver and Ray take from their cores, and the time in which a worker has no job, are overhead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.benchmarks.merge import count, load, processor
from tests.benchmarks.results import Figure, number
from tests.benchmarks.searching import WARM, Search, search
from tests.benchmarks.strategy import Strategy, TheirTrial

SPACE = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
SHARE, FASTER = 0.7, 20.0
"""Of the workers' time in forward passes and arithmetic; times their trials per hour."""


@dataclass(frozen=True)
class Comparison:
    """Both sides.

    Args:
        ours: the search.
        theirs: trials of the other side; none if it was not run.
        difference: of a task's accuracy, at most, between both on the same recipes.
    """

    ours: Search
    theirs: tuple[TheirTrial, ...] = ()
    difference: float = 0.0

    @property
    def ratio(self) -> float | None:
        """How many times their trials per hour ours are."""
        return self.ours.rate * median(t.whole for t in self.theirs) if self.theirs else None

    def figures(self) -> list[Figure]:
        """As they are to be read."""
        ours, share = self.ours, self.ours.share
        met = share >= SHARE
        found = [
            Figure("forward passes and arithmetic", f"{share:.1%}", f"≥ {SHARE:.0%}", met),
            Figure("trials per second", number(ours.rate)),
            Figure("median trial of a worker", number(ours.median("whole") * 1e3, "ms")),
        ]
        found += [
            Figure(f"  {name}", number(seconds * 1e3, "ms"))
            for name, seconds in ours.parts().items()
        ]
        if self.theirs:
            merge, whole = (median(getattr(t, n) for t in self.theirs) for n in ("merge", "whole"))
            ratio = ours.rate * whole
            found += [
                Figure("mergekit-evolve's strategy, median trial", number(whole, "s")),
                Figure("  of which the merge to disk", number(merge, "s")),
                Figure(
                    "times its trials per hour",
                    number(ratio, "×"),
                    f"≥ {FASTER:.0f}×",
                    ratio >= FASTER,
                ),
                Figure("largest difference of a task's accuracy", f"{self.difference:.4f}"),
            ]
        return found

    def data(self) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "share": self.ours.share,
            "trials_per_second": self.ours.rate,
            "trials": len(self.ours.trials),
            "seconds": self.ours.seconds,
            "parts": self.ours.parts(),
            "theirs": [vars(trial) for trial in self.theirs],
            "ratio": self.ratio,
            "difference": self.difference,
            "figures": [{**vars(figure), "verdict": figure.verdict} for figure in self.figures()],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _options(arguments)
    before = load()
    with TemporaryDirectory(prefix="evomerge-trial-") as folder:
        found = measure(Path(folder), options)
    conditions = {
        "space": options.space,
        "ours": f"{options.workers} workers of one thread, {len(found.ours.trials)} trials counted "
        f"of {options.trials}",
        "theirs": f"{options.mergekit} trials, one at a time, {torch.get_num_threads()} threads, "
        f"batches of {options.batch_size}",
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "load of the machine": f"{before} … {load()}",
        "torch": torch.__version__,
    }
    for key, value in conditions.items():
        print(f"{key}: {value}")
    for figure in found.figures():
        print(f"{figure.name:<44}{figure.value:>12}  {figure.target:<8}{figure.verdict}".rstrip())
    if options.json:
        data = {"conditions": conditions, **found.data()}
        options.json.write_text(json.dumps(data, indent=2, default=str) + "\n")
    return 0


def measure(folder: Path, options: argparse.Namespace) -> Comparison:
    """Our search, then their trials of the last of its recipes."""
    (folder / "studies").mkdir()
    ours = search(
        options.space.resolve(),
        folder,
        trials=options.trials,
        workers=options.workers,
        warm=options.warm,
    )
    if not options.mergekit or ours.prepared is None:
        return Comparison(ours)
    torch.set_num_threads(os.cpu_count() or 1)
    space, items = ours.prepared.space, ours.prepared.search_items
    chosen = ours.trials[-options.mergekit :]
    with redirect_stderr(StringIO()):  # bars of progress
        strategy = Strategy(folder, space.include_path, items.samples, options.batch_size)
        strategy.trial(str(chosen[0].recipe))  # what is read and imported once is not counted
        theirs = [strategy.trial(str(record.recipe)) for record in chosen]
    differences = [
        abs(their - _accuracy(record.scores[task]))
        for record, trial in zip(chosen, theirs, strict=True)
        for task, their in trial.scores.items()
    ]
    return Comparison(ours, tuple(theirs), max(differences))


def _accuracy(metrics: dict[str, Any]) -> float:
    (value,) = (value for name, (value, _) in metrics.items() if name.partition(",")[0] == "acc")
    return float(value)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.trial", description=__doc__)
    add = parser.add_argument
    add("--space", type=Path, default=SPACE, help="another space of tasks that report acc")
    add("--trials", type=count, default=200, help="of our search, baselines included (200)")
    add("--workers", type=count, default=2, help="of our search (2)")
    add("--warm", type=count, default=WARM, help=f"searched trials before it counts ({WARM})")
    add("--mergekit", type=int, default=5, metavar="TRIALS", help="of theirs (5); 0 for none")
    add("--batch-size", type=count, default=64, help="of their evaluation (64)")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(arguments)
    if options.trials < options.warm + 20:
        parser.error(f"--trials: at least {options.warm + 20}, --warm and 20 to count")
    return options


if __name__ == "__main__":
    sys.exit(main())
