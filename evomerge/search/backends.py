"""What can be refused of a space because of what is to run its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.checkpoints import Checkpoint
from evomerge.errors import SpaceError
from evomerge.evaluation import ItemSet
from evomerge.evaluation.serving.serving import check_servable
from evomerge.evaluation.serving.vllm_support import check_vllm
from evomerge.search.gathering import Faults

if TYPE_CHECKING:
    from evomerge.space import SearchSpace


def check_backend(space: SearchSpace, checkpoints: Sequence[Checkpoint]) -> None:
    """Whether vLLM is there and knows the model, where it is to run it.

    Args:
        space: the space.
        checkpoints: the stored models that were found, the one that runs first.

    Raises:
        InputError: it is not, or it does not; or a worker's share is none for it.
    """
    if space.search.backend != "vllm":
        return
    gpus = space.resources.gpus
    if gpus is not None and gpus != int(gpus):
        problem = f"{gpus:g} is refused: vLLM needs whole GPUs; write 0, 1, 2 …"
        raise SpaceError([space.fault(("resources", "gpus"), problem)])
    kinds = checkpoints[0].config.get("architectures") or () if checkpoints else None
    check_vllm(space.fault(("search", "backend"), "").place, kinds)


def check_items(space: SearchSpace, parts: Sequence[ItemSet | None]) -> None:
    """Whether what runs the models knows how their texts are to be generated.

    Args:
        space: the space.
        parts: search and held-out items, as far as they could be built.

    Raises:
        TaskError: it does not.
    """
    if space.search.backend != "vllm":
        return
    faults = Faults()
    for items in parts:
        if items is not None:
            faults.gather(check_servable, items)
    faults.check()
