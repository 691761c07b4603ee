"""A model written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.configuration import written_config
from evomerge.checkpoints.folders import CONFIG, is_weights
from evomerge.checkpoints.merged_tokenizer import MergedTokenizer, MergedVocabulary
from evomerge.checkpoints.partial import PartialFolder, sync_folder
from evomerge.checkpoints.shards import ShardWriter, entry_room, write_synced
from evomerge.errors import CheckpointError, Fault

_MAX_HEADER = 1 << 20

Text = str | Callable[[], str]
"""A text, or what gives it when it is written."""


@dataclass(frozen=True)
class WrittenModel:
    """What was written.

    Args:
        folder: the model's folder.
        weight_files: names of the files with its tensors.
        nbytes: size of the tensors.
        parameters: number of their elements.
    """

    folder: Path
    weight_files: tuple[str, ...]
    nbytes: int
    parameters: int


def write_model(
    out: Path | str,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    like: Checkpoint,
    torch_dtype: torch.dtype | None = None,
    num_layers: int | None = None,
    layers: Sequence[int] | None = None,
    vocabulary: MergedVocabulary | None = None,
    files: Mapping[str, Text] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    total_bytes: int | None = None,
) -> WrittenModel:
    """Write a model that transformers loads: weights, configuration, tokenizer, further files.

    Everything goes into a hidden folder beside ``out``, down to the disk, and takes its name in one
    step at the end. Whatever goes wrong before, ``out`` is as it was and the hidden folder is
    removed; after a kill, the next writing of the same ``out`` removes it.

    Args:
        out: the folder; it must not exist, or be empty. Its parents are made.
        tensors: name and tensor, read one at a time and written as they are (any device) while the
            next one is made: a tensor that was given must keep its values.
        like: the model whose configuration, tokenizer, chat template and generation settings the
            new one has.
        torch_dtype: what the configuration says; None is the type of most elements.
        num_layers: the new number of layers; None is that of ``layers``, else ``like``'s.
        layers: for each new layer the one of ``like`` whose settings it has, for models whose
            layers differ (``layer_types``).
        vocabulary: the tokenizer and the number of rows for tokens, where they are not ``like``'s.
        files: further texts by name (``README.md``), or what gives them once the tensors are
            written.
        max_shard_bytes: size of one weight file, in bytes; a larger tensor has a file of its own.
        total_bytes: size of all tensors, if known: then a disk that is too small is refused first.

    Raises:
        CheckpointError: ``out`` is taken or cannot be written, or the disk is full.
        ValueError: a tensor comes twice, there is none, or ``files`` names what is written anyway.
    """
    target = Path(os.path.abspath(Path(out).expanduser()))
    extras = _checked_files(files or {}, max_shard_bytes)
    changed = layers if layers is not None else num_layers
    values = vocabulary.changes(like) if vocabulary else {}
    companions = _companions(like, vocabulary)
    written_config(like.config, like.torch_dtype, changed, str(like.reference), values)
    _check_target(target)
    _check_space(target, total_bytes)

    def fill(folder: Path) -> tuple[tuple[str, ...], int, int]:
        written, dtype = _write_weights(folder, tensors, like, max_shard_bytes, target)
        kind = torch_dtype or dtype
        config = written_config(like.config, kind, changed, str(like.reference), values)
        with _plainly(target):
            _write_small_files(folder, companions, config, extras)
        return written

    return WrittenModel(target, *_whole_or_not(target, fill))


def _whole_or_not(
    target: Path, fill: Callable[[Path], tuple[tuple[str, ...], int, int]]
) -> tuple[tuple[str, ...], int, int]:
    """Fill a folder and give it the target's name, or remove it and the parents made for it.

    No context manager: Ctrl-C could come between its making of the folder and its first statement.
    """
    made = [parent for parent in target.parents if not parent.exists()]
    partial = PartialFolder.beside(target)
    try:
        with _plainly(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.make(target)
        written = fill(partial.path)
        with _plainly(target):
            partial.become(target)
    except BaseException:
        partial.remove()
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    return written


def _write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    like: Checkpoint,
    max_shard_bytes: int,
    target: Path,
) -> tuple[tuple[tuple[str, ...], int, int], torch.dtype]:
    room = entry_room({name: len(like.shape(name)) for name in like.names})
    writer = ShardWriter(folder, max_shard_bytes, min(room, _MAX_HEADER))
    seen: set[str] = set()
    try:
        for name, tensor in tensors:
            if name in seen:
                raise ValueError(f"the tensor {name} comes twice")
            seen.add(name)
            with _plainly(target):
                writer.add(name, tensor)
        if not seen:
            raise ValueError("there is no tensor to write")
        with _plainly(target):
            names = writer.finish()
    finally:
        writer.abandon()
    floating = {d: n for d, n in writer.elements_by_dtype.items() if d.is_floating_point}
    dtype = max(floating, key=lambda kind: floating[kind]) if floating else like.torch_dtype
    return (names, writer.nbytes, writer.elements), dtype


def _write_small_files(
    folder: Path,
    companions: Mapping[str, Path | bytes],
    config: Mapping[str, object],
    extras: Mapping[str, Text],
) -> None:
    for name, source in companions.items():
        if name not in extras:
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_synced(copy, source if isinstance(source, bytes) else source.read_bytes())
    for name, content in extras.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, (content if isinstance(content, str) else content()).encode())
    # Last of all: without it a folder is no model.
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_synced(folder / CONFIG, text.encode())
    for inner in folder.rglob("*"):
        if inner.is_dir():
            sync_folder(inner)
    sync_folder(folder)


def _companions(
    like: Checkpoint, vocabulary: MergedVocabulary | None
) -> Mapping[str, Path | bytes]:
    """The files that go with the weights; an adapter's tokenizer before its base's.

    A mixture of two tokenizers' files would be a third tokenizer: they all come from one. What
    ends a generated text goes with the tokenizer too, by its tokens' numbers.
    """
    tokenizer = vocabulary.tokenizer if vocabulary else MergedTokenizer(like)
    found: dict[str, Path | bytes] = {**tokenizer.files()}
    if "auto_map" in like.config:
        found |= {path.name: path for path in like.folder.glob("*.py")}
    settings = tokenizer.like.folder / "generation_config.json"
    if settings.is_file():
        found[settings.name] = settings
    return found


def _checked_files(files: Mapping[str, Text], max_shard_bytes: int) -> dict[str, Text]:
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; at least 1 is needed")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"{name!r} is no name of a file in the model's folder")
        if name == CONFIG or is_weights(name) or name.endswith(".safetensors.index.json"):
            raise ValueError(f"{name!r} is written from the tensors and the configuration")
    return dict(files)


def _check_target(target: Path) -> None:
    if target.is_symlink() or os.path.ismount(target):
        kind = "a link" if target.is_symlink() else "a mount point"
        problem = f"is {kind}, which a finished folder cannot replace; name a folder inside it"
        raise CheckpointError([Fault(str(target), problem)])
    if target.is_dir():
        with _plainly(target):
            held = sorted(path.name for path in target.iterdir())
        if held:
            problem = f"exists and holds {', '.join(held[:3])}{' …' if len(held) > 3 else ''}"
            fault = Fault(str(target), f"{problem}; name a new folder, nothing is overwritten")
            raise CheckpointError([fault])
    elif target.exists():
        raise CheckpointError([Fault(str(target), "is a file; name a new folder")])
    above = _existing_parent(target)
    if not above.is_dir():
        raise CheckpointError([Fault(str(target), f"cannot be made: {above} is a file")])


def _existing_parent(target: Path) -> Path:
    return next(parent for parent in target.parents if os.path.lexists(parent))


def _check_space(target: Path, total_bytes: int | None) -> None:
    if total_bytes is None:
        return
    above = _existing_parent(target)
    with _plainly(target):
        free = shutil.disk_usage(above).free
    if total_bytes > free:
        problem = f"needs {_size(total_bytes)}, but {above} has {_size(free)} left"
        raise CheckpointError([Fault(str(target), f"{problem}; free some, or write elsewhere")])


@contextmanager
def _plainly(target: Path) -> Iterator[None]:
    """Say what the file system refused, in words that help."""
    try:
        yield
    except OSError as problem:
        parent = target.parent
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = (
                f"no space is left in {parent}; nothing was kept; free some, or write elsewhere"
            )
        elif problem.errno in (errno.ENOTEMPTY, errno.EEXIST):
            reason = "was filled by somebody else meanwhile; nothing is overwritten"
        elif problem.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            reason = f"cannot be written: {parent} is read-only for you ({problem.strerror})"
        else:
            reason = f"cannot be written: {problem.strerror or problem}"
        raise CheckpointError([Fault(str(target), reason)]) from problem


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
