"""evomerge: find the merge of language models that keeps the best of each, and prove it.

The verbs of the command line, for Python. Nothing heavy is imported until a verb is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from evomerge.api import check, evaluate, export, load_study, merge, search
    from evomerge.evaluation import Scorer
    from evomerge.merging import MergeEngine
    from evomerge.recipe import load_recipe
    from evomerge.space import load_space

_HOMES = {
    "MergeEngine": "evomerge.merging",
    "Scorer": "evomerge.evaluation",
    "check": "evomerge.api",
    "evaluate": "evomerge.api",
    "export": "evomerge.api",
    "load_recipe": "evomerge.recipe",
    "load_space": "evomerge.space",
    "load_study": "evomerge.api",
    "merge": "evomerge.api",
    "search": "evomerge.api",
}

__all__ = [
    "MergeEngine",
    "Scorer",
    "__version__",
    "check",
    "evaluate",
    "export",
    "load_recipe",
    "load_space",
    "load_study",
    "merge",
    "search",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    return getattr(import_module(home), name)
