"""Tensors on their way from host memory to an accelerator, beside its work.

A mapped file cannot be read by the device itself: a block of pinned memory takes each tensor in,
and the copy from there runs on a stream of its own. torch keeps the blocks and gives them out again
when their copy is done, so that there are only as many as are on their way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sent:
    """A tensor whose copy to a device was begun.

    Args:
        tensor: on the device; its values are there after ``event``.
        event: None where the copy is done.
    """

    tensor: torch.Tensor
    event: torch.cuda.Event | None = None

    def arrived(self) -> torch.Tensor:
        """The tensor, for work on the device's current stream, which waits for the copy."""
        if self.event is not None:
            current = torch.cuda.current_stream(self.tensor.device)
            current.wait_event(self.event)
            # Its memory belongs to the copying stream, which must not take it back too early.
            self.tensor.record_stream(current)
        return self.tensor


class Sender:
    """Copies tensors to devices, on a stream of its own for each."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def send(self, tensor: torch.Tensor, device: torch.device) -> Sent:
        """Begin to copy a tensor from host memory; one for a CPU is there at once.

        Args:
            tensor: on the CPU; it may be mapped from a file, and may be dropped afterwards.
            device: with an index, where it is an accelerator.
        """
        if device.type != "cuda":
            return Sent(tensor.to(device))
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        with torch.cuda.device(device), torch.cuda.stream(stream):
            copy = pinned.to(device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
        return Sent(copy, event)
