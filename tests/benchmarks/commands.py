"""The whole commands, one process per merge: ``evomerge merge`` and ``mergekit-yaml``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.benchmarks.candidates import candidate, models_of, reads_base
from tests.benchmarks.models import Family

_CHUNK = 1 << 24


@dataclass
class Commands:
    """Seconds from start to exit.

    Args:
        ours: of each ``evomerge merge``.
        theirs: of each ``mergekit-yaml``.
        plain: of reading the same inputs and writing and syncing as many bytes as the result has.
        bare: of ``evomerge --version``: a process that does nothing.
    """

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return median(self.theirs) / median(self.ours)


def time_commands(
    family: Family, method: str, folder: Path, *, repetitions: int, dtype: str, threads: int
) -> Commands:
    """Run both in turn on the same recipe, the inputs in the page cache.

    Args:
        family: the models.
        method: a key of ``METHODS``.
        folder: where the merged models are written and deleted again.
        repetitions: how often each runs.
        dtype: of mergekit's arithmetic.
        threads: of both programs' arithmetic.
    """
    tuned = family.tuned[: models_of(method, family)]
    read = [family.base, *tuned] if reads_base(method) else list(tuned)
    inputs = [file for path in read for file in sorted(path.glob("*.safetensors"))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    ours, theirs = (str(Path(sys.executable).parent / n) for n in ("evomerge", "mergekit-yaml"))
    result, size = Commands(), family.shape.nbytes
    for file in inputs:
        _read(file)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        recipe, out = Path(place, "recipe.yaml"), Path(place, "merged")
        recipe.write_text(candidate(family, method, 0, dtype))
        for _ in range(repetitions):
            result.plain.append(_plainly(inputs, size, Path(place, "plain")))
            result.bare.append(_run([ours, "--version"], environment))
            result.ours.append(_run([ours, "merge", str(recipe), str(out)], environment))
            shutil.rmtree(out)
            result.theirs.append(_run([theirs, str(recipe), str(out), "--quiet"], environment))
            shutil.rmtree(out)
    return result


def _run(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    took = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return took


def _plainly(inputs: list[Path], nbytes: int, target: Path) -> float:
    start = time.perf_counter()
    for path in inputs:
        _read(path)
    chunk = os.urandom(min(nbytes, _CHUNK))
    with target.open("wb", buffering=0) as file:
        for written in range(0, nbytes, _CHUNK):
            file.write(chunk[: nbytes - written])
        os.fsync(file.fileno())
    took = time.perf_counter() - start
    target.unlink()
    return took


def _read(path: Path) -> None:
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
