"""A live model over several GPUs, layer by layer."""

from __future__ import annotations

from typing import Any

import torch

from evomerge.errors import CheckpointError, Fault


def spread(model: torch.nn.Module, place: str) -> torch.nn.Module:
    """Move a model from the CPU to all the GPUs that this process sees, in equal shares.

    Its parameters stay ordinary tensors, each on one device, and may be written to in place.

    Args:
        model: a transformers model on the CPU.
        place: its name, for messages.

    Raises:
        CheckpointError: the GPUs have too little free memory together.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = {"no_split_module_classes": list(getattr(model, "_no_split_modules", None) or [])}
    room = get_balanced_memory(model, **whole)
    devices: dict[str, Any] = infer_auto_device_map(model, max_memory=room, **whole)
    left_over = [part for part, device in devices.items() if device in ("cpu", "disk")]
    if left_over:
        count = torch.cuda.device_count()
        problem = f"does not fit into the free memory of {count} GPUs: {left_over[0]} has no place"
        raise CheckpointError([Fault(place, problem)])
    live: torch.nn.Module = dispatch_model(model, devices)
    return live
