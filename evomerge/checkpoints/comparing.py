"""Whether models can be merged: the same tensors, of the same shapes, about the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.configuration import text_section
from evomerge.checkpoints.tying import input_embedding, may_be_tied
from evomerge.checkpoints.vocabulary import Vocabulary, vocabulary_file
from evomerge.errors import CheckpointError, Fault

_SHOWN = 5
# Tensors of one shape are read differently under different values of these.
_READ_BY = ("num_attention_heads", "num_key_value_heads", "head_dim", "n_head")


def compare(checkpoints: Sequence[Checkpoint], *, vocabularies: bool = True) -> list[Fault]:
    """What keeps models from being merged; an empty list if nothing does.

    The first model is the one that the others must fit: each of its tensors must stand in the
    others (a tied one under either name) with the same shape, and the others may hold no weights
    besides. Types may differ, and so may the number of rows for tokens (embeddings, output head).
    Where both models have a tokenizer whose vocabulary is plain text, a token must have the same
    number in both; other tokens under a number are allowed where they were added (a chat model
    that renames a reserved token).

    Args:
        checkpoints: the base model (or the first model), then the others.
        vocabularies: whether tokens must have the same numbers; not so where rows are matched by
            token (``tokenizer_source``).
    """
    faults: list[Fault] = []
    for model in checkpoints[1:]:
        other = model.aligned(checkpoints[0])
        faults += _tensor_faults(checkpoints[0], other)
        faults += _config_faults(checkpoints[0], other)
        faults += vocabulary_faults(checkpoints[0], other) if vocabularies else []
    return faults


def vocabulary_faults(first: Checkpoint, other: Checkpoint) -> list[Fault]:
    """What keeps rows of the same number from standing for the same token."""
    if same_tokenizer(first, other):
        return []
    try:
        mine, its = first.vocabulary, other.vocabulary
    except CheckpointError as unreadable:
        return list(unreadable.faults)
    if mine is None or its is None:
        return []
    rows = min(first.vocab_size, other.vocab_size)
    problem = renumbered(mine, its, rows, str(first.reference), _embedding(first))
    return [Fault(f"{other.reference}: tokenizer", problem)] if problem else []


def renumbered(
    mine: Vocabulary, its: Vocabulary, rows: int, reference: str, embedding: str
) -> str | None:
    """What is wrong with merging rows of the same number; None if nothing is.

    Args:
        mine: the first model's vocabulary.
        its: the other's.
        rows: how many rows both have.
        reference: names the first model.
        embedding: names the tensor.
    """
    moved = [
        (token, number, its.ids[token])
        for token, number in mine.ids.items()
        if its.ids.get(token, number) != number and min(number, its.ids[token]) < rows
    ]
    replaced = _replaced(mine, its, rows)
    if not moved and not replaced:
        return None
    said = [f"{token!r} is {new}, not {old}" for token, old, new in islice(moved, 3)]
    said += [f"{number} is {new!r}, not {old!r}" for number, old, new in islice(replaced, 3)]
    count = len(moved) + len(replaced)
    return (
        f"gives {count} tokens other numbers than {reference} ({'; '.join(said)}"
        f"{'; …' if count > len(said) else ''}), so that rows of {embedding} stand for different "
        "tokens; to merge them by token, name the merged model's vocabulary: tokenizer_source: "
        "base (or union, or a model)"
    )


def _tensor_faults(first: Checkpoint, other: Checkpoint) -> list[Fault]:
    place = str(other.reference)
    missing = [name for name in first.names if name not in other]
    # A head of its own is merged with the embeddings that the first model's head shares.
    extra = [name for name in other.names if name not in first]
    faults = []
    if missing:
        problem = f"lacks {_some(missing)}, which {first.reference} has"
        faults.append(Fault(place, f"{problem}; {_advice(missing)}"))
    if extra:
        problem = f"has {_some(extra)}, which {first.reference} lacks"
        faults.append(Fault(place, f"{problem}; {_advice(extra)}"))
    unlike = [n for n in first.names if n in other and _unlike(n, first, other)]
    faults += [_shape_fault(name, first, other) for name in unlike[:_SHOWN]]
    if len(unlike) > _SHOWN:
        problem = f"{len(unlike) - _SHOWN} more tensors have other shapes than {first.reference}'s"
        faults.append(Fault(place, problem))
    return faults


def _advice(names: Sequence[str]) -> str:
    if all(may_be_tied(name) for name in names):
        return (
            "one shares its output head with its embeddings, the other does not; use a base "
            "model that does as the fine-tuned one"
        )
    return "only fine-tuned versions of one model can be merged"


def _shape_fault(name: str, first: Checkpoint, other: Checkpoint) -> Fault:
    shape, own = list(first.shape(name)), list(other.shape(name))
    problem = f"has shape {own}, but {shape} in {first.reference}"
    uneven = [
        f"its own {checkpoint.embedding} has {checkpoint.vocab_size} rows in {checkpoint.reference}"
        for checkpoint in (first, other)
        if name in first.token_tensors and checkpoint.shape(name)[0] != checkpoint.vocab_size
    ]
    reason = "only fine-tuned versions of one model can be merged"
    return Fault(f"{other.reference}: {name}", "; ".join([problem, *uneven, reason]))


def _unlike(name: str, first: Checkpoint, other: Checkpoint) -> bool:
    shape, own = first.shape(name), other.shape(name)
    if name not in first.token_tensors:
        return shape != own
    # Rows for tokens may be more or fewer, but as many as the model's own embeddings have.
    whole = shape[0] == first.vocab_size and own[0] == other.vocab_size
    return shape[1:] != own[1:] or (shape[0] != own[0] and not whole)


def _config_faults(first: Checkpoint, other: Checkpoint) -> list[Fault]:
    mine, its = text_section(first.config), text_section(other.config)
    return [
        Fault(
            f"{other.reference}: config.json: {key}",
            f"is {its[key]}, but {mine[key]} in {first.reference}; "
            "only fine-tuned versions of one model can be merged",
        )
        for key in _READ_BY
        if mine.get(key) is not None and its.get(key) is not None and mine[key] != its[key]
    ]


def _replaced(mine: Vocabulary, its: Vocabulary, rows: int) -> list[tuple[int, str, str]]:
    """Numbers that stand for unrelated trained tokens in the two models."""
    found = []
    for number, token in mine.tokens.items():
        new = its.tokens.get(number, token)
        renamed = token in mine.added or new in its.added
        # A token that both know, elsewhere, is told as moved.
        known = token in its.ids or new in mine.ids
        if new != token and number < rows and not renamed and not known:
            found.append((number, token, new))
    return found


def same_tokenizer(first: Checkpoint, other: Checkpoint) -> bool:
    """Whether two models' vocabularies need no comparing: one file's bytes, or no file at all."""
    paths = [vocabulary_file(c.tokenizer_folder) for c in (first, other)]
    if paths[0] is None or paths[1] is None:
        return True
    if paths[0] == paths[1]:
        return True
    if paths[0].name != paths[1].name or paths[0].name in ("vocab.json", "vocab.txt"):
        return False
    if paths[0].stat().st_size != paths[1].stat().st_size:
        return False
    return paths[0].read_bytes() == paths[1].read_bytes()


def _embedding(checkpoint: Checkpoint) -> str:
    return input_embedding(checkpoint.names) or "the embeddings"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
