"""What searches find by which fitness: `python studies/fitness.py [--items 25 100] [--seeds 3]`.

The quickstart is searched by accuracy, by smooth metrics, and by accuracy on balanced items, on few
items a task; printed is the accuracy of the winner on the 4000 held-out items. One worker, in this
process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import yaml

from evomerge.api import search as run
from evomerge.search import workers
from evomerge.search.pool import LocalPool

SPACES = Path(__file__).resolve().parents[1] / "search_spaces"
SKILLS = ("add", "count", "most", "kinds")
WAYS = (
    ("acc", "random"),
    ("acc", "balanced"),
    ("gold_prob", "random"),
    ("gold_prob", "balanced"),
    ("gold_loglikelihood", "random"),
)


def winner(metric: str, order: str, items: int, seed: int, trials: int) -> float:
    """The held-out accuracy of what one search finds, in the current folder."""
    space = yaml.safe_load((SPACES / "quickstart.yaml").read_text())
    for key in ("base_model", "include_path"):
        space[key] = str(SPACES / space[key])
    space["models"] = [str(SPACES / model) for model in space["models"]]
    common = {"items": items, "order": order}
    space["tasks"] = [
        {"task": f"quickstart_{s}", "metric": metric, "holdout_task": f"quickstart_{s}_heldout"}
        | common
        for s in SKILLS
    ]
    space["search"]["seed"] = seed
    name = f"{metric}-{order}-{items}-{seed}"
    file = Path(f"{name}.yaml")
    file.write_text(yaml.safe_dump(space))
    outcome = run(file, trials=trials).outcome
    if outcome.verdict is None:
        raise SystemExit(f"{name}: no winner to tell of: {outcome.no_verdict}")
    scores = outcome.verdict.winner.scores.values()
    return float(np.mean([found["acc,none"][0] for found in scores]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[25, 100], help="of each task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    workers.RayPool = lambda make, _resources, address=None: LocalPool(make)  # type: ignore
    os.chdir(tempfile.mkdtemp())
    print("| items a task | fitness | items chosen | winner, held out, by seed | mean |")
    print("|---|---|---|---|---|")
    for items in options.items:
        for metric, order in WAYS:
            found = [
                winner(metric, order, items, seed, options.trials) for seed in range(options.seeds)
            ]
            cells = " ".join(f"{value:.3f}" for value in found)
            print(f"| {items} | {metric} | {order} | {cells} | {np.mean(found):.3f} |", flush=True)


if __name__ == "__main__":
    main()
