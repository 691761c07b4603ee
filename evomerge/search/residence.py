"""Where a search's workers will hold the models, planned before any of them starts."""

from __future__ import annotations

import os
from dataclasses import replace

from evomerge.merging import ResidencyPlan, Room, needs_of, plan_residency
from evomerge.merging.machine import free_host_memory, total_device_memory
from evomerge.search.preparation import Preparation
from evomerge.search.workers import Resources


def plan_workers(prepared: Preparation, share: Resources) -> ResidencyPlan | None:
    """The plan for the workers that this machine has room for.

    Accelerators count as empty: this process touches none of them.

    Args:
        prepared: the space.
        share: what each worker gets.

    Returns:
        None where workers are to have GPUs and this machine has none.

    Raises:
        InputError: the models do not fit.
    """
    devices = total_device_memory() if share.gpus > 0 else ()
    if share.gpus > 0 and not devices:
        return None
    each = max(1, int(share.gpus)) if devices else 0
    sharing = max(1, int(1 / share.gpus + 1e-6)) if 0 < share.gpus < 1 else 1
    there = int(len(devices) / share.gpus + 1e-6) if devices else int(_cores() / share.cpus)
    room = Room(
        host=free_host_memory(),
        devices=devices[:each],
        sharing=sharing,
        workers=max(1, share.workers or there),
    )
    needs = needs_of(prepared.held, prepared.live_bytes)
    needs = replace(needs, gradient=prepared.gradient_bytes)
    place = prepared.space.fault(("resources", "residency"), "").place
    return plan_residency(prepared.space.resources.residency, needs, room, place)


def with_residency(prepared: Preparation, share: Resources) -> Preparation:
    """The same with the workers' plan, which they then follow.

    Raises:
        InputError: the models do not fit.
    """
    chosen = plan_workers(prepared, share)
    if chosen is None:
        return prepared
    plan = replace(prepared.plan, residency=chosen.residency)
    return replace(prepared, plan=plan, residency=chosen)


def _cores() -> int:
    return os.cpu_count() or 1
