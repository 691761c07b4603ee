"""What the rows say: means and intervals over seeds, wins, and what a quality costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy import stats

from tests.benchmarks.families import FAMILIES
from tests.benchmarks.searches.competitors import EVOLVE
from tests.benchmarks.searches.rows import Row, latest, seeds, shared

REFERENCE = 200
"""The budget of mergekit-evolve's optimizer whose quality is the target."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t); NaN for fewer than two values."""
    if len(values) < 2:
        return float(np.mean(values)) if values else float("nan"), float("nan")
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(error * stats.t.ppf(0.975, len(values) - 1))


def trials_to(target: float, curve: dict[int, float]) -> float | None:
    """Full trials at which a curve (budget → mean) first reaches a value, linear between budgets.

    The smallest budget where it is there already (it may have been sooner); None if it never does.
    """
    points = sorted(curve.items())
    if not points:
        return None
    if points[0][1] >= target:
        return float(points[0][0])
    for (x0, y0), (x1, y1) in pairwise(points):
        if y1 >= target:
            return float(x0 + (x1 - x0) * (target - y0) / (y1 - y0))
    return None


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The table in Markdown: a part for each family, then the wins that cannot be."""
    rows = latest(rows)
    for family in dict.fromkeys(row.family for row in rows):
        of_family = [row for row in rows if row.family == family]
        yield f"\n## {family}\n"
        yield (
            "| budget | competitor | held out | search | seeds | above best baseline | "
            "claimed | claimed, not above |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        budgets = sorted({row.budget for row in of_family})
        names = list(dict.fromkeys(row.competitor for row in of_family))
        for budget in budgets:
            for name in names:
                chosen = [r for r in of_family if (r.budget, r.competitor) == (budget, name)]
                if chosen:
                    yield _line(budget, name, chosen)
        yield from _costs(of_family, names)
        yield from _differences(of_family, names, budgets)
    yield from _false_wins(rows)


def _line(budget: int, name: str, rows: Sequence[Row]) -> str:
    held_out = _told([row.held_out for row in rows])
    searched = float(np.mean([row.search for row in rows]))
    above = sum(row.difference > 0 for row in rows)
    claimed = sum(row.claimed for row in rows)
    false = sum(row.claimed and row.difference <= 0 for row in rows)
    cells = [str(budget), name, held_out, f"{searched:.4f}", str(len(rows))]
    return "| " + " | ".join([*cells, str(above), str(claimed), str(false)]) + " |"


def _told(values: Sequence[float], sign: str = "") -> str:
    """Mean ± half-width of the 95 % interval; one value has none."""
    mean, half = interval(values)
    return f"{mean:{sign}.4f} ± " + ("–" if len(values) < 2 else f"{half:.4f}")


def curve(rows: Sequence[Row], name: str, of: set[int]) -> dict[int, float]:
    """A competitor's mean held-out fitness by budget, over the seeds ``of``."""
    chosen = [row for row in rows if row.competitor == name and row.seed in of]
    return {
        budget: float(np.mean([row.held_out for row in chosen if row.budget == budget]))
        for budget in sorted({row.budget for row in chosen})
    }


def _costs(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """What each spends to reach the reference, on the seeds that both have."""
    if not any((row.competitor, row.budget) == (EVOLVE, REFERENCE) for row in rows):
        return
    yield (
        f"\nFull trials that each needs to reach what {EVOLVE}'s optimizer has at {REFERENCE} "
        "(linear between budgets, means over the seeds that both have): "
        + ", ".join(f"{name} {_cost(rows, name)}" for name in names)
        + "."
    )


def _cost(rows: Sequence[Row], name: str) -> str:
    both = shared(rows, EVOLVE, name)
    mine = curve(rows, name, both)
    if not mine:
        return "– (no seed in common)"
    found = trials_to(curve(rows, EVOLVE, both)[REFERENCE], mine)
    if found is None:
        return f"more than {max(mine)}"
    return f"≤ {found:.0f}" if found == min(mine) else f"{found:.0f}"


def _false_wins(rows: Sequence[Row]) -> Iterator[str]:
    """Claims where no recipe is better than the best baseline."""
    known = FAMILIES.items()
    bare = [row for row in rows if row.family in {name for name, one in known if not one.room}]
    if not bare:
        return
    yield "\n## False wins: claimed in families without room\n"
    yield "| competitor | searches | false wins | share |"
    yield "|---|---|---|---|"
    for name in dict.fromkeys(row.competitor for row in bare):
        claims = [row.claimed for row in bare if row.competitor == name]
        yield f"| {name} | {len(claims)} | {sum(claims)} | {np.mean(claims):.1%} |"


def _differences(
    rows: Sequence[Row], names: Sequence[str], budgets: Sequence[int]
) -> Iterator[str]:
    """Ours − other, paired by seed."""
    known = {(row.competitor, row.seed, row.budget): row.held_out for row in rows}
    for mine in dict.fromkeys(row.competitor for row in rows if row.settings):
        yield f"\n{mine} − other, held out, paired by seed (mean ± 95 %)\n"
        yield "| other | " + " | ".join(map(str, budgets)) + " |"
        yield "|---" * (len(budgets) + 1) + "|"
        for other in (name for name in names if name != mine):
            cells = []
            for budget in budgets:
                pairs = [
                    known[mine, seed, budget] - known[other, seed, budget]
                    for seed in sorted(seeds(rows))
                    if (mine, seed, budget) in known and (other, seed, budget) in known
                ]
                cells.append(_told(pairs, "+") if pairs else "")
            yield f"| {other} | " + " | ".join(cells) + " |"
