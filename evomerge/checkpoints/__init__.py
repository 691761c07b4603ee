"""The only door to model files: lazy reading, adapters, vocabularies, atomic sharded writing."""

from __future__ import annotations

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.comparing import compare, renumbered, same_tokenizer, vocabulary_faults
from evomerge.checkpoints.merged_tokenizer import MergedTokenizer, MergedVocabulary
from evomerge.checkpoints.spreading import spread
from evomerge.checkpoints.tokens import TokenTable
from evomerge.checkpoints.tying import input_embedding, is_head, token_tensors
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.checkpoints.writing import WrittenModel, write_model

__all__ = [
    "Checkpoint",
    "MergedTokenizer",
    "MergedVocabulary",
    "TokenTable",
    "Vocabulary",
    "WrittenModel",
    "compare",
    "input_embedding",
    "is_head",
    "renumbered",
    "same_tokenizer",
    "spread",
    "token_tensors",
    "vocabulary_faults",
    "write_model",
]
