"""The comparison of searches: rows, the table's figures, mergekit-evolve's genome."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib import image
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from evomerge.space import load_space
from tests.benchmarks.search import main
from tests.benchmarks.searches import ours
from tests.benchmarks.searches.exploring import explore
from tests.benchmarks.searches.folding import EvolveGenome, granularity
from tests.benchmarks.searches.ground import Step, shipped
from tests.benchmarks.searches.landscapes import KINDS, LENGTH, SIGMA, TOP, Landscape
from tests.benchmarks.searches.picture import draw
from tests.benchmarks.searches.rows import VERSION, Row, append, read, shared
from tests.benchmarks.searches.running import Task, wanted
from tests.benchmarks.searches.table import interval, lines, trials_to

Printed = pytest.CaptureFixture[str]
QUICKSTART = Path(__file__).resolve().parents[2] / "search_spaces" / "quickstart.yaml"

ROW = Row(
    **{"version": VERSION, "family": "f", "key": "k", "competitor": "c", "settings": ""},
    **{"seed": 0, "budget": 25, "recipe": "r", "search": 0.6, "held_out": 0.5, "baseline": "b"},
    **{"baseline_held_out": 0.4, "difference": 0.1, "low": 0.05, "high": 0.15, "items": 100},
    seconds=1.0,
)


def test_ships_the_fittest_within_the_items() -> None:
    steps = [Step(str(n), value, 10 * n, n) for n, value in enumerate([0.1, math.nan, 0.3, 0.9], 1)]
    found = shipped(steps, 35)
    assert found is not None
    assert (found.recipe, found.fitness, found.items) == ("3", 0.3, 30)
    assert shipped(steps[1:2], 100) is None


def test_rows_are_read_back_and_not_run_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append(file, ROW)
    file.write_text(file.read_text() + '{"version": 1, "fam')  # killed while it wrote
    append(file, replace(ROW, budget=50))
    assert [row.budget for row in read(file)] == [25, 50]
    task = Task("f", file, "c", 0, (25, 50))
    assert list(wanted([task], read(file), {"f": "k"})) == []
    assert list(wanted([task], read(file), {"f": "other models"})) == [task]


def test_rows_are_kept_without_their_recipes(tmp_path: Path, capsys: Printed) -> None:
    """What the table says of them is the same."""
    file, kept, again = (tmp_path / name for name in ("rows.jsonl", "rows.csv", "again.csv"))
    budgets = [replace(ROW, seed=seed, held_out=0.5 + seed / 7) for seed in (1, 0)]
    for row in (*budgets, replace(ROW, competitor="ours", verdict="win", low=math.nan)):
        append(file, row)
    assert main(["--table", str(file), "--keep", str(kept)]) == 0
    told = capsys.readouterr().out
    assert [(row.competitor, row.seed) for row in read(kept)] == [("c", 0), ("c", 1), ("ours", 0)]
    assert [row.verdict for row in read(kept)] == [None, None, "win"]
    assert read(kept)[0] == replace(ROW, recipe="")
    assert main(["--table", str(kept), "--keep", str(again)]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(told.splitlines())
    assert again.read_text() == kept.read_text()


def test_known_answers_of_the_table() -> None:
    assert trials_to(0.5, {25: 0.4, 50: 0.6}) == 37.5
    assert trials_to(0.3, {25: 0.4, 50: 0.6}) == 25
    assert trials_to(0.7, {25: 0.4, 50: 0.6}) is None
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    evolve = [
        replace(ROW, competitor="mergekit-evolve", budget=b, held_out=h, seed=s)
        for b, h in ((25, 0.4), (200, 0.5))
        for s in (0, 1)
    ]
    mine = [replace(row, competitor="x", settings="y", held_out=row.held_out + 0.1)
            for row in evolve]  # fmt: skip
    text = "\n".join(lines([*evolve, *mine]))
    assert "| 25 | x | 0.5000 ± 0.0000 | 0.6000 | 2 | 2 | 2 | 0 |" in text
    assert "mergekit-evolve 200, x ≤ 25." in text
    assert "| mergekit-evolve | +0.1000 ± 0.0000 | +0.1000 ± 0.0000 |" in text


def test_costs_are_over_the_seeds_that_both_have_and_one_seed_has_no_interval() -> None:
    rows = [
        replace(ROW, competitor=name, budget=budget, held_out=held_out, seed=seed)
        for name, seed, low, high in (
            ("mergekit-evolve", 0, 0.4, 0.5),
            ("mergekit-evolve", 1, 0.1, 0.1),
            ("x", 0, 0.3, 0.4),  # above the other's mean, below its seed 0
        )
        for budget, held_out in ((100, low), (200, high))
    ]
    rows.append(replace(rows[0], competitor="z", seed=5))
    text = "\n".join(lines(rows))
    assert "mergekit-evolve 200, x more than 200, z – (no seed in common)." in text
    assert "| 200 | x | 0.4000 ± – | 0.6000 | 1 |" in text
    assert "nan" not in text
    assert shared(rows, "mergekit-evolve") == {0, 1}
    torn = [*rows, replace(rows[-2], seed=1, budget=100)]
    assert shared(torn, "mergekit-evolve", "x") == {0}  # x has not yet ended on seed 1
    assert "False wins" not in text


def test_false_wins_are_counted_in_families_without_room() -> None:
    rows = [
        replace(ROW, family=family, seed=seed, verdict=verdict)
        for family in ("null", "harm")
        for seed, verdict in enumerate(("win", "open", "loss", None))  # None: the interval claims
    ]
    text = "\n".join(lines(rows))
    assert "| c | 4 | 2 | 50.0% |" in text


def test_picture_has_a_panel_for_each_family(tmp_path: Path) -> None:
    file, rows = tmp_path / "rows.jsonl", []
    for name in ("ours", "mergekit-evolve", "baseline"):
        for family, budget, seed in product(("a", "b", "c"), (25, 200), (0, 1)):
            rows.append(replace(ROW, competitor=name, family=family, budget=budget, seed=seed))
    for row in rows:
        append(file, row)
    picture = tmp_path / "all.png"
    main(["--table", str(file), "--picture", str(picture), "--only", "ours", "baseline"])
    some = image.imread(picture)
    assert some.shape[:2] == (900, 1400)
    main(["--table", str(file), str(file), "--picture", str(picture)])
    assert not np.array_equal(some, image.imread(picture))  # one line more
    with pytest.raises(ValueError, match="no rows"):
        draw([], picture)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_accuracy_is_the_truth(kind: str) -> None:
    landscape = Landscape(kind, 8, seed=3, items=100_000)
    x = np.random.default_rng(0).uniform(0.2, 0.8, (6, 8))
    found, truth = landscape.right(x).mean(-1), landscape.truth(x)
    # Items are independent draws: five standard errors.
    np.testing.assert_allclose(found, truth, atol=5 * 0.5 / math.sqrt(100_000))
    assert np.ptp(truth) > 0.02  # one p for all would pass too
    assert landscape.fitness(json.dumps(list(x[0]))) == found[0]


def test_optimum_is_the_top_and_the_middle_is_far_from_it() -> None:
    for kind in KINDS:
        landscape = Landscape(kind, 8, seed=1)

        def cost(x: np.ndarray, landscape: Landscape = landscape) -> float:
            return -float(landscape.truth(x))

        starts = np.random.default_rng(0).uniform(size=(100, 8))
        best = min(starts, key=cost)
        found = minimize(cost, best, method="BFGS", options={"gtol": 1e-9})
        height = -found.fun
        assert height == pytest.approx(TOP, abs=1e-4) or kind == "two basins"
        assert height <= TOP
        assert landscape.truth(np.full(8, 0.5)) < height - 0.05


def test_neighbours_share_their_answers_as_their_kernel_says() -> None:
    landscape = Landscape("sphere", 8, seed=0, items=50_000)
    # Equally far from the optimum on both sides of it, so that p is no reason to differ.
    optimum = minimize(lambda x: -landscape.truth(x), np.full(8, 0.5)).x
    step = np.random.default_rng(0).standard_normal(8)
    step /= np.sqrt((step**2).mean())
    unlike = []
    for size in (0.01, 0.05, 0.3):
        here, there = landscape.right(np.stack([optimum - size * step, optimum + size * step]))
        unlike.append(np.mean(here != there))
        p = float(landscape.truth(optimum + size * step))
        expected = _unlike(p, 2 * size / LENGTH)
        assert abs(unlike[-1] - expected) < 5 * math.sqrt(expected / 50_000)
        assert unlike[-1] < 2 * p * (1 - p)  # by chance
    assert unlike == sorted(unlike)


def _unlike(p: float, distance: float) -> float:
    """How often two candidates of equal p differ: g's correlation is cos φ, φ ~ N(0, distance²)."""
    phases = distance * norm.ppf((np.arange(200) + 0.5) / 200)
    both = norm.ppf(p) * np.ones(2)
    joint = [
        multivariate_normal.cdf(both, cov=[[1, one], [one, 1]], allow_singular=True)
        for one in (1 + SIGMA**2 * np.cos(phases)) / (1 + SIGMA**2)
    ]
    return float(2 * (p - np.mean(joint)))


