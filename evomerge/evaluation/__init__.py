"""lm-eval tasks → a fixed set of items, tokenised once; a scorer that runs them on a live model."""

from __future__ import annotations

from evomerge.evaluation.building import build_items
from evomerge.evaluation.fitness import fitness, fitness_error, goals
from evomerge.evaluation.items import ItemSet
from evomerge.evaluation.paired import Comparison, TaskComparison, compare
from evomerge.evaluation.queries import context_length
from evomerge.evaluation.scorer import Scorer
from evomerge.evaluation.scores import Scores, TaskScore, Value
from evomerge.evaluation.spec import MetricName, Setting, TaskRequest

__all__ = [
    "Comparison",
    "ItemSet",
    "MetricName",
    "Scorer",
    "Scores",
    "Setting",
    "TaskComparison",
    "TaskRequest",
    "TaskScore",
    "Value",
    "build_items",
    "compare",
    "context_length",
    "fitness",
    "fitness_error",
    "goals",
]
