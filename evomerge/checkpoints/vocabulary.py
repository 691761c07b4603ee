"""Which token each row of an embedding stands for, from the tokenizer's files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.checkpoints.files import read_json
from evomerge.errors import CheckpointError, Fault

_WHOLE = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and their numbers.

    Args:
        ids: token → number from 0.
        added: the tokens that were added to the trained ones: special tokens, reserved places.
    """

    ids: dict[str, int]
    added: frozenset[str]

    @cached_property
    def tokens(self) -> dict[int, str]:
        """number → token"""
        return {number: token for token, number in self.ids.items()}


def vocabulary_file(folder: Path) -> Path | None:
    """The file that holds a tokenizer's vocabulary; None if there is no tokenizer."""
    for name in _WHOLE:
        if (folder / name).is_file():
            return folder / name
    return None


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of the tokenizer in a folder.

    Returns:
        None where there is no tokenizer, or one whose file is not text (``tokenizer.model``).

    Raises:
        CheckpointError: a file of the tokenizer is damaged.
    """
    path = vocabulary_file(folder)
    if path is None or path.suffix == ".model":
        return None
    try:
        return _READERS[path.name](path)
    except (KeyError, TypeError, ValueError, IndexError, OSError) as problem:
        fault = Fault(str(path), f"is no vocabulary that is understood: {problem!r}")
        raise CheckpointError([fault]) from problem


def _from_tokenizer_json(path: Path) -> Vocabulary:
    data = read_json(path)
    trained: Any = data["model"]["vocab"]
    if isinstance(trained, list):
        # Unigram models list [token, score]; the number is the place in the list.
        trained = {entry[0]: number for number, entry in enumerate(trained)}
    added = {entry["content"]: int(entry["id"]) for entry in data.get("added_tokens") or []}
    return Vocabulary({**trained, **added}, frozenset(added))


def _from_vocab_json(path: Path) -> Vocabulary:
    return _with_added(read_json(path), path)


def _from_vocab_txt(path: Path) -> Vocabulary:
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return _with_added({line.rstrip("\r"): number for number, line in enumerate(lines)}, path)


def _with_added(trained: dict[str, int], path: Path) -> Vocabulary:
    beside = path.parent / "added_tokens.json"
    added = read_json(beside) if beside.is_file() else {}
    return Vocabulary({**trained, **added}, frozenset(added))


_READERS = {
    "tokenizer.json": _from_tokenizer_json,
    "vocab.json": _from_vocab_json,
    "vocab.txt": _from_vocab_txt,
}
