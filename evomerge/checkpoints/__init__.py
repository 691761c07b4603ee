"""The only door to model files: lazy reading, adapters, vocabularies, atomic sharded writing.

Nothing heavy is imported until a name is used: the sums of files begin before torch is there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.fingerprints import Fingerprints

if TYPE_CHECKING:
    from evomerge.checkpoints.checkpoint import Checkpoint
    from evomerge.checkpoints.comparing import compare
    from evomerge.checkpoints.placing import Conversion, Placement, Placements, placements
    from evomerge.checkpoints.spreading import spread
    from evomerge.checkpoints.structure import Structure, structure_by_names
    from evomerge.checkpoints.writing import WrittenModel, write_model

_HOMES = {
    "checkpoint": ("Checkpoint",),
    "comparing": ("compare",),
    "placing": ("Conversion", "Placement", "Placements", "placements"),
    "spreading": ("spread",),
    "structure": ("Structure", "structure_by_names"),
    "writing": ("WrittenModel", "write_model"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Checkpoint",
    "Conversion",
    "Fingerprints",
    "Placement",
    "Placements",
    "Structure",
    "WrittenModel",
    "compare",
    "placements",
    "spread",
    "structure_by_names",
    "write_model",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'evomerge.checkpoints' has no attribute {name!r}")
    return getattr(import_module(f"evomerge.checkpoints.{home}"), name)
