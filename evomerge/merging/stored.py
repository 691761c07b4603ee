"""Stored models: read when their tensors are asked for, ahead of that, or held in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, Fault
from evomerge.merging.ahead import ReadAhead
from evomerge.merging.residency import Residency
from evomerge.merging.sources import Source
from evomerge.merging.streaming import Sender, Sent
from evomerge.recipe import TensorMerge
from evomerge.references import ModelReference

Wanted = tuple[ModelReference, str]
"""A model's tensor."""

_ROOM = 1 << 28
"""Bytes that may be read and not asked for yet, or the inputs of one merge if they are more."""

Place = Callable[[str], torch.device]
"""Where a tensor is computed with, by its name."""


class Stored:
    """A stored model, its tensors checked for NaN and infinity before they are first given.

    Args:
        checkpoint: the model.
        place: where its tensors go, by their names.
        residency: None reads each tensor when it is asked for (one merge). ``device`` keeps all of
            them where they go; ``host`` keeps them as maps of their files, which all processes of
            a machine share, and sends them to where they go each time.
    """

    def __init__(
        self, checkpoint: Checkpoint, place: Place, *, residency: Residency | None
    ) -> None:
        self.like = checkpoint
        self.layers = None
        self.vocabulary = None
        self._place = place
        self._residency = residency
        self._sender = Sender()
        self._ahead: ReadAhead[Wanted, Sent] | None = None
        self._kept: dict[str, torch.Tensor] = {}
        self._state = _state(checkpoint)
        if residency == "host":
            checkpoint.share()
        for name in checkpoint.names if residency else ():
            self._keep(name)

    @property
    def reference(self) -> ModelReference:
        return self.like.reference

    @property
    def names(self) -> tuple[str, ...]:
        return self.like.names

    @property
    def torch_dtype(self) -> torch.dtype:
        return self.like.torch_dtype

    @property
    def nbytes(self) -> int:
        return self.like.nbytes

    def __contains__(self, name: object) -> bool:
        return name in self.like

    def shape(self, name: str) -> tuple[int, ...]:
        return self.like.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.like.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        if self._residency is not None and self.at_place:
            return self.held(name)
        if self._ahead is not None:
            return self._ahead.take((self.reference, name)).arrived()
        return self.send(name).arrived()

    def check_unchanged(self) -> None:
        """Refuse to go on with files that are not what they were: mapped tensors changed with them.

        Raises:
            CheckpointError: names the model.
        """
        if self._residency == "host" and _state(self.like) != self._state:
            problem = "its files have changed while they are in use; put them back and begin again"
            raise CheckpointError([Fault(str(self.reference), problem)])

    def follow(self, ahead: ReadAhead[Wanted, Sent] | None) -> bool:
        """Take tensors from what is read ahead (None: no longer).

        Returns:
            Whether it does: not where all is at its place anyway, is mapped there by whoever asks,
            or where it follows another.
        """
        if self.at_place or (ahead is not None and self._ahead is not None):
            return False
        self._ahead = ahead
        return True

    @property
    def residency(self) -> Residency | None:
        """Where its tensors are held; None where they are not."""
        return self._residency

    def size(self, name: str) -> int:
        """A tensor's bytes."""
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def send(self, name: str) -> Sent:
        """A tensor on its way to its place."""
        return self._sent(self.held(name), name)

    def bring(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Another tensor where one of this name is computed with."""
        return self._sent(tensor, name).arrived()

    def held(self, name: str) -> torch.Tensor:
        """A tensor, where it is held; from its file, where none is."""
        if self._residency is None:
            return self.like.tensor(name, check=True, mapped=True)
        # A tied tensor's other name comes here first when it is asked for.
        return self._kept[name] if name in self._kept else self._keep(name)

    def origin(self, name: str) -> tuple[Stored, str]:
        return self, name

    def release(self, names: Iterable[str]) -> None:
        """Keep these no longer; each is read again should it be asked for."""
        for name in names:
            self._kept.pop(name, None)

    def _sent(self, tensor: torch.Tensor, name: str) -> Sent:
        place = self._place(name)
        return Sent(tensor) if tensor.device == place else self._sender.send(tensor, place)

    def _keep(self, name: str) -> torch.Tensor:
        mapped = self._residency == "host"
        tensor = self.like.tensor(name, check=True, mapped=mapped)
        self._kept[name] = tensor if mapped else tensor.to(self._place(name))
        return self._kept[name]

    @cached_property
    def at_place(self) -> bool:
        """Whether every tensor is held where it is computed with."""
        if self._residency == "device":
            return True
        return all(self._place(name).type == "cpu" for name in self.names)


def _state(checkpoint: Checkpoint) -> list[tuple[int, int, int]]:
    stats = [path.stat() for path in checkpoint.weight_files]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in stats]


@contextmanager
def read_ahead(
    sources: Mapping[ModelReference, Source], specs: Sequence[TensorMerge]
) -> Iterator[None]:
    """Have the stored models' tensors read before merges ask for them, in the same order.

    Raises:
        CheckpointError: the files of a model that is mapped have changed.
    """
    models = dict.fromkeys(model for spec in specs for model, _ in _inputs(spec))
    behind = (_behind(sources[model]) for model in models)
    stored = {one.reference: one for one in behind if one is not None}
    for one in stored.values():
        one.check_unchanged()
    if all(one.at_place for one in stored.values()):
        yield  # at every candidate of a search: planning what to read took as long as a small merge
        return
    origins = {}
    for key in dict.fromkeys(key for spec in specs for key in _inputs(spec)):
        origin = sources[key[0]].origin(key[1])
        if origin is not None:
            origins[key] = origin[0], (origin[0].reference, origin[1])
    rounds = [[origins[key][1] for key in _inputs(spec) if key in origins] for spec in specs]
    ahead = ReadAhead(
        [key for one in rounds for key in one],
        lambda key: stored[key[0]].send(key[1]),
        lambda key: stored[key[0]].size(key[1]),
        max(_ROOM, *(sum(stored[model].size(name) for model, name in one) for one in rounds)),
    )
    following = [one for one in stored.values() if one.follow(ahead)]
    try:
        with ahead if following else nullcontext():
            yield
    finally:
        for one in following:
            one.follow(None)


def _behind(source: Source) -> Stored | None:
    """The stored model whose tensors a model presents; None where it is made."""
    origins = (source.origin(name) for name in source.names)
    return next((origin[0] for origin in origins if origin is not None), None)


def _inputs(spec: TensorMerge) -> list[Wanted]:
    inputs = [(part.model, part.tensor) for part in spec.contributions]
    return [*([spec.base] if spec.base else []), *inputs]
