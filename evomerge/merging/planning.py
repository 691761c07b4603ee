"""Which vocabulary a recipe's models are presented in; planned before anything is read."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
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
from evomerge.merging.presenting import height_of
from evomerge.merging.rows import Rows, by_number
from evomerge.merging.sources import Source
from evomerge.merging.telling import numbers_note, renamed_note
from evomerge.merging.templates import chat_template
from evomerge.merging.tokens import target_by_token
from evomerge.merging.vocabularies import Target, tokenizer_of, with_heads
from evomerge.recipe import Recipe
from evomerge.references import ModelReference


class Presentation:
    """An engine's models, presented in the vocabulary that one recipe asks for.

    Args:
        sources: the models as they are.
        recipe: the recipe; None is any that does not say. Models that number their tokens otherwise
            are then presented as they are, and recipes that name them are refused.
        resident: see :meth:`Target.present`.
        target: the recipe's vocabulary, if it is known already.

    Attributes:
        plain: the models as they are.
        sources: the models as they are presented.
        target: the vocabulary.

    Raises:
        RecipeError: the recipe names models that are not among them.
        CheckpointError, RecipeError: see :func:`plan_vocabulary`.
    """

    def __init__(
        self,
        sources: Mapping[ModelReference, Source],
        recipe: Recipe | None,
        *,
        resident: bool,
        target: Target | None = None,
    ) -> None:
        self.plain = dict(sources)
        if recipe is not None:
            self.check_held(recipe)
        merged = _merged(recipe) if recipe is not None else set(sources)
        self._headed, notes = with_heads(sources, [one for one in sources if one in merged])
        self.target = target or self._plan(recipe, notes)
        self.sources = self.target.present(self._headed, resident=resident)
        self._fitting = {key_of(recipe)} if recipe is not None else set()

    def _plan(self, recipe: Recipe | None, notes: Sequence[str]) -> Target:
        first = next(iter(self.plain.values()))
        try:
            target = plan_vocabulary(recipe, self._headed)
        except CheckpointError:
            if recipe is not None:
                raise
            height = height_of(first) or first.like.vocab_size
            target = Target(MergedVocabulary(tokenizer_of(first), height), {})
        before = first.vocabulary
        own_head = bool(notes) or (before is not None and before.own_head)
        vocabulary = replace(target.vocabulary, own_head=own_head)
        return replace(target, vocabulary=vocabulary, notes=(*notes, *target.notes))

    def fits(self, recipe: Recipe) -> bool:
        """Whether :meth:`check` has nothing against the recipe's vocabulary.

        Raises:
            RecipeError: it names models that are not held.
            CheckpointError, RecipeError: see :func:`plan_vocabulary`.
        """
        self.check_held(recipe)
        if key_of(recipe) not in self._fitting:
            wanted = plan_vocabulary(recipe, self._headed)
            if not wanted.agrees(self.target, recipe.models_named):
                return False
            self._fitting.add(key_of(recipe))
        return True

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe of other models, or one that asks for another vocabulary.

        Raises:
            RecipeError: it is one.
        """
        if not self.fits(recipe):
            height = self.target.vocabulary.height
            problem = (
                f"asks for another vocabulary than the one of {height} rows that the models are "
                "held in; make an engine for it (vocabulary_of)"
            )
            raise RecipeError([Fault(recipe.place, problem)])

    def check_held(self, recipe: Recipe, others: Collection[ModelReference] = ()) -> None:
        """Refuse a recipe of models that are neither held nor among others, as stages' results.

        Raises:
            RecipeError: it names one.
        """
        there = dict.fromkeys((*self.plain, *others))
        strangers = [model for model in recipe.models_named if model not in there]
        if strangers:
            held = ", ".join(str(reference) for reference in there)
            raise RecipeError(
                Fault(recipe.place, f"{model} is not among the models held: {held}")
                for model in strangers
            )


def spare_models(recipe: Recipe | None) -> set[ModelReference]:
    """The models that only give a tokenizer, or rows for its tokens."""
    return set() if recipe is None else set(recipe.models_named) - _merged(recipe)


def _merged(recipe: Recipe) -> set[ModelReference]:
    return {source.model for block in recipe.blocks for source in block.sources}


def key_of(recipe: Recipe) -> Hashable:
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
    stored = lead.vocabulary is None and other.vocabulary is None
    if stored and same_tokenizer(lead.like, other.like):
        return []
    mine, its = tokenizer_of(lead).vocabulary, tokenizer_of(other).vocabulary
    if mine is None or its is None:
        return []
    return renamed_note(lead, other, mine, its, min(height_of(lead), height_of(other)))


def _renumbered(lead: Source, other: Source) -> list[Fault]:
    if lead.vocabulary is None and other.vocabulary is None:
        return vocabulary_faults(lead.like, other.like)
    mine, its = tokenizer_of(lead).vocabulary, tokenizer_of(other).vocabulary
    if mine is None or its is None:
        return []
    rows = min(height_of(lead), height_of(other))
    embedding = input_embedding(lead.names) or "the embeddings"
    problem = renumbered(mine, its, rows, str(lead.reference), embedding)
    return [Fault(f"{other.reference}: tokenizer", problem)] if problem else []
