"""The long form of ``tokenizer_source``: where the output's tokens and embeddings come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.documents import KeyPath
from evomerge.recipe.ledger import Ledger, shown
from evomerge.references import ModelReference

Rename = Callable[[ModelReference], ModelReference]


@dataclass(frozen=True)
class TokenEmbedding:
    """Where one token's embedding comes from.

    Args:
        model: the model that gives it, or None.
        token: that model's token (a string, or its index); None for the token of the same name.
        zero: the embedding is zero, and no model gives it.
        force: take it even where a model has an embedding of its own for the token.
    """

    model: ModelReference | None = None
    token: str | int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """The output's tokenizer.

    Args:
        source: ``union`` of all models' vocabularies, ``base``, or a model.
        tokens: token → where its embedding comes from.
        pad_to_multiple_of: rows are added to the embeddings up to a multiple of this, each the
            mean of the tokens' rows.
    """

    source: str | ModelReference = "union"
    tokens: Mapping[str, TokenEmbedding] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None

    def models(self) -> Iterator[ModelReference]:
        """The models that it names."""
        if isinstance(self.source, ModelReference):
            yield self.source
        for token in self.tokens.values():
            if token.model is not None:
                yield token.model

    def renamed(self, rename: Rename) -> Tokenizer:
        """The same with every model renamed."""
        source = rename(self.source) if isinstance(self.source, ModelReference) else self.source
        tokens = {
            name: replace(token, model=rename(token.model)) if token.model else token
            for name, token in self.tokens.items()
        }
        return replace(self, source=source, tokens=tokens)


def read_reference(data: Any, path: KeyPath, ledger: Ledger) -> ModelReference:
    """A model's name, in mergekit's string or mapping form.

    One that cannot be read is a fault, and stands in as a model of its own for the other checks.
    """
    try:
        return ModelReference.parse(data)
    except ValueError as problem:
        ledger.fault(path, f"{shown(data)} is refused: {problem}")
        return ModelReference(ledger.place(path))


def read_tokenizer_source(data: Any, path: KeyPath, ledger: Ledger) -> str | ModelReference:
    """``union``, ``base`` or a model."""
    return data if data in ("union", "base") else read_reference(data, path, ledger)


def read_tokenizer(data: Any, path: KeyPath, ledger: Ledger) -> Tokenizer:
    """The ``tokenizer:`` mapping."""
    found = ledger.mapping(data, path, ("source", "tokens", "pad_to_multiple_of"))
    source = read_tokenizer_source(found.get("source", "union"), (*path, "source"), ledger)
    multiple = found.get("pad_to_multiple_of")
    if multiple is not None and not _is_count(multiple, 1):
        ledger.fault(
            (*path, "pad_to_multiple_of"),
            f"{shown(multiple)} is refused: an integer ≥ 1 is expected",
        )
    names = found.get("tokens", {})
    if not isinstance(names, Mapping):
        ledger.fault((*path, "tokens"), f"{shown(names)} is refused: a mapping is expected")
        names = {}
    tokens = {
        str(name): _read_token(value, (*path, "tokens", str(name)), ledger)
        for name, value in names.items()
    }
    return Tokenizer(source, tokens, multiple)


def _read_token(data: Any, path: KeyPath, ledger: Ledger) -> TokenEmbedding:
    found = ledger.mapping(data, path, ("source", "force"))
    force = found.get("force", False)
    if not isinstance(force, bool):
        ledger.fault((*path, "force"), f"{shown(force)} is refused: true or false is expected")
    source, path = found.get("source"), (*path, "source")
    if source is None:
        return TokenEmbedding(force=force)
    if not (isinstance(source, Mapping) and "kind" in source):
        return TokenEmbedding(read_reference(source, path, ledger), force=force)
    found = ledger.mapping(source, path, ("kind", "model", "token", "token_id"))
    kind = found.get("kind")
    if kind == "zero":
        return TokenEmbedding(zero=True, force=force)
    if kind != "model_token":
        ledger.fault((*path, "kind"), f"{shown(kind)} is refused; allowed: model_token, zero")
        return TokenEmbedding(force=force)
    return TokenEmbedding(*_read_model_token(found, path, ledger), force=force)


def _read_model_token(
    found: Mapping[str, Any], path: KeyPath, ledger: Ledger
) -> tuple[ModelReference | None, str | int | None]:
    model = None
    if "model" in found:
        model = read_reference(found["model"], (*path, "model"), ledger)
    else:
        ledger.fault((*path, "model"), "is missing and required")
    token, index = found.get("token"), found.get("token_id")
    if (token is None) == (index is None):
        ledger.fault(path, "needs either token or token_id")
    if token is not None and not isinstance(token, str):
        ledger.fault((*path, "token"), f"{shown(token)} is refused: a string is expected")
    if index is not None and not _is_count(index, 0):
        ledger.fault((*path, "token_id"), f"{shown(index)} is refused: an integer ≥ 0 is expected")
    return model, token if token is not None else index


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
