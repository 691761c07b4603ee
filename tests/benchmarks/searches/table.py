"""What the rows say: means and intervals over seeds, wins, and what a quality costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy import stats

from tests.benchmarks.searches.competitors import EVOLVE
from tests.benchmarks.searches.rows import Row, latest


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
    """The table in Markdown, a part for each family."""
    rows = latest(rows)
    for family in dict.fromkeys(row.family for row in rows):
        of_family = [row for row in rows if row.family == family]
        yield f"\n## {family}\n"
        yield (
            "| budget | competitor | held out | search | seeds | above best baseline | "
            "claimed | claimed, not above | to reach evolve@200 |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        budgets = sorted({row.budget for row in of_family})
        names = list(dict.fromkeys(row.competitor for row in of_family))
        for budget in budgets:
            for name in names:
                chosen = [r for r in of_family if (r.budget, r.competitor) == (budget, name)]
                if chosen:
                    yield _line(budget, name, chosen, _cost(of_family, name))
        yield from _differences(of_family, names, budgets)


def _line(budget: int, name: str, rows: Sequence[Row], cost: str) -> str:
    mean, half = interval([row.held_out for row in rows])
    searched = float(np.mean([row.search for row in rows]))
    above = sum(row.difference > 0 for row in rows)
    claimed = sum(row.claimed for row in rows)
    false = sum(row.claimed and row.difference <= 0 for row in rows)
    cells = [str(budget), name, f"{mean:.4f} ± {half:.4f}", f"{searched:.4f}", str(len(rows))]
    return "| " + " | ".join([*cells, str(above), str(claimed), str(false), cost]) + " |"


def curve(rows: Sequence[Row], name: str) -> dict[int, float]:
    """A competitor's mean held-out fitness by budget."""
    of_name = [row for row in rows if row.competitor == name]
    return {
        budget: float(np.mean([row.held_out for row in of_name if row.budget == budget]))
        for budget in sorted({row.budget for row in of_name})
    }


def _cost(rows: Sequence[Row], name: str) -> str:
    theirs, mine = curve(rows, EVOLVE), curve(rows, name)
    if 200 not in theirs:
        return "?"
    found = trials_to(theirs[200], mine)
    if found is None:
        return "never"
    return f"≤ {found:.0f}" if found == min(mine) else f"{found:.0f}"


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
                seeds = [s for name, s, b in known if (name, b) == (mine, budget)]
                pairs = [
                    known[mine, seed, budget] - known[other, seed, budget]
                    for seed in seeds
                    if (other, seed, budget) in known
                ]
                mean, half = interval(pairs)
                cells.append(f"{mean:+.4f} ± {half:.4f}" if pairs else "")
            yield f"| {other} | " + " | ".join(cells) + " |"
