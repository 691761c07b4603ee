"""Peak memory of our merges, in a process of its own that has done nothing else.

``python -m tests.benchmarks.memory`` reads a job (JSON) from stdin and prints what it measured.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from evomerge.recipe import Recipe
from tests.benchmarks.candidates import candidate
from tests.benchmarks.models import Family, empty_model, ensure_family
from tests.benchmarks.ours import build_engine
from tests.benchmarks.shapes import Shape

_ROOT = Path(__file__).parents[2]
_CANDIDATES = 3


@dataclass(frozen=True)
class Peak:
    """What a process used.

    Args:
        bytes: the most that loading and merging took beyond ``program``: models, the live model,
            everything kept and everything passing.
        program: what the bare program had grown by after a merge of one small layer: compiled
            kernels and the libraries behind them, whatever the models' size.
    """

    bytes: int
    program: int


def measure_peak(folder: Path, shape: Shape, count: int, method: str, threads: int) -> Peak | None:
    """Merge some candidates on the CPU in a process of their own; None where /proc is not Linux's.

    Args:
        folder: where the models are.
        shape: theirs.
        count: how many fine-tuned ones.
        method: a key of ``METHODS``.
        threads: of the arithmetic.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    job = {"folder": str(folder), "shape": asdict(shape), "count": count, "method": method}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.memory"],
        input=json.dumps({**job, "threads": threads}),
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The child's part."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    folder, shape = Path(job["folder"]), Shape(**job["shape"])
    bare = _status("VmRSS")
    _merge(ensure_family(folder, shape.one_layer(), job["count"]), job["method"])
    _give_back()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    _merge(ensure_family(folder, shape, job["count"]), job["method"])
    print(json.dumps(asdict(Peak(_status("VmHWM") - before, before - bare))))


def _merge(family: Family, method: str) -> None:
    cpu = torch.device("cpu")
    engine = build_engine(family, method, cpu)
    live = empty_model(family.shape, cpu)
    for number in range(_CANDIDATES):
        engine.merge_into(live, Recipe.from_yaml(candidate(family, method, number)))


def _give_back() -> None:
    """Let go of what is freed but still counted."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(key: str) -> int:
    """A number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
