"""What a tokenizer's tokens are, as transformers has them: numbers, and how they were added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenTable:
    """A tokenizer's tokens.

    Args:
        ids: token → number from 0.
        added: token → how it was added to the trained ones (``tokenizers.AddedToken``), for those
            that were, in the order of their numbers.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Any) -> TokenTable:
        """The table of a transformers tokenizer."""
        added = sorted(tokenizer.added_tokens_decoder.items())
        return cls(tokenizer.get_vocab(), {info.content: info for _, info in added})

    @property
    def vocabulary(self) -> Vocabulary:
        """The same, without how tokens were added."""
        return Vocabulary(dict(self.ids), frozenset(self.added))
