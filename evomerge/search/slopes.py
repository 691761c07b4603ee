"""The slope of the smooth fitness in a space: its derivative with respect to every gene.

One pass forward and one backward give the derivative with respect to every network value of the
merged model, and the chain rule does the rest. What a gene does to the values is found by merging
beside the candidate: the same for every method, masks and all, and exact where a gene's values
enter linearly, as weights do in most methods.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.errors import TrialError
from evomerge.evaluation import context_length
from evomerge.evaluation.slopes.gradients import Gradients
from evomerge.evaluation.slopes.memory import Limits
from evomerge.evaluation.slopes.questions import SmoothFitness, cut, smooth_fitness
from evomerge.merging import Pullback, StagedEngine
from evomerge.merging.adding import Term, coefficients
from evomerge.recipe import Recipe
from evomerge.search.climbing import genome_at
from evomerge.space.genes import chooses_method

if TYPE_CHECKING:
    from evomerge.evaluation import ItemSet
    from evomerge.space import SearchSpace

_LOGGER = logging.getLogger(__name__)

STEP = 0.01
"""Half of the central difference's width, as a share of a gene's range."""


@dataclass(frozen=True)
class Neighbour:
    """Two recipes that differ in some genes.

    Args:
        widths: gene → by how much, above 0.
        below, above: the recipes' stages.
    """

    widths: Mapping[str, float]
    below: list[Recipe]
    above: list[Recipe]


@dataclass(frozen=True)
class Neighbourhood:
    """What lies beside a candidate; small, and it pickles.

    Args:
        space: whose genes.
        num_layers: of its models.
    """

    space: SearchSpace
    num_layers: int

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Gene → its bounds."""
        return {gene.name: (gene.low, gene.high) for gene in self.space.genes(self.num_layers)}

    @property
    def sloping(self) -> dict[str, tuple[float, float]]:
        """The same without those that choose the method: nothing lies between two methods."""
        return {name: bounds for name, bounds in self.ranges.items() if not chooses_method(name)}

    def choices(self, genome: Mapping[str, float]) -> dict[str, float]:
        """The genes that choose the method."""
        return {name: value for name, value in genome.items() if chooses_method(name)}

    def beside(self, genome: Mapping[str, float], genes: Iterable[str]) -> Neighbour:
        """The neighbours of a genome along some of its genes together, within their bounds."""
        lows, highs = {}, {}
        for name in genes:
            low, high = self.ranges[name]
            half = STEP * (high - low)
            lows[name], highs[name] = max(genome[name] - half, low), min(genome[name] + half, high)
        return Neighbour(
            {name: highs[name] - lows[name] for name in lows},
            self.recipes({**genome, **lows}),
            self.recipes({**genome, **highs}),
        )

    def fitness(self, items: ItemSet, tokenizer: Any, config: Any) -> SmoothFitness:
        """The smooth fitness of items in the space.

        Args:
            items: the space's.
            tokenizer: theirs.
            config: the models'.
        """
        return smooth_fitness(
            items,
            tokenizer,
            context_length(config, tokenizer),
            chat=self.space.apply_chat_template,
            plain_sum=self.space.plain_sum,
        )

    def recipes(self, genome: Mapping[str, float]) -> list[Recipe]:
        """The stages of what a genome stands for."""
        mappings = self.space.recipe_mappings(genome, self.num_layers)
        return [Recipe.from_mapping(mapping, "genome") for mapping in mappings]


@dataclass(frozen=True)
class Slope:
    """The smooth fitness at a candidate on a block of items, and its slope.

    Args:
        value: the smooth fitness.
        genes: gene → d value / d gene, per unit of the gene; the gene that chooses the method has
            none.
    """

    value: float
    genes: dict[str, float]


@dataclass(frozen=True)
class _Sums:
    """Merges that add task vectors, with factors that are linear in every gene.

    Args:
        recipe: any of them.
        rates: gene → how fast the factor of each task vector in each tensor changes with it.
    """

    recipe: Recipe
    rates: Mapping[str, Mapping[Term, float]]

    def slope(self, along: Mapping[Term, float]) -> dict[str, float]:
        """Gene → slope, from those along the task vectors."""
        return {
            gene: sum(rate * along.get(term, 0.0) for term, rate in rates.items())
            for gene, rates in self.rates.items()
        }


