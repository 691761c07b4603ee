"""Where the models of a search are held: planned from sizes, before anything is loaded.

Only arithmetic on numbers that are given; :mod:`evomerge.merging.machine` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from evomerge.errors import Fault, InputError

Wish = Literal["auto", "device", "host"]
Residency = Literal["device", "host"]

WISHES: tuple[Wish, ...] = ("auto", "device", "host")

SPARE = 0.1
"""Share of a memory that is left to whatever else there is: scoring, the process itself."""


@dataclass(frozen=True)
class Needs:
    """Sizes in bytes, of one worker.

    Args:
        held: of the base and the fine-tuned models, as they are stored.
        live: of the model that is merged into.
        largest: of the largest tensor in all the models together: what is on its way at once.
        gradient: of the live model's gradient, where slopes are taken. Where an accelerator has no
            room left for it, it is held in the host's memory.
    """

    held: int
    live: int
    largest: int
    gradient: int = 0


@dataclass(frozen=True)
class Room:
    """Free memory in bytes, on one machine.

    Args:
        host: of the machine (or the container).
        devices: of each accelerator that one worker computes on; empty on a CPU.
        sharing: how many workers share an accelerator.
        workers: how many workers the machine has.
    """

    host: int
    devices: tuple[int, ...] = ()
    sharing: int = 1
    workers: int = 1


@dataclass(frozen=True)
class ResidencyPlan:
    """Where the models will be held.

    Args:
        residency: ``device``: with the arithmetic; ``host``: in the machine's memory, one copy for
            all its workers.
        message: what was chosen and why, in one line.
        host_bytes: of the machine's memory that all its workers take together.
        device_bytes: of accelerators' memory that one worker takes.
    """

    residency: Residency
    message: str
    host_bytes: int
    device_bytes: int


def plan_residency(wish: Wish, needs: Needs, room: Room, place: str = "residency") -> ResidencyPlan:
    """Where to hold the models.

    ``auto`` takes the accelerator where base, fine-tuned models, live model and its gradient fit
    into nine tenths of its free memory, else the host. Where not even the live model and its
    gradient fit, the gradient is held in the host's memory. On a CPU ``host`` maps the files, so
    that all workers share one copy, and ``device`` gives each worker a copy of its own; ``auto``
    shares.

    Args:
        wish: what the user says.
        needs: what one worker needs.
        room: what there is.
        place: names the setting in messages.

    Raises:
        InputError: the models fit nowhere, or not where they are wanted; with the numbers.
    """
    if wish not in WISHES:
        raise InputError([Fault(place, f"{wish!r}; allowed: {', '.join(WISHES)}")])
    choices: tuple[Residency, ...] = (wish,) if wish != "auto" else _preferred(room)
    plans = [_plan(choice, needs, room) for choice in choices]
    # Models are streamed once for a slope, its sums once for each batch: they come first.
    beside = [_beside(plan, needs) for plan in plans] if room.devices else []
    plans = [_apart(plan, needs, room) for plan in plans] if room.devices else plans
    for plan in [*beside, *plans]:
        if not _lacks(plan, room):
            return plan
    problems = "; ".join(f"{plan.residency}: {_lacks(plan, room)}" for plan in plans)
    what = "the models and a gradient" if needs.gradient else "the models"
    problem = f"{what} do not fit ({problems}); {_advice(wish, room)}"
    if needs.gradient:
        problem += "; or take another sampler: none but ascent takes gradients"
    raise InputError([Fault(place, problem)])


def _preferred(room: Room) -> tuple[Residency, ...]:
    return ("device", "host") if room.devices else ("host",)


def _plan(residency: Residency, needs: Needs, room: Room) -> ResidencyPlan:
    whole = needs.held + needs.live
    if not room.devices:
        shared = residency == "host"
        own = needs.gradient + (needs.live if shared else whole)
        host = (needs.held if shared else 0) + room.workers * own
        how = (
            f"one copy for all {room.workers} workers, mapped from the files"
            if shared
            else f"a copy for each of {room.workers} workers"
        )
        words = f"models in host memory, {how}: {size(host)} of {size(room.host)} free"
        if needs.gradient:
            words += f", each worker's gradient ({size(needs.gradient)}) included"
        return ResidencyPlan(residency, words, host, 0)
    free = sum(room.devices) // room.sharing
    if residency == "device":
        words = f"models on the accelerator: {size(whole)} of {size(free)} free"
        return ResidencyPlan(residency, words, 0, whole)
    # Two rounds of inputs are on their way or in use at any time.
    device = needs.live + 2 * needs.largest
    words = (
        f"models in host memory, streamed: {size(needs.held)} of {size(room.host)} free there, "
        f"{size(device)} of {size(free)} free on the accelerator (all of them would take "
        f"{size(whole)})"
    )
    return ResidencyPlan(residency, words, needs.held, device)


def _beside(plan: ResidencyPlan, needs: Needs) -> ResidencyPlan:
    """With the gradient on the accelerator."""
    if not needs.gradient:
        return plan
    words = f"{plan.message}; a gradient of {size(needs.gradient)} there too"
    return replace(plan, message=words, device_bytes=plan.device_bytes + needs.gradient)


def _apart(plan: ResidencyPlan, needs: Needs, room: Room) -> ResidencyPlan:
    """With each worker's gradient in the host's memory."""
    if not needs.gradient:
        return plan
    words = f"{plan.message}; each worker's gradient of {size(needs.gradient)} in host memory"
    host = plan.host_bytes + room.workers * needs.gradient
    return replace(plan, message=words, host_bytes=host)


def _lacks(plan: ResidencyPlan, room: Room) -> str:
    """What is missing for a plan; empty if nothing is."""
    lacks = []
    free = sum(room.devices) // room.sharing
    if plan.device_bytes > free * (1 - SPARE):
        lacks.append(_too_much(plan.device_bytes, free, "on the accelerator"))
    if plan.host_bytes > room.host * (1 - SPARE):
        lacks.append(_too_much(plan.host_bytes, room.host, "in host memory"))
    return " and ".join(lacks)


def _too_much(wanted: int, free: int, where: str) -> str:
    return f"{size(wanted)} are needed {where}, {size(free)} are free, a tenth of it kept back"


def _advice(wish: Wish, room: Room) -> str:
    if wish == "device":
        return "allowed instead: residency host or auto"
    if room.workers > 1:
        return "allow fewer workers, or fewer models"
    return "use a larger machine, or fewer models"


def size(count: float) -> str:
    """``3.1 GB``"""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