def test_landscapes_are_functions_of_kind_genes_and_seed() -> None:
    x = np.random.default_rng(0).uniform(size=(5, 8))
    for kind in KINDS:
        one, same, other = (Landscape(kind, 8, seed).right(x) for seed in (4, 4, 5))
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()
    others = ("optuna-cmaes", "mergekit-evolve")
    one, same = (explore("ridge", 8, (10, 20), 1, others) for _ in range(2))
    assert one == same


def test_searches_climb_a_sphere() -> None:
    truths = explore("sphere", 8, (10, 80), 0)
    names = {name for name, _ in truths}
    assert len(names) == 8
    for name in names:
        assert truths[name, 80] > truths[name, 10] + (-0.1 if name == "optuna-random" else 0.02)
        assert truths[name, 80] <= TOP
    assert truths["cmaes", 80] > truths["optuna-random", 80]


def test_landscapes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    others = ["mergekit-evolve", "optuna-random"]
    words = ["--landscapes", "2", "--genes", "8", "--budgets", "8", "12", "--jobs", "1"]
    main([*words, "--competitors", *others])
    text = capsys.readouterr().out
    assert text.count("| mergekit-evolve | 0.") == len(KINDS)
    found = [explore("layered", 8, (8, 12), seed, others)[others[0], 12] for seed in range(2)]
    error = abs(found[0] - found[1]) / 2
    assert f"{np.mean(found):.4f} ± {error:.4f} |\n| optuna-random" in text


