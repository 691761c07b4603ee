"""A model's tensors under the names that another model of its kind stores them under.

Versions of transformers (and mergekit) store one model under different names: with prefixes or
without, experts one by one or joined. What tensors are in the loaded model tells which is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evomerge.checkpoints.placing import Placement, Placements
from evomerge.checkpoints.sharing import CAN_SHARE, Shared
from evomerge.checkpoints.stored import StoredTensors
from evomerge.checkpoints.weights import Entry


@dataclass(frozen=True)
class _Assembled:
    """A tensor that is taken from a parameter put together from others.

    Args:
        wanted: its place in the parameter.
        pieces: the stored tensors that the parameter consists of, and their places.
        shape: the parameter's.
    """

    wanted: Placement
    pieces: tuple[tuple[str, Placement], ...]
    shape: tuple[int, ...]


class AlignedTensors(StoredTensors):
    """A model's tensors, by another one's names.

    Args:
        own: the tensors as they are stored. Those with no counterpart keep their names.
        same: other name → stored name, for tensors that are the same but for it.
        assembled: for those that are stored in another cut.
    """

    def __init__(
        self, own: StoredTensors, same: Mapping[str, str], assembled: Mapping[str, _Assembled]
    ) -> None:
        self.weights, self.adapter = own.weights, own.adapter
        self._tied_head = own._tied_head
        self._own, self._same, self._assembled = own, same, assembled
        used = {*same.values(), *(n for one in assembled.values() for n, _ in one.pieces)}
        self.entries = {name: own.entries[stored] for name, stored in same.items()}
        for name, one in assembled.items():
            entry = own.entries[one.pieces[0][0]]
            self.entries[name] = entry._replace(shape=one.wanted.shape(_empty(one.shape)))
        self.entries |= {n: entry for n, entry in own.entries.items() if n not in used}
        self._made: tuple[str, torch.Tensor] | None = None
        self.shared_copy: Shared | None = None

    def path(self, stored: str) -> str:
        """The file that a tensor stands in."""
        assembled = self._assembled.get(stored)
        first = assembled.pieces[0][0] if assembled else self._same.get(stored, stored)
        return self._own.path(first)

    def share(self) -> None:
        """Take what is stored in another cut from a file that all processes map, where that can be.

        Raises:
            CheckpointError: there is no room for it.
        """
        self._own.share()
        if CAN_SHARE and self._assembled and self.shared_copy is None:
            adapted = self.adapter.files if self.adapter else ()
            files = (*self.weights.files, *adapted)
            self.shared_copy = Shared(files, self._assembled, self.read, repr(self._assembled))

    def read(self, stored: str, *, keep: bool = True) -> torch.Tensor:
        """A tensor with the adapter's change; see :meth:`StoredTensors.read`."""
        if not keep and self.shared_copy is not None and stored in self.shared_copy.names:
            return self.shared_copy.view(stored)
        assembled = self._assembled.get(stored)
        if assembled is None:
            return self._own.read(self._same.get(stored, stored), keep=keep)
        view = assembled.wanted.view(self._parameter(assembled))
        return view.clone(memory_format=torch.contiguous_format)

    def _parameter(self, assembled: _Assembled) -> torch.Tensor:
        """The whole parameter; the last one is kept, since its parts are asked for in turn."""
        made = self._made
        if made is not None and made[0] == assembled.wanted.parameter:
            return made[1]
        pieces = ((self._own.read(n, keep=False), place) for n, place in assembled.pieces)
        whole: torch.Tensor | None = None
        for tensor, place in pieces:
            whole = tensor.new_empty(assembled.shape) if whole is None else whole
            place.view(whole).copy_(tensor)
        assert whole is not None
        # Several threads may ask: what one has put together, another may not find here any more.
        self._made = (assembled.wanted.parameter, whole)
        return whole


def align(
    own: StoredTensors, placed: Placements, wanted: Placements, model: torch.nn.Module
) -> StoredTensors:
    """A model's tensors by the names of another one, as far as the two correspond.

    Args:
        own: the tensors to be renamed.
        placed: where they belong in ``model``.
        wanted: where the tensors with the wanted names belong in ``model``.
        model: of the other one's kind, without values.
    """
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    by_place = {place: name for name, place in placed.places.items()}
    pieces: dict[str, list[tuple[str, Placement]]] = {}
    for name, place in placed.places.items():
        pieces.setdefault(place.parameter, []).append((name, place))
    same = {n: by_place[place] for n, place in wanted.places.items() if place in by_place}
    same |= _converted_alike(placed, wanted)
    assembled = {}
    for name, place in wanted.places.items():
        parts = pieces.get(place.parameter)
        if name in same or not parts or place.parameter not in shapes:
            continue
        one = _Assembled(place, tuple(parts), shapes[place.parameter])
        if _is_whole(one, own.entries):
            assembled[name] = one
    return AlignedTensors(own, same, assembled)


def _converted_alike(placed: Placements, wanted: Placements) -> dict[str, str]:
    """Tensors that go through the same conversion into the same parameters."""
    own = {one.targets: one.group for one in placed.conversions}
    found: dict[str, str] = {}
    for one in wanted.conversions:
        group = own.get(one.targets)
        if group is None or group.kind != one.group.kind:
            continue
        if len(group.sources) == len(one.group.sources):
            found |= dict(zip(one.group.sources, group.sources, strict=True))
    return found


def _is_whole(one: _Assembled, entries: Mapping[str, Entry]) -> bool:
    """Whether the pieces fill the parameter, each in the shape of its place."""
    whole = _empty(one.shape)
    fit = all(entries[name].shape == place.shape(whole) for name, place in one.pieces)
    return fit and sum(entries[name].numel for name, _ in one.pieces) == whole.numel()


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, device="meta")
