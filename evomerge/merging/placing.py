"""Where the tensors of an engine's models go, and the plan of where they are held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from evomerge.checkpoints import Checkpoint, placements
from evomerge.merging.machine import free_device_memory, free_host_memory
from evomerge.merging.residency import Needs, ResidencyPlan, Room, Wish, plan_residency

Device = torch.device | str | Mapping[str, torch.device]
"""One device for all tensors, or a device for each by its name."""


def place_of(device: Device) -> Callable[[str], torch.device]:
    """Tensor's name → device.

    Args:
        device: one for all; or a mapping from a live model's names, such as ``devices_of`` gives.
            A tensor that it lacks goes where the first one goes.
    """
    if isinstance(device, Mapping):
        places = {name: _numbered(one) for name, one in device.items()}
        first = next(iter(places.values()), torch.device("cpu"))
        return lambda name: places.get(name, first)
    only = _numbered(torch.device(device))
    return lambda _: only


def devices_of(model: torch.nn.Module, like: Checkpoint | None = None) -> dict[str, torch.device]:
    """Where each tensor of a live model lies, also one that lies over several devices.

    Args:
        model: the live model.
        like: the stored model that it was loaded from: its tensors' names are added where loading
            changes them.
    """
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    devices = {name: tensor.device for name, tensor in tensors}
    placed = placements(model, {name: like.shape(name) for name in like.names} if like else {})
    for name in like.names if like else ():
        parameters = placed.parameters(name)
        if name not in devices and parameters:
            devices[name] = devices[parameters[0]]
    return devices


def needs_of(checkpoints: Sequence[Checkpoint], live: int) -> Needs:
    """What models need, from their headers.

    Args:
        checkpoints: base and fine-tuned models.
        live: bytes of the live model.
    """
    largest = 0
    for name in checkpoints[0].names:
        there = [one for one in checkpoints if name in one]
        numels = sum(
            torch.Size(one.shape(name)).numel() * one.dtype(name).itemsize for one in there
        )
        largest = max(largest, numels)
    return Needs(sum(one.nbytes for one in checkpoints), live, largest)


def plan_here(wish: Wish, checkpoints: Sequence[Checkpoint], device: Device) -> ResidencyPlan:
    """The plan for one engine in this process, from what is free now.

    Args:
        wish: what the user says.
        checkpoints: base and fine-tuned models.
        device: where they are computed with. As a mapping it is a live model's, which is there
            already; else the live model, of the first checkpoint's size, is still to come.

    Raises:
        InputError: the models do not fit.
    """
    if isinstance(device, Mapping):
        devices, live = {_numbered(one) for one in device.values()}, 0
    else:
        devices, live = {_numbered(torch.device(device))}, checkpoints[0].nbytes
    cuda = sorted((one for one in devices if one.type == "cuda"), key=str)
    room = Room(free_host_memory(), free_device_memory(cuda))
    return plan_residency(wish, needs_of(checkpoints, live), room)


def _numbered(device: torch.device) -> torch.device:
    """``cuda`` is ``cuda:0`` (or whichever is current), as tensors there say."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
