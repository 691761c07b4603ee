"""The slope of the smooth fitness in a space: its derivative with respect to every gene.

One pass forward and one backward give the derivative with respect to every network value of the
merged model, and the chain rule does the rest. What a gene does to the values is found by merging
beside the candidate: the same for every method, masks and all, and exact where a gene's values
enter linearly, as weights do in most methods.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.errors import TrialError
from evomerge.evaluation import context_length
from evomerge.evaluation.slopes.gradients import Gradients
from evomerge.evaluation.slopes.questions import cut, smooth_fitness
from evomerge.merging import Pullback, StagedEngine
from evomerge.recipe import Recipe
from evomerge.space.genes import METHOD

if TYPE_CHECKING:
    from evomerge.evaluation import ItemSet
    from evomerge.space import SearchSpace

_LOGGER = logging.getLogger(__name__)

STEP = 0.01
"""Half of the central difference's width, as a share of a gene's range."""


@dataclass(frozen=True)
class Neighbour:
    """Two recipes that differ in one gene.

    Args:
        gene: its name.
        width: by how much, above 0.
        below, above: the recipes' stages.
    """

    gene: str
    width: float
    below: list[Recipe]
    above: list[Recipe]


@dataclass(frozen=True)
class Neighbourhood:
    """What lies beside a candidate, gene by gene; small, and it pickles.

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

    def of(self, genome: Mapping[str, float]) -> Iterator[Neighbour]:
        """The neighbours of a genome, within the genes' bounds.

        None for the gene that chooses the method: nothing lies between two methods.
        """
        for gene in self.space.genes(self.num_layers):
            if gene.name.rpartition("/")[2] == METHOD:
                continue
            value, half = genome[gene.name], STEP * (gene.high - gene.low)
            low, high = max(value - half, gene.low), min(value + half, gene.high)
            yield Neighbour(
                gene.name,
                high - low,
                self.recipes({**genome, gene.name: low}),
                self.recipes({**genome, gene.name: high}),
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
        space = neighbourhood.space
        fitness = smooth_fitness(
            items,
            tokenizer,
            context_length(model.config, tokenizer),
            chat=space.apply_chat_template,
            plain_sum=space.plain_sum,
        )
        told = [f"task {task}: {why}" for task, why in fitness.left_out.items()]
        for one in told:
            _LOGGER.warning("the slope is taken without %s", one)
        if not fitness.questions:
            reason = "; ".join(told) or "every weight is 0"
            raise TrialError(f"the fitness has no slope: {reason}")
        self._gradients = [
            Gradients(model, block, device=device, tree=tree)
            for block in cut(fitness.questions, blocks, items.requests[0].seed)
        ]
        self.blocks, self.ranges = len(self._gradients), neighbourhood.ranges

    def at(self, genome: Mapping[str, float], block: int = 0) -> Slope:
        """The slope at a genome on a block; the live model is left with what it stands for.

        Raises:
            TrialError: it is not finite, or memory ran out.
        """
        self._engine.merge_into(self._model, self._neighbourhood.recipes(genome))
        gradient = self._gradients[block].run()
        pullback = Pullback(self._model, gradient.parameters)
        genes = {
            one.gene: pullback.between(self._engine, one.below, one.above) / one.width
            for one in self._neighbourhood.of(genome)
        }
        return Slope(gradient.value, genes)
