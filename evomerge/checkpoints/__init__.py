"""The only door to model files: lazy reading, adapters, vocabularies, atomic sharded writing."""

from __future__ import annotations

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.comparing import compare
from evomerge.checkpoints.spreading import spread
from evomerge.checkpoints.writing import WrittenModel, write_model

__all__ = ["Checkpoint", "WrittenModel", "compare", "spread", "write_model"]
