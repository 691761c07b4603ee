"""Families of small trained models to compare searches on: ``python -m tests.benchmarks.families``.

Each is an ordinary space with models and lm-eval tasks, built once into ``~/.cache/evomerge-bench``
(``$EVOMERGE_BENCH`` names another folder) in minutes on two cores, and the same on every run of one
machine. The families differ in what makes merging hard. They were made to be so (though not tuned
after they were measured): they show which search finds what there is, and say nothing of how much
merging gains elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.families.quickstart import FOLDER as _QUICKSTART

_HERE = Path(__file__).parent
_IDLE = ("__init__.py", "__main__.py", "measuring.py")  # what does not change what is built


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        name: of the family.
        note: what makes it hard to merge.
        room: whether a recipe better than every baseline exists: whether one of the compared
            searches found one with 200 full trials, with one seed (of ``text``: a guess).
        make: builds it into a folder.
    """

    name: str
    note: str
    room: bool
    make: Callable[[Path], None]

    @property
    def key(self) -> str:
        """What tells this family, as its scripts are now, from others of its name."""
        files = sorted([*_HERE.glob("*.py"), _QUICKSTART / "skills.py", _QUICKSTART / "train.py"])
        code = b"".join(path.read_bytes() for path in files if path.name not in _IDLE)
        return f"{self.name}-{hashlib.sha256(code).hexdigest()[:10]}"

    def build(self) -> Path:
        """The space's file; trained and written first if it is not there yet."""
        folder = cache() / self.key
        if not folder.exists():
            half = folder.with_name(f".{folder.name}.{os.getpid()}")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            try:
                self.make(half)
                half.rename(folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)
        return folder / "space.yaml"


def cache() -> Path:
    """Where families are kept."""
    named = os.environ.get("EVOMERGE_BENCH")
    return Path(named) if named else Path.home() / ".cache" / "evomerge-bench"


def _skilled(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from tests.benchmarks.families import building, skilled

        building.build_skilled(getattr(skilled, name), folder)

    return make


def _text(folder: Path) -> None:
    from tests.benchmarks.families import building

    building.build_text(folder)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "conflict", "the quickstart's kind: unequal, conflicting", True, _skilled("CONFLICT")
        ),
        Family("harm", "one model was taught only wrong answers", True, _skilled("HARM")),
        Family("large", "large task vectors", True, _skilled("LARGE")),
        Family("many", "eight models with overlapping skills", True, _skilled("MANY")),
        Family("layers", "each model is good in one half of its layers", True, _skilled("LAYERS")),
        Family("masks", "dare_ties: weights and densities", True, _skilled("MASKS")),
        Family("text", "bytes of Python, C++ headers and documentation", True, _text),
        Family("null", "a good base and three models that only hurt", False, _skilled("NULL")),
    )
}
