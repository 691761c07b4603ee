"""The rows as a picture: held-out fitness against budget, one panel for each family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks.searches.competitors import ANYTIME
from tests.benchmarks.searches.rows import Row, latest, seeds, shared
from tests.benchmarks.searches.running import BASELINE, BEST_HELD_OUT
from tests.benchmarks.searches.table import interval

COLOURS = ("#D55E00", "#0072B2", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart by the colour-blind too (jfly.uni-koeln.de/color)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LEVELS = {
    BASELINE: ("best baseline, by the search items", "--"),
    BEST_HELD_OUT: ("best baseline, by the held-out items", ":"),
}

WIDTH, HEIGHT = 1400, 900
"""Pixels."""

_DPI = 100


def draw(rows: Sequence[Row], file: Path) -> None:
    """Write the picture as PNG.

    A panel's means and 95 % intervals are over the seeds that all its competitors have (over each
    one's own where they have none in common): what differs then is the search, not the items.

    Args:
        rows: of one or more families.
        file: the PNG.

    Raises:
        ValueError: there are no rows.
    """
    rows = latest(rows)
    families = list(dict.fromkeys(row.family for row in rows))
    if not families:
        raise ValueError("there are no rows to draw")
    columns = math.ceil(math.sqrt(len(families)))
    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, layout="constrained")
    lines = math.ceil(len(families) / columns)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    looks, drawn, numbers = _looks(rows), {}, set()
    for panel, family in zip(panels, families, strict=False):
        of_family = [row for row in rows if row.family == family]
        chosen = _comparable(of_family)
        numbers.add(len(seeds(chosen)))
        drawn |= _panel(panel, chosen, looks)
        panel.set_title(family, fontsize=14)
    for panel in panels[len(families) :]:
        panel.set_axis_off()
    ordered = {LEVELS.get(name, (name,))[0]: drawn[name] for name in (*looks, *LEVELS)
               if name in drawn}  # fmt: skip
    place = {"loc": "outside upper center", "ncols": 4, "frameon": False, "fontsize": 13}
    figure.legend(list(ordered.values()), list(ordered), **place)
    least, most = min(numbers), max(numbers)
    told = f"{most}" if least == most else f"{least} to {most}"
    told += " seed" if most == 1 else " seeds"
    figure.supxlabel("budget in full trials (scored items / search items)", fontsize=13)
    what = f"held-out fitness, mean and 95 % interval over {told}"
    figure.supylabel(what, fontsize=13)
    figure.savefig(file, format="png")


def _comparable(rows: Sequence[Row]) -> list[Row]:
    common = shared(rows, *{row.competitor for row in rows})
    return [row for row in rows if row.seed in common] or list(rows)


def _looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Competitor → colour and marker; ours come first, the others' are always the same."""
    there = dict.fromkeys(row.competitor for row in rows)
    ours = [name for name in there if name not in ANYTIME and name not in LEVELS]
    others = {name: place for place, name in enumerate(ANYTIME, 1) if name in there}
    free = [place for place in range(len(COLOURS)) if place not in others.values()]
    mine = {name: free[n % len(free)] for n, name in enumerate(ours)}
    return {name: (COLOURS[n], MARKERS[n]) for name, n in {**mine, **others}.items()}


def _panel(
    panel: Axes, rows: Sequence[Row], looks: Mapping[str, tuple[str, str]]
) -> dict[str, Artist]:
    """Draw one family; competitor → what stands for it in the legend."""
    drawn: dict[str, Artist] = {}
    for name, (_, style) in LEVELS.items():
        level = [row.held_out for row in rows if row.competitor == name]
        if level:
            mean, _ = interval(level)
            drawn[name] = panel.axhline(mean, color="#666666", linestyle=style, linewidth=1.6)
    names = {row.competitor for row in rows}
    there = [name for name in looks if name in names]
    for place, name in enumerate(there):
        # Beside each other, so that no interval hides another.
        shift = 1.025 ** (place - (len(there) - 1) / 2)
        drawn[name] = _line(panel, [r for r in rows if r.competitor == name], looks[name], shift)
    budgets = sorted({row.budget for row in rows})
    panel.set_xscale("log")
    panel.set_xticks(budgets, [str(budget) for budget in budgets])
    panel.set_xticks([], minor=True)
    panel.set_xlim(budgets[0] / 1.15, budgets[-1] * 1.15)
    panel.tick_params(labelsize=11)
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    return drawn


def _line(panel: Axes, rows: Sequence[Row], look: tuple[str, str], shift: float) -> Artist:
    budgets = sorted({row.budget for row in rows})
    found = [interval([row.held_out for row in rows if row.budget == b]) for b in budgets]
    drawn = panel.errorbar(
        [budget * shift for budget in budgets],
        [mean for mean, _ in found],
        yerr=[0.0 if math.isnan(half) else half for _, half in found],
        color=look[0],
        marker=look[1],
        markersize=6,
        linewidth=2,
        elinewidth=1.2,
        capsize=2,
    )
    return drawn.lines[0]
