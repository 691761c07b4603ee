"""The tensors of a model with its adapter, under every name that they go by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from evomerge.checkpoints.adapters import Adapter
from evomerge.checkpoints.joined import Loaded
from evomerge.checkpoints.placing import Shapes
from evomerge.checkpoints.sharing import CAN_SHARE, Shared
from evomerge.checkpoints.tying import is_rebuilt, may_be_tied, tied_to
from evomerge.checkpoints.weights import Entry, WeightFiles
from evomerge.errors import CheckpointError, Fault


class StoredTensors:
    """A model's tensors: tied copies and rebuilt buffers left out, an adapter added on reading.

    Args:
        weights: the model's files.
        tied_head: tells whether the output head is the input embedding; asked only if it matters.
        adapter_folder: of an adapter to add.
        loaded: the loaded model of tensors of some shapes, if that is known; asked only for an
            adapter with names of its own.

    Attributes:
        entries: shapes and types by name, numbers in natural order (layer 2 before layer 10).

    Raises:
        CheckpointError: the adapter is not supported or does not fit.
    """

    def __init__(
        self,
        weights: WeightFiles,
        tied_head: Callable[[], bool],
        adapter_folder: Path | None = None,
        loaded: Callable[[Shapes], Loaded | None] = lambda _: None,
    ) -> None:
        self.weights = weights
        self._tied_head = tied_head
        self.entries = self._own_entries()
        self.adapter: Adapter | None = None
        self.shared_copy: Shared | None = None
        if adapter_folder is not None:
            shapes = self.shapes
            self.adapter = Adapter(
                adapter_folder, self.entries, self.shared, lambda: loaded(shapes)
            )
            for name in self.adapter.names:
                self.entries[name] = self.adapter.entry(name, self.entries[name])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors' shapes by stored name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def stored_name(self, name: str) -> str | None:
        """The name that a tensor is stored under; None if it is not stored."""
        return name if name in self.entries else self.shared(name)

    def shared(self, name: str) -> str | None:
        """The stored tensor that one which is not stored shares its values with, if any."""
        if not may_be_tied(name):
            return None
        source = tied_to(name, self.entries, tied_head=True)
        if source is None or tied_to(name, self.entries, tied_head=False) == source:
            return source
        return source if self._tied_head() else None

    def share(self) -> None:
        """Take what an adapter changes from a file that all processes map, where that can be.

        Raises:
            CheckpointError: there is no room for it.
        """
        if CAN_SHARE and self.adapter is not None and self.shared_copy is None:
            files = (*self.weights.files, *self.adapter.files)
            self.shared_copy = Shared(files, self.adapter.names, self.read)

    def read(self, stored: str, *, keep: bool = True) -> torch.Tensor:
        """A tensor with the adapter's change.

        Args:
            stored: its stored name.
            keep: give it memory of its own. Without that it may be mapped from its file, shows
                what happens to the file later, and must be used and dropped at once.
        """
        if not keep and self.shared_copy is not None and stored in self.shared_copy.names:
            return self.shared_copy.view(stored)
        tensor = self.weights.view(stored)
        if self.adapter is not None and stored in self.adapter.names:
            return self.adapter.apply(stored, tensor)
        return tensor.clone(memory_format=torch.contiguous_format) if keep else tensor

    def path(self, stored: str) -> str:
        """The file that a tensor stands in, for messages."""
        return str(self.weights.path(stored))

    def check_finite(self, stored: str, tensor: torch.Tensor, place: str) -> None:
        """Refuse a tensor that holds NaN or infinity.

        Args:
            stored: its stored name.
            tensor: its values.
            place: names it in the message.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return
        # The fastest look: a sum with NaN or infinity in it is never finite. One that is not may
        # have overflowed, so that the extremes decide; neither needs memory of the tensor's size.
        if tensor.dtype.itemsize == 1:
            tensor = tensor.to(torch.float32)
        if bool(tensor.sum().isfinite()) or bool(
            torch.stack(torch.aminmax(tensor)).isfinite().all()
        ):
            return
        nans, bad = int(tensor.isnan().sum()), int((~tensor.isfinite()).sum())
        problem = f"{bad} of {tensor.numel()} elements are not finite ({nans} NaN)"
        raise CheckpointError([Fault(place, f"{problem}; file {self.path(stored)}")])

    def _own_entries(self) -> dict[str, Entry]:
        kept = {
            name: entry
            for name, entry in self.weights.entries.items()
            if not is_rebuilt(name, entry.shape, entry.dtype)
        }
        copies = [name for name in kept if may_be_tied(name) and self._is_copy(name, kept)]
        return {name: kept[name] for name in sorted(kept, key=_natural) if name not in copies}

    def _is_copy(self, name: str, entries: dict[str, Entry]) -> bool:
        """Whether a tied tensor is stored twice; transformers unties copies that differ."""
        always = tied_to(name, entries, tied_head=False)
        source = always or tied_to(name, entries, tied_head=True)
        if source is None or entries[source][:2] != entries[name][:2]:
            return False
        if always is None and not self._tied_head():
            return False
        return torch.equal(self.weights.view(name), self.weights.view(source))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
