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
    from evomerge.checkpoints.spreading import spread
    from evomerge.checkpoints.writing import WrittenModel, write_model

_HOMES = {
    "Checkpoint": "evomerge.checkpoints.checkpoint",
    "WrittenModel": "evomerge.checkpoints.writing",
    "compare": "evomerge.checkpoints.comparing",
    "spread": "evomerge.checkpoints.spreading",
    "write_model": "evomerge.checkpoints.writing",
}

__all__ = ["Checkpoint", "Fingerprints", "WrittenModel", "compare", "spread", "write_model"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'evomerge.checkpoints' has no attribute {name!r}")
    return getattr(import_module(home), name)
