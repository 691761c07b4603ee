"""Whether wins that were claimed hold: the shipped recipes on many items that nobody saw.

``python -m studies.fresh ROWS.jsonl --families null --items 8000``: new questions of each skill (of
the families on the skills), none of them among the family's items; what a search shipped beside the
best baseline on its search items, and beside the one that is best on these very questions. The
differences are paired item by item, 95 %.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from tests.benchmarks.families import FAMILIES, writing
from tests.benchmarks.families.quickstart import skills
from tests.benchmarks.searches.arena import Arena
from tests.benchmarks.searches.rows import read

SEED = 20261125


def fresh_space(file: Path, folder: Path, number: int) -> Path:
    """A family's space, its held-out items replaced by so many new ones of each skill."""
    shutil.copytree(file.parent / "tasks", folder / "tasks")
    space = yaml.safe_load(file.read_text())
    # As the rows' recipes name them.
    space["base_model"] = str(file.parent / space["base_model"])
    space["models"] = [str(file.parent / one) for one in space["models"]]
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    family = file.parent.name.split("-")[0]
    taken, rng = set(writing.reserved()), random.Random(SEED)
    for skill in skills.SKILLS:
        asked = skills.distinct_questions(skill, number, rng, taken)
        writing.write_task(
            folder / "tasks",
            f"{family}_{skill}_heldout",
            skills.as_items(asked, rng),
            rolling=False,
            gap=" ",
        )
    return folder / "space.yaml"


def told(arena: Arena, recipe: str, other: str) -> str:
    """The paired difference of two recipes."""
    found = arena.lead(recipe, other)
    return f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--families", nargs="+", default=["null"])
    parser.add_argument("--competitor", default="evomerge")
    parser.add_argument("--budgets", nargs="+", type=int, default=[50])
    parser.add_argument("--items", type=int, default=8000, help="of each skill")
    parser.add_argument("--verdict", help="only rows of this verdict: win, open, loss")
    asked = parser.parse_args()
    rows = [row for file in asked.rows for row in read(file)]
    for family in asked.families:
        with TemporaryDirectory() as folder:
            file = fresh_space(FAMILIES[family].build(), Path(folder), asked.items)
            arena = Arena(file, 0)
            truth = {name: arena.held_out(one) for name, one in arena.baselines().items()}
            best = max(truth, key=lambda name: truth[name])
            print(f"{family}: best baseline {best} {truth[best]:.4f}", flush=True)
            for row in rows:
                wanted = row.family == family and row.competitor == asked.competitor
                if not wanted or row.budget not in asked.budgets:
                    continue
                if asked.verdict not in (None, row.verdict):
                    continue
                print(
                    f"  seed {row.seed}, {row.budget}: {row.verdict}, {row.difference:+.4f} "
                    f"({row.low:+.4f} to {row.high:+.4f}) on its held-out items; fresh: over "
                    f"{row.baseline} {told(arena, row.recipe, arena.baselines()[row.baseline])}, "
                    f"over {best} {told(arena, row.recipe, arena.baselines()[best])}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
