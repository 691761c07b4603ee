"""The ask → dispatch → tell loop: baselines first, workers that may die, a verdict at the end.

Import the module that is needed: ``session`` runs a whole search, ``loop`` its core, ``workers``
alone knows Ray, ``sampler``, ``cmaes`` and ``storage`` alone know Optuna.

Called, the room is the verb: importing any part of it puts it where ``evomerge.search`` stood.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        # The verb lies above this room, so it is asked for by name.
        return sys.modules["evomerge"].__getattr__("search")(*arguments, **options)


sys.modules[__name__].__class__ = _Room
