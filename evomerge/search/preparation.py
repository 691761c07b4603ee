"""Everything that can be refused is refused here, before the first candidate.

Opens the models (headers only), compares shapes and vocabularies, decodes a genome, builds the
items of every task; gathers what is wrong with any of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints import Checkpoint, compare
from evomerge.errors import CheckpointError, SpaceError
from evomerge.evaluation import ItemSet
from evomerge.merging import DTYPES, ResidencyPlan, layout_of
from evomerge.recipe import read_recipes, resolve
from evomerge.references import ModelReference
from evomerge.search.backends import check_backend, check_items
from evomerge.search.baselines import BASE, baselines, decode
from evomerge.search.evaluator import EvaluatorPlan
from evomerge.search.floors import Floor, check_floors, floors_of
from evomerge.search.gathering import Faults
from evomerge.search.goals import goal_names
from evomerge.search.parts import parts_of
from evomerge.search.plans import evaluator_plan, targets_of, type_name
from evomerge.search.records import PlannedBaseline
from evomerge.search.shares import rung_shares
from evomerge.search.verdict import FEWEST
from evomerge.space.genes import chooses_method

if TYPE_CHECKING:
    from evomerge.space import Gene, SearchSpace


_FLAT = "no slope can be taken: every gene chooses a method; CMA-ES searches by the fitness alone"


@dataclass(frozen=True)
class Preparation:
    """A space whose models and tasks were found and fit together.

    Args:
        space: the space.
        checkpoints: the stored models: the base model first, then the fine-tuned models.
        num_layers: of the models.
        genes: what is searched.
        baselines: the first trials.
        plan: what each worker builds.
        search_items, holdout_items, race_items: the items of each part; None where nothing is held
            out, or left to race the finalists on, with the reason among ``notes``.
        notes: what the user should know before the search begins.
        height: how many rows for tokens the merged models have.
        residency: where the workers hold the models, once that is planned.
    """

    space: SearchSpace
    checkpoints: tuple[Checkpoint, ...]
    num_layers: int
    genes: tuple[Gene, ...]
    baselines: tuple[PlannedBaseline, ...]
    plan: EvaluatorPlan
    search_items: ItemSet
    holdout_items: ItemSet | None
    notes: tuple[str, ...]
    height: int
    residency: ResidencyPlan | None = None
    race_items: ItemSet | None = None

    @property
    def floors(self) -> tuple[Floor, ...]:
        """What the tasks' scores have to keep to."""
        return floors_of(self.space, [planned.label for planned in self.baselines])

    @property
    def goals(self) -> tuple[str, ...]:
        """The names of what is maximised: the goals, or ``fitness``."""
        return goal_names(self.space)

    @property
    def parameters(self) -> int:
        """How many elements the merged models' tensors have."""
        base = self.checkpoints[0]
        rows = set(base.token_tensors)
        return sum(
            (self.height if name in rows else 1)
            * math.prod(base.shape(name)[1 if name in rows else 0 :])
            for name in base.names
        )

    @property
    def worker_bytes(self) -> int:
        """Memory for one worker: base, fine-tuned models, live model, and its gradient."""
        held = sum(checkpoint.nbytes for checkpoint in self.held)
        return held + self.live_bytes + self.gradient_bytes

    @property
    def held(self) -> tuple[Checkpoint, ...]:
        """The models that each worker holds: not one that only gives a tokenizer."""
        held = {self.plan.base, *self.plan.models}
        return tuple(one for one in self.checkpoints if one.reference in held)

    @property
    def live_bytes(self) -> int:
        """Memory of the live model."""
        return self.parameters * DTYPES[self.plan.dtype].itemsize

    @property
    def gradient_bytes(self) -> int:
        """Memory of the live model's gradient, in float32; 0 where no slopes are asked for."""
        return 0 if self.plan.neighbourhood is None else 4 * self.parameters


