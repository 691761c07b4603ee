"""How well few items tell candidates apart: `python studies/smooth.py [--candidates N]`.

Candidates of the quickstart's space are scored on all its items. A fitness (a metric, and a way to
choose n items of each task) is good if it ranks them as their accuracy on thousands of other items
does. Printed is Kendall's tau between the two rankings, mean and standard deviation over draws of
the items, for candidates drawn from the whole space and for those near a good one, as a search
draws them late.

Ways to choose from a pool of 600 items a task: at random; the items on which the six baselines
differ most (variance of their gold_prob, or of right and wrong); half of these and half at random;
drawn with chances that grow with that spread, each item counting as the inverse of its chance; the
items nearest the centres of n clusters, each counting as its cluster is large; and `order:
balanced`, the subset on which the baselines score most nearly as on the pool.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.stats import kendalltau

from evomerge import load_space
from evomerge.evaluation import MetricName, TaskRequest
from evomerge.evaluation.balancing import balanced
from evomerge.search.baselines import decode
from evomerge.search.pool import Job
from evomerge.search.preparation import prepare

SPACE = Path(__file__).parents[1] / "search_spaces" / "quickstart.yaml"
SKILLS = ("add", "count", "most", "kinds")
METRICS = ("acc", "gold_prob", "margin", "gold_loglikelihood")
GOOD = (0.37, 0.95, 0.16, 0.12, 1.07, 0.29, -0.01, 0.42)
"""The genome that the README's search found: two knots each of add, count, most, kinds."""
POOL, COUNTS, DRAWS = 600, (12, 25, 50, 100, 400), 40

Scores = dict[str, np.ndarray]
"""Per metric ``[candidates, skills, items]``."""
Choice = Callable[[np.random.Generator, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Draw, baselines' item scores ``[baselines, items]``, n → the chosen items, what each counts."""


def scored(near: int, wide: int) -> tuple[Scores, dict[str, slice]]:
    """All candidates on all 1300 items a task, the baselines first."""
    prepared = prepare(load_space(SPACE), hold_out=False)
    requests = tuple(
        TaskRequest(f"quickstart_{skill}{part}", MetricName(metric))
        for skill in SKILLS
        for part in ("", "_heldout")
        for metric in METRICS
    )
    plan = replace(prepared.plan, requests=requests, holdout_items=None, threads=1)
    evaluator = plan()
    names = [gene.name for gene in prepared.genes]
    rng = np.random.default_rng(0)
    points = [*rng.uniform(-0.2, 1.2, (wide, len(names)))]
    points += [*np.clip(GOOD + rng.normal(0, 0.12, (near, len(names))), -0.2, 1.2)]
    recipes = [baseline.recipe for baseline in prepared.baselines] + [
        decode(prepared.space, dict(zip(names, map(float, point), strict=True)), 6)
        for point in points
    ]
    found: dict[str, list[np.ndarray]] = {metric: [] for metric in METRICS}
    for recipe in recipes:
        tasks = evaluator.run(Job(0, recipe)).scores.tasks
        for metric in METRICS:
            key = MetricName(metric, "none")
            rows = [
                np.concatenate([tasks[f"quickstart_{s}{p}"].items[key] for p in ("", "_heldout")])
                for s in SKILLS
            ]
            found[metric].append(np.stack(rows))
    first = len(prepared.baselines)
    parts = {
        "baselines": slice(0, first),
        "whole space": slice(first, first + wide),
        "near a good one": slice(first + wide, None),
    }
    return {metric: np.stack(rows) for metric, rows in found.items()}, parts


def at_random(
    rng: np.random.Generator, known: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    return rng.permutation(known.shape[1])[:count], np.ones(count)


def most_spread(
    rng: np.random.Generator, known: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    return np.argsort(-known.var(axis=0), kind="stable")[:count], np.ones(count)


def half_and_half(
    rng: np.random.Generator, known: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-known.var(axis=0), kind="stable")
    rest = rng.permutation(order[count // 2 :])[: count - count // 2]
    return np.concatenate([order[: count // 2], rest]), np.ones(count)


def weighted(
    rng: np.random.Generator, known: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Systematic sampling: a fifth of the chance is the same for all, the rest by deviation."""
    deviation = known.std(axis=0)
    chance = 0.2 / len(deviation) + 0.8 * deviation / deviation.sum()
    chance = np.minimum(chance * count, 1.0)
    for _ in range(50):  # those that are certain leave their surplus to the others
        open_ = chance < 1
        chance[open_] *= (count - (~open_).sum()) / chance[open_].sum()
        chance = np.minimum(chance, 1.0)
    order = rng.permutation(len(deviation))
    ends = np.cumsum(chance[order])
    marks = rng.random() + np.arange(count)
    chosen = order[np.minimum(np.searchsorted(ends, marks), len(order) - 1)]
    return chosen, 1 / chance[chosen]


def rejective(
    rng: np.random.Generator, known: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """What ``order: balanced`` does."""
    return balanced(known, count, rng), np.ones(count)


def anchors(
    rng: np.random.Generator, known: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The items nearest the centres of n clusters, each counting as its cluster is large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        centres, label = kmeans2(known.T, count, seed=rng, minit="++")
    chosen, counts = [], []
    for cluster in np.unique(label):
        members = np.flatnonzero(label == cluster)
        apart = np.square(known.T[members] - centres[cluster]).sum(axis=1)
        chosen.append(members[apart.argmin()])
        counts.append(float(len(members)))
    return np.array(chosen), np.array(counts)


def draws(
    scores: Scores, part: slice, base: slice, metric: str, known_by: str, choose: Choice, n: int
) -> Iterator[float]:
    """Kendall's tau for one draw of the pool, the items and so of the truth after another."""
    items = scores["acc"].shape[2]
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, n])
        order = rng.permutation(items)
        pool, rest = order[:POOL], order[POOL:]
        truth = scores["acc"][part][:, :, rest].mean(axis=(1, 2))
        fitness = np.zeros(len(truth))
        for skill in range(len(SKILLS)):
            known = scores[known_by][base, skill][:, pool]
            chosen, counts = choose(rng, known, n)
            values = scores[metric][part, skill][:, pool[chosen]]
            fitness += values @ counts / counts.sum()
        yield float(kendalltau(fitness, truth).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=60, help="of each kind")
    options = parser.parse_args()
    scores, parts = scored(options.candidates, options.candidates)
    base = parts.pop("baselines")
    informed = {
        "spread": most_spread,
        "half": half_and_half,
        "weighted": weighted,
        "anchors": anchors,
        "balanced": rejective,
    }
    ways: list[tuple[str, str, str, Choice]] = [
        *((metric, "random", "acc", at_random) for metric in METRICS),
        *(
            (metric, f"{name}, {spread}", spread, way)
            for metric in ("acc", "gold_prob")
            for spread in ("gold_prob", "acc")
            for name, way in informed.items()
        ),
    ]
    for name, part in parts.items():
        accuracy = scores["acc"][part].mean(axis=(1, 2))
        print(f"\n{name}: accuracy {accuracy.min():.3f} to {accuracy.max():.3f}")
        print("| fitness | items chosen | " + " | ".join(f"n = {n}" for n in COUNTS) + " |")
        print("|---" * (2 + len(COUNTS)) + "|")
        for metric, label, spread, way in ways:
            cells = []
            for n in COUNTS:
                taus = np.array(list(draws(scores, part, base, metric, spread, way, n)))
                cells.append(f"{taus.mean():.3f} ± {taus.std(ddof=1):.3f}")
            print(f"| {metric} | {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
