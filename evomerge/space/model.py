"""The search space: what a search may vary, on which models, judged by which tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import StrictBool, StrictStr

from evomerge.documents import key_name
from evomerge.errors import Fault
from evomerge.references import ModelReference
from evomerge.space.checks import constant, task_conflicts
from evomerge.space.decoding import check_genome, decode_stage
from evomerge.space.encoding import encode_weights, plain_genome
from evomerge.space.genes import Gene, count_groups, find_genes
from evomerge.space.meaning import changes_between, digest_of, meaning_of
from evomerge.space.objectives import PARETO, objective_conflicts
from evomerge.space.resources import ResourceSpec
from evomerge.space.searching import unfit_layers
from evomerge.space.specs import (
    FinalsSpec,
    HoldoutSpec,
    NotEmpty,
    Paths,
    SearchSettings,
    TaskSpec,
)
from evomerge.space.stage import Stage
from evomerge.space.strict import Conflict


class SearchSpace(Stage):
    """What a search may vary, on which models, judged by which tasks. Made by ``load_space``.

    What a ``Stage`` has, and:

    Args:
        tasks: what is scored.
        objective: ``weighted`` is one fitness, the tasks' weighted mean; ``pareto`` makes a goal of
            each task whose weight is not 0.
        holdout: the items to hold out; None is whatever the search leaves.
        finals: how the best candidates are raced at the end.
        search: how.
        resources: with what.
        apply_chat_template, fewshot_as_multiturn, system_instruction: how questions are put, in
            lm-eval's words.
        include_path: folders with task definitions.
        trust_remote_code: whether models may bring their own code.
        confirm_unsafe: whether tasks may run the code that the model writes.
        plain_sum: fitness is Σ weight × metric (mergekit-evolve's), not its weighted mean.
        stages: the merges before this one, in order; each may name the results of those before it
            as models of its own, and the space's own merge is the last.
        source: the file that the space was read from.
    """

    hidden: ClassVar[tuple[str, ...]] = ("source", "stages")

    tasks: Annotated[tuple[TaskSpec, ...], NotEmpty]
    objective: Literal["weighted", "pareto"] = "weighted"
    holdout: HoldoutSpec | None = None
    finals: FinalsSpec = FinalsSpec()
    search: SearchSettings = SearchSettings()
    resources: ResourceSpec = ResourceSpec()
    apply_chat_template: StrictBool = False
    fewshot_as_multiturn: StrictBool = True
    system_instruction: StrictStr | None = None
    include_path: Paths = ()
    trust_remote_code: StrictBool = False
    confirm_unsafe: StrictBool = False
    plain_sum: StrictBool = False
    stages: tuple[Stage, ...] = ()
    source: Path = Path("space.yaml")

    @classmethod
    def conflicts(cls, fields: Mapping[str, Any]) -> Iterator[Conflict]:
        yield from super().conflicts(fields)
        yield from task_conflicts(fields)
        yield from unfit_layers(fields)
        yield from objective_conflicts(fields)
        stages = [dict(stage) for stage in fields.get("stages", ())]
        hints = [constant(one) for one in (*stages, fields)]
        if all(hints):
            yield ("genome",), f"nothing varies: {hints[-1]}"

    # A class that defines one of the two must define both.
    __eq__ = Stage.__eq__
    __hash__ = Stage.__hash__

    def fault(self, path: tuple[str | int, ...], problem: str) -> Fault:
        """A fault at one of the space's keys, with its line if the space was read from a file."""
        if self._origin is not None:
            return self._origin.fault(path, problem)
        return Fault(f"{self.source}: {key_name(path)}", problem)

    @property
    def several_goals(self) -> bool:
        """Whether each task is a goal of its own."""
        return self.objective == PARETO

    @property
    def every_stage(self) -> tuple[tuple[str, Stage], ...]:
        """Each merge with the prefix of its genes' names, the space's own (without one) last."""
        return (*((f"{stage.name}/", stage) for stage in self.stages), ("", self))

    @property
    def stored_models(self) -> tuple[ModelReference, ...]:
        """The models that must be had, which no stage makes: first the one that the merged model
        has configuration and tokenizer of (the last merge's base, or that of the stage that made
        it), then the others in the order of the file."""
        made = {ModelReference(stage.name): stage for stage in self.stages}
        first = self.base_model or self.models[0]
        while first in made:
            first = made[first].base_model or made[first].models[0]
        named = [first]
        for stage in (*self.stages, self):
            named += [stage.base_model] if stage.base_model else []
            named += stage.models
        return tuple(dict.fromkeys(model for model in named if model not in made))

    @property
    def methods_named(self) -> str:
        """The methods in words: ``dare_ties``, ``ties or slerp``, ``dare_ties, then linear``."""
        return ", then ".join(" or ".join(stage.methods) for _, stage in self.every_stage)

    def group_count(self, num_layers: int) -> int:
        """How many layer groups (with ``smooth``: knots) a model of so many layers has.

        Raises:
            SpaceError: ``genome.layers`` does not fit.
        """
        return count_groups(self, num_layers)

    def genes(self, num_layers: int) -> tuple[Gene, ...]:
        """What is searched, in a fixed order: for each stage weights, densities, epsilons, gammas,
        trims, lambda, t, select_topk, and the method where there are several.

        A gene is called ``weight/<label>/<filter or rest>/<group>``, without the parts that do not
        vary, so that its name reads like the recipe; an earlier stage's with the stage's name
        before it. Where the method is searched, the genes that it does not read are inert.

        Args:
            num_layers: of the models.

        Raises:
            SpaceError: ``genome.layers`` does not fit.
        """
        return tuple(
            gene
            for prefix, stage in self.every_stage
            for gene in find_genes(stage, num_layers, self.search, prefix)
        )

    def recipe_mappings(
        self, genome: Mapping[str, float], num_layers: int
    ) -> tuple[dict[str, Any], ...]:
        """The recipe that a genome stands for: one document for each stage, the last one's last,
        as plain data in the shape of mergekit's YAML.

        Every genome has one that can be merged: epsilon is a share of what density leaves room for
        or is cut down to it, and a normalized ``linear`` whose weights are all 0 blends its models
        equally.

        Args:
            genome: a value within its bounds for every gene.
            num_layers: of the models.

        Raises:
            SpaceError: genes are missing, unknown or out of bounds, or the layers do not fit.
        """
        check_genome(self.genes(num_layers), genome)
        mappings = []
        for prefix, stage in self.every_stage:
            mapping = decode_stage(stage, genome, num_layers, prefix)
            mappings.append({"name": stage.name, **mapping} if prefix else mapping)
        return tuple(mappings)

    def recipe_mapping(self, genome: Mapping[str, float], num_layers: int) -> dict[str, Any]:
        """The recipe of a space of one stage; see ``recipe_mappings``.

        Raises:
            SpaceError: as ``recipe_mappings``.
            ValueError: the space has several stages.
        """
        if self.stages:
            raise ValueError(
                "the space has several stages: recipe_mappings gives all their recipes"
            )
        return self.recipe_mappings(genome, num_layers)[0]

    def encode(
        self,
        num_layers: int,
        weights: Mapping[str, float],
        *,
        density: float | None = None,
        lambda_: float | None = None,
        epsilon: float | None = None,
        trim: float | None = None,
        select_topk: float | None = None,
        method: str | None = None,
    ) -> dict[str, float] | None:
        """The genome whose recipe gives each model of the last merge one weight everywhere.

        Earlier stages blend their own models equally, as far as the space allows.

        Args:
            num_layers: of the models.
            weights: label → weight, for every fine-tuned model; for ``slerp`` its one is ``t``.
            density, lambda_, epsilon, trim, select_topk: the value of every model whose weight is
                not 0; None is the method's default, or what the space allows that is closest.
            method: which method, where the space has several; None is the first that can.

        Returns:
            A value for every gene; None where the space does not allow it, where ``linear`` would
            have nothing to blend (all weights 0), or where the method has no weights to say it by.

        Raises:
            SpaceError: ``genome.layers`` does not fit.
            ValueError: ``weights`` lacks a label or has an unknown one.
        """
        wanted = {
            **{"density": density, "epsilon": epsilon, "trim": trim},
            **{"lambda": lambda_, "select_topk": select_topk},
        }
        found = encode_weights(self, num_layers, weights, wanted, method)
        if found is None:
            return None
        return {
            prefix + name: value
            for prefix, stage in self.every_stage
            for name, value in (plain_genome(stage, num_layers) if prefix else found).items()
        }

    def meaning(self) -> dict[str, Any]:
        """What makes the results of a study comparable, as plain data; see ``digest``."""
        return meaning_of(self)

    def digest(self) -> str:
        """A hash of what the space means: models, method, genome, tasks, items, seeds, type and
        prompts. Not of resources, sampler, task folders, names, or where the models lie together.
        """
        return digest_of(self)

    def describe_changes(self, before: SearchSpace) -> list[str]:
        """What means something else in this space than in another, key by key.

        Returns:
            Such as ``genome.density is [0.1, 1.0], was [0.1, 0.9]``; empty if the digests agree.
        """
        return changes_between(self.meaning(), before.meaning())
