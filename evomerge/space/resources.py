"""What a search may take of a machine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evomerge.space.specs import Count, Real
from evomerge.space.strict import Strict


class ResourceSpec(Strict):
    """What a search may take; None leaves it to the machine.

    Args:
        gpus: for each worker; a fraction shares one.
        cpus: for each worker.
        workers: how many run at once.
        residency: where each worker holds the models: ``device`` (with the arithmetic), ``host``
            (in the machine's memory, one copy for all its workers) or ``auto``, by their sizes.
    """

    gpus: Annotated[Real, Field(ge=0)] | None = None
    cpus: Annotated[Real, Field(gt=0)] | None = None
    workers: Count | None = None
    residency: Literal["auto", "device", "host"] = "auto"
