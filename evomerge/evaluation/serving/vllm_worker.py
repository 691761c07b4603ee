"""What runs inside vLLM's own worker processes: merged tensors come in through shared memory.

vLLM imports this module there by its name (``worker_extension_cls``), which makes the way in known
to its weight transfer. Its transfers of its own want CUDA (IPC) or a second process group (NCCL).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

TRANSFER = "evomerge"


@dataclass
class Opening(WeightTransferInitInfo):
    """Nothing needs to be agreed on before the first piece."""


@dataclass
class Piece(WeightTransferUpdateInfo):
    """Some tensors, in a file that is memory.

    Args:
        path: the file; it is removed once all workers have mapped it.
        size: its bytes.
        tensors: of each the checkpoint's name, the type's name, the shape, and where it begins.
        proving: load one by one, and note which of them the model does not take.
        abandoned: no more will come, though not all came.
    """

    path: str = ""
    size: int = 0
    tensors: list[tuple[str, str, list[int], int]] = field(default_factory=list)
    proving: bool = False
    abandoned: bool = False


class SharedMemoryTransfer(WeightTransferEngine[Opening, Piece]):
    """Loads pieces by the model's own loader, which fuses and shards; layers are filled in place.

    A layer whose tensors came in part keeps its piece mapped until the rest is there.
    """

    init_info_cls = Opening
    update_info_cls = Piece

    def init_transfer_engine(self, init_info: Opening) -> None:
        self.loaded: set[str] = set()
        self.unread: list[str] = []
        self.unfilled: list[str] = []
        self._abandoned = False

    def start_weight_update(self) -> None:
        self.loaded, self._abandoned = set(), False
        self._parameters = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Piece) -> None:
        if update_info.abandoned:
            self._abandoned = True
            return
        held = torch.from_file(update_info.path, True, update_info.size, dtype=torch.uint8)
        tensors = [
            (name, _view(held, kind, shape, start))
            for name, kind, shape, start in update_info.tensors
        ]
        if not update_info.proving:
            self._load(tensors)
            return
        for name, tensor in tensors:
            if not self._load([(name, tensor)]):
                self.unread.append(name)

    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = set(self.model.load_weights(tensors) or ())
        self.loaded |= loaded
        return loaded

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        self._refresh_shared()
        self.unfilled = [] if self._abandoned else sorted(self._parameters - self.loaded)

    def _refresh_shared(self) -> None:
        """Make anew what a layer keeps of a parameter that came in by another layer's name.

        On CPUs an output head that shares its embeddings has a packed copy of them, which vLLM
        makes again only for layers that tensors came for.
        """
        owners: dict[int, list[torch.nn.Module]] = {}
        for layer in self.model.modules():
            for parameter in layer.parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(layer)
        for layers in owners.values():
            for layer in layers if len(layers) > 1 else ():
                method = getattr(layer, "quant_method", None)
                if isinstance(method, QuantizeMethodBase):
                    method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing is held between two updates."""


class WorkerExtension:
    """Methods that vLLM's workers get."""

    def evomerge_leftovers(self) -> tuple[list[str], list[str]]:
        """After an update: tensors that the model did not take, parameters that got none."""
        transfer = self.weight_transfer_engine  # type: ignore[attr-defined]
        return transfer.unread, transfer.unfilled


def _view(held: torch.Tensor, kind: str, shape: list[int], start: int) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, kind)
    count = 1
    for length in shape:
        count *= length
    return held[start : start + count * dtype.itemsize].view(dtype).view(shape)


WeightTransferEngineFactory.register_engine(TRANSFER, SharedMemoryTransfer)