def prepare(space: SearchSpace, *, hold_out: bool = True) -> Preparation:
    """Find the models and the tasks of a space, and check that they fit.

    Args:
        space: the space.
        hold_out: whether the held-out items are built too.

    Raises:
        InputError: everything that is wrong, at once; its subclass if all is of one kind.
    """
    faults = Faults()
    checkpoints = _open_all(space, faults)
    faults.gather(check_backend, space, checkpoints)
    if checkpoints:
        unlike = faults.gather(lambda: compare(checkpoints, vocabularies=False))
        faults.add(unlike or (), CheckpointError)
    faults.check()
    base = checkpoints[0]
    # From here on the type is explicit: recipes say it, and nothing downstream adds a default.
    space = _typed(space, type_name(base.torch_dtype))
    genes = faults.gather(space.genes, base.num_layers)
    plan = evaluator_plan(space, base)
    if genes:
        faults.gather(_resolves, space, genes, base)
        plan = replace(plan, vocabulary_of=faults.gather(_middle, space, genes, base))
    flat = plan.neighbourhood is not None and all(chooses_method(one.name) for one in genes or ())
    if flat:
        plan = replace(plan, neighbourhood=None)
    targets = faults.gather(targets_of, plan)
    faults.check()
    target = targets[-1]
    sources = [stage.tokenizer_source for _, stage in space.every_stage]
    alike = not any(one.rows for one in targets) and not any(sources)
    planned = baselines(space, base.num_layers, one_vocabulary=alike) if genes else []
    notes: list[str] = list(target.notes)
    notes += _left_out(space, planned)
    notes += [_FLAT] if flat else []
    races = space.finals.candidates > 0 and not space.several_goals
    search_items, held_out, race_items = parts_of(
        plan,
        target.vocabulary,
        base,
        faults,
        notes,
        space.fault,
        hold_out=hold_out,
        race=hold_out and races,
    )
    faults.gather(check_items, space, (search_items, held_out, race_items))
    if search_items is not None and genes:
        faults.gather(check_floors, space, search_items, [one.label for one in planned])
    faults.check()
    if not genes:
        raise SpaceError([space.fault(("genome",), "nothing varies: every value is fixed")])
    if held_out is not None and len(held_out) < FEWEST:
        notes.append(
            f"{len(held_out)} held-out items are too few to call anything a win; hold out at "
            f"least {FEWEST}, better hundreds"
        )
    # One that is behind in one goal may be ahead in another: no candidate is stopped early.
    shares, told = rung_shares("none" if space.several_goals else space.search.rungs, search_items)
    notes += [told] if told else []
    return Preparation(
        space=space,
        checkpoints=tuple(checkpoints),
        num_layers=base.num_layers,
        genes=tuple(genes),
        baselines=tuple(planned),
        height=target.vocabulary.height,
        plan=replace(plan, rungs=shares),
        search_items=search_items,
        holdout_items=held_out,
        race_items=race_items,
        notes=(*search_items.notes, *notes),
    )


def _typed(space: SearchSpace, dtype: str) -> SearchSpace:
    """The space, each of its stages with a type; ``dtype`` where they name none."""
    stages = [stage.model_copy(update={"dtype": stage.dtype or dtype}) for stage in space.stages]
    return space.model_copy(update={"dtype": space.dtype or dtype, "stages": tuple(stages)})


def _open_all(space: SearchSpace, faults: Faults) -> list[Checkpoint]:
    references = list(space.stored_models)
    for _, stage in space.every_stage:
        if stage.tokenizer_source not in (None, "base", "union"):
            # Its tokenizer, and rows for tokens that nobody else knows; it need not be merged.
            references.append(ModelReference.parse(str(stage.tokenizer_source)))
    stages = {ModelReference(stage.name) for stage in space.stages}
    references = [one for one in dict.fromkeys(references) if one not in stages]
    opened = [faults.gather(_open, reference, space) for reference in references]
    return [checkpoint for checkpoint in opened if checkpoint is not None]


def _open(reference: Any, space: SearchSpace) -> Checkpoint:
    return Checkpoint.open(reference, trust_remote_code=space.trust_remote_code)


def _resolves(space: SearchSpace, genes: Iterable[Gene], base: Checkpoint) -> None:
    """Resolve the recipes in the genome's middle and corners: what is illegal there shows."""
    layout = layout_of(base)
    for text in (_middle(space, genes, base), *_corners(space, genes, base)):
        for recipe in read_recipes(text):
            resolve(recipe, layout)


def _corners(space: SearchSpace, genes: Iterable[Gene], base: Checkpoint) -> list[str]:
    lowest = {gene.name: gene.low for gene in genes}
    highest = {gene.name: gene.high for gene in genes}
    return [decode(space, genome, base.num_layers) for genome in (lowest, highest)]


def _middle(space: SearchSpace, genes: Iterable[Gene], base: Checkpoint) -> str:
    """The recipe in the genome's middle (YAML)."""
    middle = {gene.name: (gene.low + gene.high) / 2 for gene in genes}
    return decode(space, middle, base.num_layers)


def _left_out(space: SearchSpace, planned: Sequence[PlannedBaseline]) -> list[str]:
    if space.base_model is None or not planned or any(one.label == BASE for one in planned):
        return []
    return [
        f"{space.base_model} is no baseline: {space.methods_named} does not merge it, and its "
        "vocabulary is another"
    ]
