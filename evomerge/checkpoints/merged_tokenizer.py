"""The tokenizer of a merged model: a stored model's, with tokens added, with a chat template."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.configuration import text_section
from evomerge.checkpoints.folders import COMPANIONS
from evomerge.checkpoints.living import resize, untie
from evomerge.checkpoints.tokens import TokenTable
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.errors import CheckpointError, Fault

# What transformers notes about where it loaded a tokenizer from; it says nothing about the model.
_CHATTER = ("is_local", "local_files_only", "name_or_path")

CHAT_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class MergedTokenizer:
    """How the tokenizer of a merged model is made.

    Args:
        like: the stored model whose tokenizer it is, apart from what follows.
        added: tokens (or ``tokenizers.AddedToken``) that are added, in this order.
        chat_template: instead of the model's own; None keeps that.
    """

    like: Checkpoint
    added: tuple[Any, ...] = field(default=(), compare=False)
    chat_template: str | None = None

    def load(self) -> Any:
        """transformers' tokenizer.

        Raises:
            CheckpointError: the model has none, or it cannot be loaded.
        """
        tokenizer = self.like.tokenizer()
        if self.added:
            tokenizer.add_tokens(list(self.added))
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

    @cached_property
    def table(self) -> TokenTable | None:
        """Tokens and their numbers as transformers has them; None where there is no tokenizer."""
        return TokenTable.of(self.load()) if self.added else self.like.token_table

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Tokens and their numbers; None where no file tells them in plain text."""
        if not self.added:
            return self.like.vocabulary
        return self.table.vocabulary if self.table else None

    def files(self) -> dict[str, bytes]:
        """The tokenizer's files by name: the model's own bytes where no token is added."""
        found = self._saved() if self.added else self._copied()
        if self.chat_template is not None:
            found[CHAT_TEMPLATE] = self.chat_template.encode()
        return found

    def special_tokens(self) -> dict[str, Any]:
        """The numbers of special tokens as the model's configuration has them."""
        section = {**self.like.config, **text_section(self.like.config)}
        return {key: value for key, value in section.items() if key.endswith("_token_id")}

    def _copied(self) -> dict[str, bytes]:
        folder = self.like.tokenizer_folder
        patterns = (name for name in COMPANIONS if name != "generation_config.json")
        paths = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def _saved(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                self.load().save_pretrained(folder)
            except (OSError, ValueError, NotImplementedError) as problem:
                why = f"its tokenizer cannot be written with tokens added: {problem}"
                raise CheckpointError([Fault(str(self.like.reference), why)]) from problem
            saved = {
                str(path.relative_to(folder)): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
        config = saved.get("tokenizer_config.json")
        if config is not None:
            saved["tokenizer_config.json"] = _without_chatter(config)
        return saved


@dataclass(frozen=True)
class MergedVocabulary:
    """The tokens of a merged model.

    Args:
        tokenizer: turns texts into numbers.
        height: how many rows embeddings and output head have.
        own_head: whether the output head has rows of its own though that of the model which the
            merged one is like shares its embeddings'.
    """

    tokenizer: MergedTokenizer
    height: int
    own_head: bool = False

    def changes(self, like: Checkpoint) -> Mapping[str, Any]:
        """What the configuration of a model like ``like`` says otherwise.

        ``vocab_size``, where the number of rows differs; the special tokens' numbers, where the
        tokenizer is another model's. A number that no row has is None.
        """
        changes: dict[str, Any] = {"tie_word_embeddings": False} if self.own_head else {}
        if self.height != like.vocab_size:
            changes["vocab_size"] = self.height
        if self.tokenizer.like.tokenizer_folder != like.tokenizer_folder:
            changes |= self.tokenizer.special_tokens()
        if not changes:
            return changes
        known = MergedTokenizer(like).special_tokens() | changes
        for key, value in known.items():
            if key.endswith("_token_id") and _too_large(value, self.height):
                changes[key] = None
        return changes

    def fitted(self, model: torch.nn.Module, like: Checkpoint) -> torch.nn.Module:
        """A live model, made from ``like``, as tall as this; new rows have no particular values.

        Raises:
            CheckpointError: transformers cannot resize it.
        """
        changes = self.changes(like)
        if not changes:
            return model
        if self.own_head:
            untie(model)
        return resize(model, self.height, changes, str(like.reference))


def _too_large(value: Any, height: int) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return any(isinstance(number, int) and number >= height for number in numbers)


def _without_chatter(config: bytes) -> bytes:
    data = {key: value for key, value in json.loads(config).items() if key not in _CHATTER}
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
