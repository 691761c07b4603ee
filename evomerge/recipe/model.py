"""A recipe: an explicit merge, as mergekit's YAML says it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.documents import Document, read_documents
from evomerge.errors import Fault, RecipeError
from evomerge.recipe.methods import (
    MAGNITUDE,
    MERGEKIT,
    METHODS,
    PAPER,
    RANDOM,
    TASK_VECTORS,
    WEIGHTS,
    MethodSpec,
)
from evomerge.recipe.settings import Parameters
from evomerge.recipe.tokenizer import Rename, Tokenizer
from evomerge.references import ModelReference, labels


@dataclass(frozen=True)
class Source:
    """One model of a slice.

    Args:
        model: the model.
        layers: first layer and the one after the last; None for all of them (``models:``).
        parameters: what this model alone is given.
        place: where it stands in its file, for messages.
    """

    model: ModelReference
    layers: tuple[int, int] | None
    parameters: Parameters
    place: str = field(default="", compare=False, repr=False)

    def renamed(self, rename: Rename) -> Source:
        """The same with its model renamed."""
        return replace(self, model=rename(self.model))


@dataclass(frozen=True)
class Slice:
    """A run of output layers.

    Args:
        sources: the models that it is merged from, each with as many layers.
        base_model: the base of this slice, if not the recipe's.
        parameters: what holds for this slice.
        place: where it stands in its file, for messages.
    """

    sources: tuple[Source, ...]
    base_model: ModelReference | None
    parameters: Parameters
    place: str = field(default="", compare=False, repr=False)

    def renamed(self, rename: Rename) -> Slice:
        """The same with every model renamed."""
        base = rename(self.base_model) if self.base_model else None
        sources = tuple(source.renamed(rename) for source in self.sources)
        return replace(self, base_model=base, sources=sources)

    @property
    def num_layers(self) -> int | None:
        """How many output layers it makes; None for all of the models' layers."""
        layers = self.sources[0].layers
        return None if layers is None else layers[1] - layers[0]


@dataclass(frozen=True)
class Module:
    """The one named part of a model, where a recipe says ``modules:``.

    Args:
        name: the module's name (mergekit calls a language model's only one ``default``).
        models: whole models to merge, or None.
        slices: slices to merge, or None. One of the two is given.
        parameters: what holds for this module.
    """

    name: str
    models: tuple[Source, ...] | None
    slices: tuple[Slice, ...] | None
    parameters: Parameters

    def renamed(self, rename: Rename) -> Module:
        """The same with every model renamed."""
        return replace(
            self,
            models=self.models and tuple(one.renamed(rename) for one in self.models),
            slices=self.slices and tuple(one.renamed(rename) for one in self.slices),
        )


