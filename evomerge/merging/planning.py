"""Which vocabulary a recipe's models are presented in; planned before anything is read."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

from evomerge.checkpoints import (
    MergedTokenizer,
    MergedVocabulary,
    input_embedding,
    renumbered,
    same_tokenizer,
    vocabulary_faults,
)
from evomerge.errors import CheckpointError, Fault, RecipeError
from evomerge.merging.rows import Rows, by_number
from evomerge.merging.sources import MergedModel, Source
from evomerge.merging.telling import numbers_note, renamed_note
from evomerge.merging.templates import chat_template
from evomerge.merging.tokens import target_by_token
from evomerge.merging.vocabularies import Target, height_of, tokenizer_of, with_heads
from evomerge.recipe import Recipe
from evomerge.references import ModelReference


class Presentation:
    """An engine's models, presented in the vocabulary that one recipe asks for.

    Args:
        sources: the models as they are.
        recipe: the recipe; None is any that does not say.
        resident: see :meth:`Target.present`.

    Raises:
        RecipeError: the recipe names models that are not among them.
        CheckpointError, RecipeError: see :func:`plan_vocabulary`.
    """

    def __init__(
        self, sources: Mapping[ModelReference, Source], recipe: Recipe | None, *, resident: bool
    ) -> None:
        self._plain = dict(sources)
        if recipe is not None:
            self._check_held(recipe)
        merged = _merged(recipe) if recipe is not None else set(sources)
        self._plain, notes = with_heads(sources, [one for one in sources if one in merged])
        target = plan_vocabulary(recipe, self._plain)
        first = next(iter(sources.values()))
        before = isinstance(first, MergedModel) and first.vocabulary
        own_head = bool(notes) or (before and before.own_head) or False
        self.target = replace(
            target,
            vocabulary=replace(target.vocabulary, own_head=own_head),
            notes=(*notes, *target.notes),
        )
        self.sources = self.target.present(self._plain, resident=resident)
        self._fitting = {_key(recipe)} if recipe is not None else set()

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe of other models, or one that asks for another vocabulary.

        Raises:
            RecipeError: it is one.
        """
        self._check_held(recipe)
        if _key(recipe) in self._fitting:
            return
        wanted = plan_vocabulary(recipe, self._plain)
        if not wanted.agrees(self.target, recipe.models_named):
            heights = wanted.vocabulary.height, self.target.vocabulary.height
            problem = (
                f"asks for a vocabulary of {heights[0]} rows, but the models are held in one of "
                f"{heights[1]} rows, or in another order; make an engine for it (vocabulary_of)"
            )
            raise RecipeError([Fault(recipe.place, problem)])
        self._fitting.add(_key(recipe))

    def _check_held(self, recipe: Recipe) -> None:
        strangers = [model for model in recipe.models_named if model not in self._plain]
        if strangers:
            held = ", ".join(str(reference) for reference in self._plain)
            raise RecipeError(
                Fault(recipe.place, f"{model} is not among the models held: {held}")
                for model in strangers
            )


def _merged(recipe: Recipe) -> set[ModelReference]:
    return {source.model for block in recipe.blocks for source in block.sources}


def _key(recipe: Recipe) -> Hashable:
    """Equal for recipes that ask for the same vocabulary of the same models."""
    asked = (recipe.tokenizer_source, repr(recipe.tokenizer))
    return (recipe.models_named, recipe.base_model, asked, frozenset(recipe.labels))


def plan_vocabulary(recipe: Recipe | None, sources: Mapping[ModelReference, Source]) -> Target:
    """The vocabulary of the models that are merged from a recipe.

    Args:
        recipe: the recipe; None stands for one about all the sources that says nothing about the
            tokenizer.
        sources: the models that it names, as they are; the first one is its first.

    Raises:
        CheckpointError: tokens have other numbers and the recipe does not say to match rows by
            token, or a tokenizer that is needed cannot be read.
        RecipeError: what the recipe says of tokens cannot be done.
    """
    models = list(sources) if recipe is None else list(recipe.models_named)
    template = None
    if recipe is not None:
        template = chat_template(recipe, lambda: [tokenizer_of(sources[one]) for one in models])
    if recipe is not None and (recipe.tokenizer or recipe.tokenizer_source) is not None:
        return target_by_token(recipe, sources, template)
    return _target_by_number({model: sources[model] for model in models}, template)


def _target_by_number(sources: Mapping[ModelReference, Source], template: str | None) -> Target:
    lead, *others = sources.values()
    height = height_of(lead)
    faults: list[Fault] = []
    rows: dict[ModelReference, Rows] = {}
    notes: list[str] = []
    for other in others:
        faults += _renumbered(lead, other)
        if faults:
            continue
        if height_of(other) not in (height, 0):
            rows[other.reference] = by_number(height, height_of(other), lead.reference)
            known = tokenizer_of(lead).vocabulary, tokenizer_of(other).vocabulary
            notes.append(numbers_note(lead, other, *known))
        notes += _renamed(lead, other)
    if faults:
        raise CheckpointError(faults)
    own = tokenizer_of(lead)
    tokenizer = MergedTokenizer(own.like, own.added, template or own.chat_template)
    vocabulary = MergedVocabulary(tokenizer, height or lead.like.vocab_size)
    return Target(vocabulary, rows, tuple(notes))


def _renamed(lead: Source, other: Source) -> list[str]:
    stored = not isinstance(lead, MergedModel) and not isinstance(other, MergedModel)
    if stored and same_tokenizer(lead.like, other.like):
        return []
    mine, its = tokenizer_of(lead).vocabulary, tokenizer_of(other).vocabulary
    if mine is None or its is None:
        return []
    return renamed_note(lead, other, mine, its, min(height_of(lead), height_of(other)))


def _renumbered(lead: Source, other: Source) -> list[Fault]:
    if not isinstance(lead, MergedModel) and not isinstance(other, MergedModel):
        return vocabulary_faults(lead.like, other.like)
    mine, its = tokenizer_of(lead).vocabulary, tokenizer_of(other).vocabulary
    if mine is None or its is None:
        return []
    rows = min(height_of(lead), height_of(other))
    embedding = input_embedding(lead.names) or "the embeddings"
    problem = renumbered(mine, its, rows, str(lead.reference), embedding)
    return [Fault(f"{other.reference}: tokenizer", problem)] if problem else []
