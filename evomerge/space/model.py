"""The search space: what a search may vary, on which models, judged by which tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, StrictBool, StrictStr

from evomerge.documents import key_name
from evomerge.errors import Fault
from evomerge.space.checks import space_conflicts
from evomerge.space.decoding import decode_genome
from evomerge.space.encoding import encode_weights
from evomerge.space.genes import Gene, count_groups, find_genes
from evomerge.space.meaning import changes_between, digest_of, meaning_of
from evomerge.space.origin import Origin
from evomerge.space.specs import (
    GenomeSpec,
    HoldoutSpec,
    MethodName,
    Model,
    Natural,
    NotEmpty,
    Paths,
    ResourceSpec,
    SearchSettings,
    TaskSpec,
    Text,
)
from evomerge.space.strict import Conflict, Strict


class SearchSpace(Strict):
    """What a search may vary, on which models, judged by which tasks. Made by ``load_space``.

    Args:
        models: the fine-tuned models, in order; labels are ``references.labels`` of them.
        merge_method: one of the methods that a space can name.
        base_model: what task vectors are taken from and added to. ``linear`` blends only
            ``models``; a base model that is not among them is there to be compared with.
        tasks: what is scored.
        genome: what varies.
        holdout: the items to hold out; None is whatever the search leaves.
        search: how.
        resources: with what.
        dtype: the type of the merged model; None is the base checkpoint's.
        mask_seed: of the random masks.
        tokenizer_source: ``union``, ``base`` or a model.
        apply_chat_template, fewshot_as_multiturn, system_instruction: how questions are put, in
            lm-eval's words.
        include_path: folders with task definitions.
        trust_remote_code: whether models may bring their own code.
        plain_sum: fitness is Σ weight × metric (mergekit-evolve's), not its weighted mean.
        name: the study's, where nobody says otherwise.
        source: the file that the space was read from.
    """

    hidden: ClassVar[tuple[str, ...]] = ("source",)

    models: Annotated[tuple[Model, ...], NotEmpty]
    merge_method: MethodName
    base_model: Model | None = None
    tasks: Annotated[tuple[TaskSpec, ...], NotEmpty]
    genome: GenomeSpec = GenomeSpec()
    holdout: HoldoutSpec | None = None
    search: SearchSettings = SearchSettings()
    resources: ResourceSpec = ResourceSpec()
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    mask_seed: Natural = 0
    tokenizer_source: Text | None = None
    apply_chat_template: StrictBool = False
    fewshot_as_multiturn: StrictBool = True
    system_instruction: StrictStr | None = None
    include_path: Paths = ()
    trust_remote_code: StrictBool = False
    plain_sum: StrictBool = False
    name: Annotated[StrictStr, Field(pattern=r"^[^/\\.][^/\\]*$")] = "search"
    source: Path = Path("space.yaml")

    _origin: Origin | None = PrivateAttr(default=None)

    @classmethod
    def conflicts(cls, fields: Mapping[str, Any]) -> Iterator[Conflict]:
        return space_conflicts(fields)

    def __eq__(self, other: object) -> bool:
        # Where the lines of the file are is no part of what a space means.
        return isinstance(other, SearchSpace) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def remember(self, origin: Origin) -> None:
        """Keep where the keys stand, for messages; no part of what the space means."""
        self._origin = origin

    def fault(self, path: tuple[str | int, ...], problem: str) -> Fault:
        """A fault at one of the space's keys, with its line if the space was read from a file."""
        if self._origin is not None:
            return self._origin.fault(path, problem)
        return Fault(f"{self.source}: {key_name(path)}", problem)

    def group_count(self, num_layers: int) -> int:
        """How many layer groups (with ``smooth``: knots) a model of so many layers has.

        Raises:
            SpaceError: ``genome.layers`` does not fit.
        """
        return count_groups(self, num_layers)

    def genes(self, num_layers: int) -> tuple[Gene, ...]:
        """What is searched, in a fixed order: weights, densities, epsilons, lambda.

        A gene is called ``weight/<label>/<filter or rest>/<group>``, without the parts that do not
        vary, so that its name reads like the recipe.

        Args:
            num_layers: of the models.

        Raises:
            SpaceError: ``genome.layers`` does not fit.
        """
        return find_genes(self, num_layers)

    def recipe_mapping(self, genome: Mapping[str, float], num_layers: int) -> dict[str, Any]:
        """The recipe that a genome stands for, as plain data in the shape of mergekit's YAML.

        Every genome has one that can be merged: DELLA's epsilon is cut down to what density leaves
        room for, and a normalized ``linear`` whose weights are all 0 blends its models equally.

        Args:
            genome: a value within its bounds for every gene.
            num_layers: of the models.

        Raises:
            SpaceError: genes are missing, unknown or out of bounds, or the layers do not fit.
        """
        return decode_genome(self, genome, num_layers)

    def encode(
        self,
        num_layers: int,
        weights: Mapping[str, float],
        *,
        density: float | None = None,
        lambda_: float | None = None,
        epsilon: float | None = None,
    ) -> dict[str, float] | None:
        """The genome whose recipe gives each model one weight everywhere.

        Args:
            num_layers: of the models.
            weights: label → weight, for every fine-tuned model.
            density, lambda_, epsilon: the value of every model whose weight is not 0; None is the
                method's default (1, 1, 0.15), or what the space allows that is closest to it.

        Returns:
            A value for every gene; None where the space does not allow it, or where ``linear``
            would have nothing to blend (all weights 0).

        Raises:
            SpaceError: ``genome.layers`` does not fit.
            ValueError: ``weights`` lacks a label or has an unknown one.
        """
        return encode_weights(
            self, num_layers, weights, density=density, lambda_=lambda_, epsilon=epsilon
        )

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
