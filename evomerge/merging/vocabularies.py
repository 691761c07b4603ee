"""The vocabulary of a merged model, and every model's rows in its order.

The engine and its kernels see models whose embeddings and output heads are equally tall and whose
rows of the same number stand for the same token: :class:`Revocabulated` presents them so. Hence an
element's index, which keys its mask (with the seed, the model's label and the tensor's name), is
its index in the merged vocabulary.

Two ways to match rows:

- by number, where a recipe says nothing about the tokenizer: the first model's vocabulary is the
  merged one (that of the base, where there is one). Models whose token numbers contradict it are
  refused. Rows beyond it are left out; rows that a model lacks are the first model's.
- by token, where it says ``tokenizer_source`` or ``tokenizer``: see ``rows``. What mergekit 0.1.5
  does otherwise: it gives zeros to tokens of a tokenizer whose model is not merged (we take that
  model's rows), numbers the tokens that a union adds in the order of a hash table (we go by the
  models' order and the tokens' numbers), counts only the models of the slice that a tensor belongs
  to, and fails on tokens without a row and on numbers that are not contiguous.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evomerge.checkpoints import (
    MergedTokenizer,
    MergedVocabulary,
    is_head,
)
from evomerge.merging.presenting import Revocabulated, WithHead
from evomerge.merging.rows import Rows
from evomerge.merging.sources import Source
from evomerge.references import ModelReference


def tokenizer_of(source: Source) -> MergedTokenizer:
    """The tokenizer of a model, also of an earlier stage's result."""
    vocabulary = source.vocabulary
    return vocabulary.tokenizer if vocabulary is not None else MergedTokenizer(source.like)


def with_heads(
    sources: Mapping[ModelReference, Source], merged: Iterable[ModelReference]
) -> tuple[dict[ModelReference, Source], list[str]]:
    """The models, the first one with an output head of its own if one of the others has one.

    Args:
        sources: the models; the first gives the merged one its tensors.
        merged: those that are merged.

    Returns:
        The models, and in words what is done.
    """
    lead, first = next(iter(sources.items()))
    heads = {
        name: model
        for model in merged
        for name in sources[model].names
        # An earlier stage's result is asked through the model that it is like.
        if is_head(name) and name not in first.names and (name in first or name in first.like)
    }
    if not heads:
        return dict(sources), []
    notes = [
        f"{model} has a {name} of its own, while {lead}'s is its embeddings: so that they can be "
        "merged, the merged model has one of its own"
        for name, model in heads.items()
    ]
    return {**sources, lead: WithHead(first, heads)}, notes


@dataclass(frozen=True)
class Target:
    """The vocabulary of the models that are merged from a recipe.

    Args:
        vocabulary: its tokenizer and its height.
        rows: for each model whose rows do not stand so already, how they are presented.
        notes: what is left out, added or remapped, in words.
    """

    vocabulary: MergedVocabulary
    rows: Mapping[ModelReference, Rows]
    notes: tuple[str, ...] = ()

    def agrees(self, other: Target, models: Iterable[ModelReference]) -> bool:
        """Whether the models are presented in the same way for both."""
        if self.vocabulary.height != other.vocabulary.height:
            return False
        pairs = [(self.rows.get(model), other.rows.get(model)) for model in models]
        return all(a is b or (a is not None and b is not None and a.agrees(b)) for a, b in pairs)

    def present(
        self, sources: Mapping[ModelReference, Source], *, resident: bool
    ) -> dict[ModelReference, Source]:
        """The models, each with its rows in this vocabulary's order.

        Args:
            sources: the models as they are.
            resident: keep the rows that were put in order, instead of the ones they came from.
        """
        made = {
            model: Revocabulated(sources[model], rows, sources, keep=resident)
            for model, rows in self.rows.items()
        }
        if resident:
            for one in made.values():
                one.fill()
            for one in made.values():
                one.let_go()
        return {model: made.get(model, source) for model, source in sources.items()}
