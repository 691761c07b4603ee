"""The merged vocabulary of a recipe that says ``tokenizer_source`` or ``tokenizer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from evomerge.checkpoints import MergedTokenizer, MergedVocabulary, TokenTable
from evomerge.errors import CheckpointError, Fault, RecipeError
from evomerge.merging.presenting import height_of
from evomerge.merging.rows import Given, TokenRows
from evomerge.merging.sources import Source
from evomerge.merging.telling import filler_notes, token_notes
from evomerge.merging.vocabularies import Target, tokenizer_of
from evomerge.recipe import Recipe, TokenEmbedding, Tokenizer
from evomerge.references import ModelReference

Numbers = Mapping[str, int]
_ROW = itemgetter(1)


def target_by_token(
    recipe: Recipe, sources: Mapping[ModelReference, Source], template: str | None
) -> Target:
    """The vocabulary that a recipe asks for, and each model's rows in it, matched by token.

    Args:
        recipe: the recipe.
        sources: the models that it names.
        template: the chat template, where the recipe says one.

    Raises:
        CheckpointError: the tokenizer that is asked for does not exist or cannot be read.
        RecipeError: a token's row is to come from where there is none.
    """
    settings = recipe.tokenizer or Tokenizer(source=recipe.tokenizer_source or "base")
    models = {model: sources[model] for model in recipe.models_named}
    known = _Known.of(models, recipe)
    said = f"tokenizer_source: {settings.source}"
    tokenizer, added = _tokenizer(settings, recipe, known, template)
    numbers = _numbers(tokenizer, settings, recipe, known, bool(added))
    height = max(numbers.values()) + 1
    multiple = settings.pad_to_multiple_of or 1
    height = -(-height // multiple) * multiple
    rows = TokenRows(
        numbers,
        height,
        known.merged,
        recipe.base_model,
        known.spare,
        _given(settings, recipe, known),
    )
    changed = {}
    for model in known.merged:
        own = rows.of(model)
        if not own.are_first or height != known.heights[model]:
            changed[model] = own
    tokens = list(numbers)
    notes = [
        *known.notes,
        *token_notes(said, numbers, added, known.merged, known.heights, recipe.base_model),
        *filler_notes(said, [tokens[i] for i in rows.orphans()], rows.padded, height),
    ]
    return Target(MergedVocabulary(tokenizer, height), changed, tuple(notes))


@dataclass(frozen=True)
class _Known:
    """What is known of the models' tokens.

    Args:
        merged: for each model that is merged, token → row, of the tokens that it has a row for.
        spare: the same for models that only give a tokenizer or rows.
        tables: all their tokens.
        heights: how many rows each has.
        tokenizers: how each model's is made.
        notes: what the user should know.
    """

    merged: Mapping[ModelReference, Numbers]
    spare: Mapping[ModelReference, Numbers]
    tables: Mapping[ModelReference, TokenTable]
    heights: Mapping[ModelReference, int]
    tokenizers: Mapping[ModelReference, MergedTokenizer]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, models: Mapping[ModelReference, Source], recipe: Recipe) -> _Known:
        heights = {model: height_of(source) for model, source in models.items()}
        tokenizers = {model: tokenizer_of(source) for model, source in models.items()}
        tables, notes = _tables(tokenizers)
        numbers = {
            # In the order of the rows: a tokenizer lists its tokens in the order of a hash table.
            model: {t: r for t, r in sorted(table.ids.items(), key=_ROW) if r < heights[model]}
            for model, table in tables.items()
        }
        merged = {source.model for block in recipe.blocks for source in block.sources}
        return cls(
            {model: numbers[model] for model in models if model in merged},
            {model: numbers[model] for model in models if model not in merged},
            tables,
            heights,
            tokenizers,
            tuple(notes),
        )


def _tables(
    tokenizers: Mapping[ModelReference, MergedTokenizer],
) -> tuple[dict[ModelReference, TokenTable], list[str]]:
    """Every model's tokens; one without a tokenizer is taken to have the first model's."""
    found = {model: tokenizer.table for model, tokenizer in tokenizers.items()}
    lead, first = next(iter(found.items()))
    if first is None:
        problem = "has no tokenizer, by which rows could be matched; leave out tokenizer_source"
        raise CheckpointError([Fault(f"{lead}: tokenizer", problem)])
    notes = [
        f"{model} has no tokenizer: its rows are taken to stand for {lead}'s tokens"
        for model, table in found.items()
        if table is None
    ]
    return {model: table or first for model, table in found.items()}, notes


def _tokenizer(
    settings: Tokenizer, recipe: Recipe, known: _Known, template: str | None
) -> tuple[MergedTokenizer, list[str]]:
    """The merged model's tokenizer, and the tokens that are added to the one it is like."""
    lead = _lead(settings, recipe)
    added = _union(lead, known) if settings.source == "union" else {}
    there = known.tables[lead].ids
    added |= {
        token: token for token in settings.tokens if token not in there and token not in added
    }
    own = known.tokenizers[lead]
    made = MergedTokenizer(own.like, (*own.added, *added.values()), template or own.chat_template)
    return made, list(added)