def test_genome_of_mergekit_evolve_is_folded_as_theirs(tmp_path: Path) -> None:
    space = load_space(_space(tmp_path, method="dare_ties", weight=[0, 1], density=[0.1, 1]))
    genome = EvolveGenome(space, space.genes(4), 4)
    np.testing.assert_allclose(genome.start, [0.25, 1.0] * 4)
    recipe = yaml.safe_load(genome.recipe(np.array([-0.3, 1.7, 0.2, -0.4, 0.1, 0.0, 0.5, 0.5])))
    sources = recipe["slices"][0]["sources"][:4]
    found = [(m["parameters"]["weight"], m["parameters"]["density"]) for m in sources]
    expected = [(0.3, 1.0), (0.2, 0.4), (0.1, 0.001), (0.5, 0.5)]
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-12)
    space = load_space(_space(tmp_path, method="task_arithmetic", weight=[-1, 1]))
    genome = EvolveGenome(space, space.genes(4), 4)
    recipe = yaml.safe_load(genome.recipe(np.array([-0.3, 0.2, 0.1, 0.5])))
    assert recipe["slices"][0]["sources"][0]["parameters"]["weight"] == pytest.approx(-0.3)


@pytest.mark.parametrize(("groups", "layers", "size"), [(1, 4, 0), (2, 4, 2), (4, 6, 2), (3, 4, 2)])
def test_layer_groups_become_their_granularity(groups: int, layers: int, size: int) -> None:
    assert granularity(groups, layers) == size


def test_settings_of_ours_are_read() -> None:
    read_ = ours.parse("few=sigma:0.1,genome.layers:{groups: 1}")
    assert read_ == ("few", {"sigma": 0.1, "genome.layers": {"groups": 1}})
    with pytest.raises(ValueError, match="write NAME"):
        ours.parse("few=sigma")


def _space(folder: Path, *, method: str, **genome: object) -> Path:
    data = yaml.safe_load(QUICKSTART.read_text())
    home = QUICKSTART.parent
    data["base_model"] = str(home / data["base_model"])
    data["models"] = [str(home / model) for model in data["models"]]
    data["include_path"] = str(home / data["include_path"])
    data |= {"merge_method": method, "genome": genome}
    file = folder / f"{method}.yaml"
    file.write_text(yaml.safe_dump(data))
    return file
