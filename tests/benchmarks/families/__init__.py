"""Families of small trained models to compare searches on: ``python -m tests.benchmarks.families``.

Each is an ordinary space with models and lm-eval tasks, built once into ``~/.cache/evomerge-bench``
(``$EVOMERGE_BENCH`` names another folder) in minutes on two cores, and the same on every run of one
machine. The families differ in what makes merging hard. They were made to be so. What was measured
changed two of them: the clozes of ``text`` were too hard and its base knew too much; the genome of
``twins`` left room above the grid of lambdas. They show which search finds what there is, and say
nothing of how much merging gains elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.families.keys import Origin


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        name: of the family.
        note: what makes it hard to merge.
        room: whether a recipe better than every baseline exists: whether a long search found one
            (of ``text`` one that is .004 to .008 better, of ``twins`` none within .002).
        make: builds it into a folder.
        origin: all that decides what ``make`` builds.
    """

    name: str
    note: str
    room: bool
    make: Callable[[Path], None]
    origin: Callable[[], Origin]

    @property
    def key(self) -> str:
        """What tells this family, as it is built now, from others of its name."""
        return f"{self.name}-{self.origin().digest()}"

    def build(self) -> Path:
        """The space's file; trained and written first if it is not there yet.

        What killed builds left half done is removed before.
        """
        folder = cache() / self.key
        if not folder.exists():
            _sweep()
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


def _sweep() -> None:
    """Remove the folders of builds whose process is gone."""
    for half in cache().glob(".*-*.*"):
        process = half.name.rpartition(".")[2]
        if not process.isdecimal():
            continue
        with suppress(PermissionError):  # alive, another user's
            try:
                os.kill(int(process), 0)
            except (ProcessLookupError, OverflowError):
                shutil.rmtree(half, ignore_errors=True)


def _skilled(name: str, note: str, *, room: bool) -> Family:
    """A family of :mod:`~tests.benchmarks.families.skilled`."""

    def make(folder: Path) -> None:
        from tests.benchmarks.families import building, skilled

        building.build_skilled(getattr(skilled, name.upper()), folder)

    def origin() -> Origin:
        from tests.benchmarks.families import keys, skilled

        return keys.of_skilled(getattr(skilled, name.upper()))

    return Family(name, note, room, make, origin)


def _text() -> Family:
    def make(folder: Path) -> None:
        from tests.benchmarks.families import texts

        texts.build_text(folder)

    def origin() -> Origin:
        from tests.benchmarks.families import keys

        return keys.of_text()

    note = "bytes of Python, C++ headers and documentation"
    return Family("text", note, True, make, origin)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _skilled("conflict", "the quickstart's kind: unequal, conflicting", room=True),
        _skilled("harm", "one model was taught only wrong answers", room=True),
        _skilled("large", "large task vectors", room=True),
        _skilled("many", "eight models with overlapping skills", room=True),
        _skilled("layers", "each model is good in one half of its layers", room=True),
        _skilled("masks", "dare_ties: weights and densities", room=True),
        _text(),
        _skilled("null", "a good base and three models that only hurt", room=False),
        _skilled("twins", "four models of the same questions, other seeds", room=False),
    )
}