class Slopes:
    """Takes slopes on a worker's live model, on blocks of items; a ``climbing.Ground``.

    Args:
        neighbourhood: of the space.
        engine: merges into the live model.
        model: the live model.
        items: what slopes are taken on.
        tokenizer: the items'.
        device, tree: as for :class:`Gradients`.
        blocks: how many blocks the items are cut into.

    Raises:
        TrialError: nothing in the fitness has a slope.

    Attributes:
        blocks: how many there are.
        ranges: gene → its bounds.
    """

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        engine: StagedEngine,
        model: Any,
        items: ItemSet,
        tokenizer: Any,
        *,
        device: str,
        tree: bool = False,
        blocks: int = 1,
    ) -> None:
        self._neighbourhood, self._engine, self._model = neighbourhood, engine, model
        fitness = neighbourhood.fitness(items, tokenizer, model.config)
        for one in fitness.left_out_words:
            _LOGGER.warning("the slope is taken without %s", one)
        if fitness.no_slope is not None:
            raise TrialError(fitness.no_slope)
        limits = Limits.of(model, device)
        self._gradients = [
            Gradients(model, block, device=device, tree=tree, limits=limits)
            for block in cut(fitness.questions, blocks, items.requests[0].seed)
        ]
        self.blocks, self.ranges = len(self._gradients), neighbourhood.ranges
        self._sums: dict[tuple[float, ...], _Sums | None] = {}
        self._parts: dict[tuple[float, ...], list[dict[str, frozenset[str]]]] = {}

    def at(self, genome: Mapping[str, float], block: int = 0) -> Slope:
        """The slope at a genome on a block; the live model is left with what it stands for.

        Raises:
            TrialError: it is not finite, or memory ran out.
        """
        self._engine.merge_into(self._model, self._neighbourhood.recipes(genome))
        gradient = self._gradients[block].run()
        pullback = Pullback(self._model, gradient.parameters)
        genes = self._along(pullback, genome) or self._between(pullback, genome)
        wrong = [name for name, slope in genes.items() if not math.isfinite(slope)]
        if wrong:
            raise TrialError(f"the slope along {wrong[0]} is {genes[wrong[0]]}, no finite number")
        return Slope(gradient.value, {name: genes[name] for name in self._neighbourhood.sloping})

    def _along(self, pullback: Pullback, genome: Mapping[str, float]) -> dict[str, float] | None:
        """The slope where genes only say how much of each task vector is added, so that nothing
        has to be merged; None elsewhere."""
        key = tuple(self._neighbourhood.choices(genome).values())
        if key not in self._sums:
            self._sums[key] = self._adding(self._inside(genome))
        known = self._sums[key]
        if known is None:
            return None
        along = pullback.along(self._engine.engine_of([known.recipe]), known.recipe)
        return None if along is None else known.slope(along)

    def _adding(self, genome: Mapping[str, float]) -> _Sums | None:
        """How the genes enter the sums, if they do so everywhere in the same way."""
        recipes = self._neighbourhood.recipes(genome)
        if len(recipes) > 1:
            return None
        here, there = self._rates(genome), self._rates(self._inside(genome, seed=1))
        if here is None or there is None:
            return None
        same = all(
            np.allclose(list(one.values()), list(other.values()), rtol=1e-6, atol=1e-9)
            for one, other in zip(here.values(), there.values(), strict=True)
            if one.keys() == other.keys()
        )
        return _Sums(recipes[0], here) if same else None

    def _rates(self, genome: Mapping[str, float]) -> dict[str, dict[Term, float]] | None:
        """Gene → how fast each task vector's factor changes with it; None for other merges."""
        engine = self._engine.engine_of(self._neighbourhood.recipes(genome))
        found: dict[str, dict[Term, float]] = {}
        for name in self._neighbourhood.sloping:
            near = self._neighbourhood.beside(genome, [name])
            low, high = (coefficients(engine.merges(one[-1])) for one in (near.below, near.above))
            if low is None or high is None or low.keys() != high.keys():
                return None
            rates = {term: (high[term] - low[term]) / near.widths[name] for term in low}
            found[name] = rates
        return found

    def _inside(self, genome: Mapping[str, float], seed: int = 0) -> dict[str, float]:
        """A genome between the bounds, of the same methods."""
        shares = np.random.default_rng(seed).uniform(0.3, 0.7, len(self.ranges))
        return {**genome_at(self.ranges, shares), **self._neighbourhood.choices(genome)}

    def _between(self, pullback: Pullback, genome: Mapping[str, float]) -> dict[str, float]:
        """The slope of any merge, by merging beside the candidate."""
        genes = {}
        for together in self._apart(pullback, genome):
            near = self._neighbourhood.beside(genome, together)
            changes = pullback.between(self._engine, near.below, near.above)
            for name, touched in together.items():
                # Exactly, as sets have another order in every process.
                found = [changes[tensor] for tensor in touched if tensor in changes]
                change = math.fsum(found) if all(map(math.isfinite, found)) else math.nan
                genes[name] = change / near.widths[name]
        return genes

    def _apart(
        self, pullback: Pullback, genome: Mapping[str, float]
    ) -> list[dict[str, frozenset[str]]]:
        """Genes in as few parts as come to mind, so that no two of a part touch one tensor.

        What one of them changes can then be told from what the others do.
        """
        key = tuple(self._neighbourhood.choices(genome).values())
        if key not in self._parts:
            # Anywhere inside: which tensors a gene touches hangs on the method alone.
            inside = self._inside(genome)
            parts: list[dict[str, frozenset[str]]] = []
            for name in self._neighbourhood.sloping:
                near = self._neighbourhood.beside(inside, [name])
                touched = pullback.touched(self._engine, near.below, near.above)
                free = [
                    one for one in parts if touched.isdisjoint(frozenset().union(*one.values()))
                ]
                if not free:
                    parts.append({})
                (free or parts[-1:])[0][name] = touched
            self._parts[key] = parts
        return self._parts[key]