@dataclass(frozen=True)
class Recipe:
    """One merge. Made by ``from_mapping`` or ``load_recipe``, which check it.

    Args:
        merge_method: a key of ``METHODS``.
        base_model: the model that task vectors are taken from and added to.
        models: whole models to merge, the base not among them (``linear`` apart, where the base is
            a model like the others); or None.
        slices: runs of output layers; or None.
        modules: the named parts; or None. Exactly one of the three is given.
        parameters: what holds for everything.
        dtype: the type of mergekit's arithmetic; without ``out_dtype`` also of what is saved.
        out_dtype: the type of what is saved.
        tokenizer_source: ``union``, ``base`` or a model.
        tokenizer: the long form of ``tokenizer_source``.
        chat_template: ``auto``, a template's name or a template.
        name: what later documents of the same file call the result.
        mask_seed: the seed of the random masks (ours; mergekit ignores the key).
        variant: ``mergekit``, or ``paper``: the arithmetic of the method's own code (ours).
        mask_by: what DARE's masks go by: ``random``, or ``magnitude`` (ours).
        mask_of: what they are put on: ``task_vectors``, or the models' ``weights`` (ours).
        place: where the recipe stands, for messages.
    """

    merge_method: str
    base_model: ModelReference | None
    models: tuple[Source, ...] | None
    slices: tuple[Slice, ...] | None
    modules: tuple[Module, ...] | None
    parameters: Parameters
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | ModelReference | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    name: str | None = None
    mask_seed: int = 0
    variant: str = MERGEKIT
    mask_by: str = RANDOM
    mask_of: str = TASK_VECTORS
    place: str = field(default="recipe", compare=False, repr=False)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], source: Document | str = "recipe") -> Recipe:
        """Read and check plain data in the shape of mergekit's YAML.

        Args:
            data: one YAML document's data.
            source: the document (for the lines of its keys) or a name to use in messages.

        Raises:
            RecipeError: everything that is wrong with it, at once.
        """
        from evomerge.recipe.reading import read_recipe

        return read_recipe(data, source)

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> Recipe:
        """Read and check one recipe's YAML, its models' paths as they stand.

        Args:
            text: a single YAML document.
            source: a name to use in messages.

        Raises:
            RecipeError: everything that is wrong with it, at once.
        """
        documents = read_documents(text, source, RecipeError)
        if len(documents) != 1:
            raise RecipeError([Fault(source, f"holds {len(documents)} recipes; 1 is expected")])
        return cls.from_mapping(documents[0].data, documents[0])

    def to_mapping(self) -> dict[str, Any]:
        """Plain data that ``from_mapping`` and mergekit read as the same recipe."""
        from evomerge.recipe.writing import to_mapping

        return to_mapping(self)

    def to_yaml(self) -> str:
        """The recipe as YAML: floats at full precision, lists of numbers on one line."""
        from evomerge.recipe.writing import to_yaml

        return to_yaml(self)

    @property
    def method(self) -> MethodSpec:
        """What the merge method reads, and its defaults."""
        return METHODS[self.merge_method]

    @property
    def reads(self) -> tuple[str, ...]:
        """The parameters that change the result of its method in its variant."""
        return self.method.reads(self.variant)

    @property
    def draws_masks(self) -> bool:
        """Whether the result depends on ``mask_seed``."""
        return self.method.draws_masks and self.mask_by == RANDOM

    def beyond_mergekit(self) -> list[str]:
        """Why mergekit, which ignores our keys, would make another model of this recipe.

        Random masks are no reason: their numbers differ, as mergekit's own do from run to run.
        """
        found = []
        if self.variant == PAPER:
            found.append(f"variant: paper ({self.merge_method} as its own code computes it)")
        if self.mask_by == MAGNITUDE:
            found.append("mask_by: magnitude (the largest elements are kept, not random ones)")
        if self.mask_of == WEIGHTS:
            found.append("mask_of: weights (the models' weights are masked, not task vectors)")
        return found

    @property
    def blocks(self) -> tuple[Slice, ...]:
        """The slices; whole models are one slice over all layers, to which the base belongs."""
        if self.slices is not None:
            return self.slices
        module = self.modules[0] if self.modules else None
        if module and module.slices is not None:
            return module.slices
        sources = (module.models if module else self.models) or ()
        if self.base_model and all(source.model != self.base_model for source in sources):
            sources += (Source(self.base_model, None, Parameters(), f"{self.place}: base_model"),)
        return (Slice(sources, None, Parameters(), self.place),)

    def base_of(self, block: Slice) -> ModelReference | None:
        """The base model of one of the ``blocks``; None for a method without one."""
        return (block.base_model or self.base_model) if self.method.takes_base else None

    def levels(self, block: Slice, source: Source | None = None) -> tuple[Parameters, ...]:
        """The parameters that hold for a block and one of its models, the strongest first."""
        own = (source.parameters,) if source else ()
        module = (self.modules[0].parameters,) if self.modules else ()
        return (*own, block.parameters, *module, self.parameters)

    @property
    def wiring(self) -> Hashable:
        """Equal for recipes whose merged tensors are made of the same tensors."""
        blocks = self.blocks
        return tuple(
            (self.base_of(block), tuple((one.model, one.layers) for one in block.sources))
            for block in blocks
        )

    @property
    def models_named(self) -> tuple[ModelReference, ...]:
        """Every model that the recipe names, once: the base first, then in the recipe's order."""
        named = [self.base_model] if self.base_model else []
        for block in self.blocks:
            named += [block.base_model] if block.base_model else []
            named += [source.model for source in block.sources]
        if isinstance(self.tokenizer_source, ModelReference):
            named.append(self.tokenizer_source)
        if self.tokenizer:
            named += self.tokenizer.models()
        return tuple(dict.fromkeys(named))

    @property
    def labels(self) -> dict[ModelReference, str]:
        """The short names of the models that contribute to the merge, in the recipe's order."""
        return labels(
            dict.fromkeys(
                source.model
                for block in self.blocks
                for source in block.sources
                if source.model != self.base_of(block)
            )
        )

    def renamed(self, rename: Rename) -> Recipe:
        """The same recipe with every model's reference put through ``rename``."""
        source = self.tokenizer_source
        return replace(
            self,
            base_model=rename(self.base_model) if self.base_model else None,
            models=self.models and tuple(one.renamed(rename) for one in self.models),
            slices=self.slices and tuple(one.renamed(rename) for one in self.slices),
            modules=self.modules and tuple(one.renamed(rename) for one in self.modules),
            tokenizer_source=rename(source) if isinstance(source, ModelReference) else source,
            tokenizer=self.tokenizer.renamed(rename) if self.tokenizer else None,
        )
