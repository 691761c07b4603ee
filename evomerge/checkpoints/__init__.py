"""The only door to model files: lazy reading, adapters, vocabularies, atomic sharded writing.

Nothing heavy is imported until a name is used: the sums of files begin before torch is there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.fingerprints import Fingerprints

if TYPE_CHECKING:
    from evomerge.checkpoints.checkpoint import Checkpoint
    from evomerge.checkpoints.comparing import (
        compare,
        renumbered,
        same_tokenizer,
        vocabulary_faults,
    )
    from evomerge.checkpoints.merged_tokenizer import MergedTokenizer, MergedVocabulary
    from evomerge.checkpoints.placing import Conversion, Placement, Placements, placements
    from evomerge.checkpoints.sharing import CAN_SHARE, Shared
    from evomerge.checkpoints.spreading import spread
    from evomerge.checkpoints.structure import Structure, structure_by_names
    from evomerge.checkpoints.tokens import TokenTable
    from evomerge.checkpoints.tying import input_embedding, is_head, token_tensors
    from evomerge.checkpoints.vocabulary import Vocabulary
    from evomerge.checkpoints.writing import WrittenModel, write_model

_HOMES = {
    "checkpoint": ("Checkpoint",),
    "comparing": ("compare", "renumbered", "same_tokenizer", "vocabulary_faults"),
    "merged_tokenizer": ("MergedTokenizer", "MergedVocabulary"),
    "placing": ("Conversion", "Placement", "Placements", "placements"),
    "sharing": ("CAN_SHARE", "Shared"),
    "spreading": ("spread",),
    "structure": ("Structure", "structure_by_names"),
    "tokens": ("TokenTable",),
    "tying": ("input_embedding", "is_head", "token_tensors"),
    "vocabulary": ("Vocabulary",),
    "writing": ("WrittenModel", "write_model"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CAN_SHARE",
    "Checkpoint",
    "Conversion",
    "Fingerprints",
    "MergedTokenizer",
    "MergedVocabulary",
    "Placement",
    "Placements",
    "Shared",
    "Structure",
    "TokenTable",
    "Vocabulary",
    "WrittenModel",
    "compare",
    "input_embedding",
    "is_head",
    "placements",
    "renumbered",
    "same_tokenizer",
    "spread",
    "structure_by_names",
    "token_tensors",
    "vocabulary_faults",
    "write_model",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'evomerge.checkpoints' has no attribute {name!r}")
    return getattr(import_module(f"evomerge.checkpoints.{home}"), name)
