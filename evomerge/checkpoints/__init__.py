"""The only door to model files: lazy reading, adapters, vocabularies, atomic sharded writing."""

from __future__ import annotations

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.comparing import compare
from evomerge.checkpoints.placing import Conversion, Placement, Placements, placements
from evomerge.checkpoints.spreading import spread
from evomerge.checkpoints.structure import Structure, structure_by_names
from evomerge.checkpoints.writing import WrittenModel, write_model

__all__ = [
    "Checkpoint",
    "Conversion",
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