def _lead(settings: Tokenizer, recipe: Recipe) -> ModelReference:
    """The model whose tokenizer the merged one is like."""
    source = settings.source
    return source if isinstance(source, ModelReference) else recipe.models_named[0]


def _union(lead: ModelReference, known: _Known) -> dict[str, Any]:
    """The tokens that the first model lacks: trained ones, then those that were added to them.

    All become added tokens, as mergekit has it: a tokenizer's trained tokens come with merges or
    scores that another one has no place for. Text is split at them before anything else.
    """
    there = known.tables[lead].ids
    trained: dict[str, Any] = {}
    special: dict[str, Any] = {}
    for model, numbers in known.merged.items():
        how = known.tables[model].added
        for token in numbers:
            if token in there:
                continue
            if token in how:
                special.setdefault(token, how[token])
            else:
                trained.setdefault(token, token)
    return {**{t: t for t in trained if t not in special}, **special}


def _numbers(
    tokenizer: MergedTokenizer, settings: Tokenizer, recipe: Recipe, known: _Known, added: bool
) -> Numbers:
    """Token → row of the merged vocabulary, in the order of the rows.

    A stored tokenizer may have tokens beyond its model's rows; they get none here either.
    """
    if added and tokenizer.table is not None:
        numbers: Numbers = tokenizer.table.ids
    else:
        numbers = {**known.merged, **known.spare}[_lead(settings, recipe)]
    return dict(sorted(numbers.items(), key=_ROW))


def _given(settings: Tokenizer, recipe: Recipe, known: _Known) -> dict[str, Given]:
    """What the recipe says of single tokens."""
    faults, found = [], {}
    for token, said in settings.tokens.items():
        problem, giver = _giver(token, said, known)
        if problem:
            faults.append(Fault(f"{recipe.place}: tokenizer.tokens.{token}", problem))
        elif said.zero or giver is not None:
            found[token] = Given(giver, said.force)
    if faults:
        raise RecipeError(faults)
    return found


def _giver(
    token: str, said: TokenEmbedding, known: _Known
) -> tuple[str | None, tuple[ModelReference, int] | None]:
    """What is wrong with a token's source, and the model and row that it means."""
    if said.model is None:
        missing = said.force and not said.zero
        return ("force needs a source: a model, or kind: zero" if missing else None), None
    row = said.token if said.token is not None else token
    if isinstance(row, str):
        rows = {**known.merged, **known.spare}[said.model]
        if row not in rows:
            return f"{said.model} has no token {row!r} with a row of its own", None
        return None, (said.model, rows[row])
    height = known.heights[said.model]
    if row >= height:
        return f"token_id {row} is refused: {said.model} has rows 0 … {height - 1}", None
    return None, (said.model, row)
