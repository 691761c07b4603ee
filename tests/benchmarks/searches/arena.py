"""A family's space with the items of one seed: models loaded once, everything in this process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from optuna.distributions import FloatDistribution

from evomerge.errors import EvomergeError
from evomerge.evaluation import Comparison, ItemSet, Scores, compare, fitness
from evomerge.search.baselines import decode
from evomerge.search.evaluator import CandidateEvaluator
from evomerge.search.pool import Job
from evomerge.search.preparation import Preparation, prepare
from evomerge.search.storage import distributions
from evomerge.space import SearchSpace, load_space
from tests.benchmarks.searches.blends import grid
from tests.benchmarks.searches.folding import EvolveGenome
from tests.benchmarks.searches.ground import Judged

SEARCH, HOLDOUT = "search", "holdout"


class Arena:
    """One family with one seed's search items. The seed chooses the items, not the models.

    What is judged is judged on all held-out items that there are where they are of another task or
    split than the search's, otherwise on the space's own: never on what a search may have seen.

    Args:
        file: the family's space.
        seed: of the items.
    """

    def __init__(self, file: Path, seed: int) -> None:
        self.file, self.seed = file, seed
        self.space = seeded(load_space(file), seed)
        self.prepared: Preparation = prepare(self.space)
        self._plan = replace(self.prepared.plan, threads=1, device="cpu")
        self._searched = CandidateEvaluator(self._plan)
        self._known: dict[tuple[str, str], Scores] = {}

    @cached_property
    def genes(self) -> Mapping[str, FloatDistribution]:
        return distributions(self.prepared.genes)

    @property
    def items(self) -> int:
        return len(self.prepared.search_items)

    @cached_property
    def folded(self) -> EvolveGenome:
        return EvolveGenome(self.prepared.space, self.prepared.genes, self.prepared.num_layers)

    def recipe(self, genome: Mapping[str, float]) -> str:
        return decode(self.prepared.space, genome, self.prepared.num_layers)

    def fitness(self, recipe: str) -> float:
        """By the family's own metric; NaN where the merge or its scores cannot be had."""
        try:
            return self._fitness(self._score(self._searched, recipe, SEARCH), SEARCH)
        except EvomergeError:
            return math.nan

    def baselines(self) -> Mapping[str, str]:
        return self._grid

    @cached_property
    def _grid(self) -> dict[str, str]:
        return grid(self.prepared.space)

    @cached_property
    def best_baseline(self) -> tuple[str, str]:
        """Name and recipe of the best baseline on the search items."""
        found = {name: self.fitness(recipe) for name, recipe in self.baselines().items()}
        fit = {name: value for name, value in found.items() if not math.isnan(value)}
        name = max(fit, key=lambda one: fit[one])
        return name, self.baselines()[name]

    def held_out(self, recipe: str) -> float:
        """The fitness on the held-out items."""
        return self._fitness(self._truth(recipe), HOLDOUT)

    def lead(self, recipe: str, other: str) -> Comparison:
        """How much better a recipe is than another on the held-out items, paired."""
        requests, plain = self._held_out_items.requests, self.space.plain_sum
        mine, theirs = self._truth(recipe), self._truth(other)
        return compare(theirs, mine, requests, plain_sum=plain, resamples=2000)

    def judge(self, recipe: str) -> Judged:
        name, other = self.best_baseline
        found = self.lead(recipe, other)
        low, high = (math.nan if one is None else one for one in (found.low, found.high))
        return Judged(
            held_out=self.held_out(recipe),
            baseline=name,
            baseline_held_out=self.held_out(other),
            difference=found.difference,
            low=low,
            high=high,
        )

    @cached_property
    def key(self) -> str:
        """What the results hang on: the space, the models' weights, the tasks' files."""
        found = hashlib.sha256(self.file.read_bytes())
        for checkpoint in self.prepared.checkpoints:
            found.update(checkpoint.fingerprint().encode())
        for folder in self.space.include_path:
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                if "__pycache__" not in path.parts:
                    found.update(path.read_bytes())
        return found.hexdigest()[:12]

    @property
    def _held_out_items(self) -> ItemSet:
        items = self.prepared.holdout_items
        if items is None:
            raise ValueError(f"{self.file}: a family of the bench holds items out")
        return items

    @cached_property
    def _judging(self) -> CandidateEvaluator:
        searched = self.prepared.search_items.splits
        splits = self._held_out_items.splits
        apart = all(searched.get(task) != split for task, split in splits.items())
        items = None if apart else self._plan.holdout_items
        return CandidateEvaluator(replace(self._plan, holdout_items=items))

    def _truth(self, recipe: str) -> Scores:
        return self._score(self._judging, recipe, HOLDOUT)

    def _score(self, evaluator: CandidateEvaluator, recipe: str, part: str) -> Scores:
        """The scores of a recipe; kept where they are asked again."""
        key = (recipe, part)
        if key not in self._known:
            scores = evaluator.run(Job(0, recipe, part)).scores
            assert scores is not None
            if part == SEARCH and recipe not in self._grid.values():
                return scores
            self._known[key] = scores
        return self._known[key]

    def _fitness(self, scores: Scores, part: str) -> float:
        items = self.prepared.search_items if part == SEARCH else self._held_out_items
        found = fitness(scores, items.requests, plain_sum=self.space.plain_sum)
        return found if math.isfinite(found) else math.nan


def seeded(space: SearchSpace, seed: int) -> SearchSpace:
    """The space with another seed of its search."""
    return space.model_copy(update={"search": space.search.model_copy(update={"seed": seed})})
