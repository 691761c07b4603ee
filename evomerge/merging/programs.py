"""Running kernels: as they are, or compiled once on a machine and kept for all later runs.

On a CPU a kernel is compiled ahead of time (AOTInductor) into a file of the user's cache, by a
process of its own, so that neither the compiler's imports nor its memory stay in this one; loading
it again takes milliseconds, and calling it microseconds. Compiled or not, the bits are the same, so
that it is a matter of time alone: a kernel is compiled once that costs less than what is still
computed without. On a CUDA device a kernel is always compiled (``torch.compile``, to Triton), whose
multiplications and additions are fused: there the two would differ by roundings.

``EVOMERGE_CACHE`` names another folder than ``~/.cache/evomerge`` for what is kept;
``EVOMERGE_COMPILE`` set to ``never`` compiles nothing on a CPU, to ``always`` everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch

from evomerge.merging import kernels
from evomerge.merging.kernels import WHOLE, Kernel

Program = Callable[[list[torch.Tensor]], object]

TILE = 1 << 18
"""Elements that are computed at a time without a compiler: their steps stay in the cache."""

COMPILING = 15.0
"""Seconds that compiling a kernel takes, about (5 to 9 seen, and the compiler's start)."""

EAGER = 12e-9
"""Seconds per element and model without a compiler, about; only for the first decision."""

_TOO_LONG = 600  # seconds


class Programs:
    """Kernels ready to run on one device.

    Args:
        device: where the tensors are.
        ahead: elements times models that are known to come, beyond what is run so far.
    """

    def __init__(self, device: torch.device, ahead: int = 0) -> None:
        self._device = device
        self._known: dict[Kernel, _Known] = {}
        self.ahead = ahead

    def run(
        self,
        kernel: Kernel,
        tensors: Sequence[torch.Tensor],
        numel: int,
        tables: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Run a kernel over ``numel`` elements, in as few pieces as it takes.

        Args:
            kernel: what to compute; no ``sums``, whose pieces must be added (``run_piece``).
            tensors: in the kernel's order, without the two tables; of shape [numel].
            numel: how many elements.
            tables: from a piece's first element to its ``floats`` and ``ints``.
        """
        for start, stop in self.pieces(kernel, numel):
            floats, ints = tables(start)
            whole = stop - start == numel
            pieces = tensors if whole else [tensor[start:stop] for tensor in tensors]
            self.run_piece(kernel, [*pieces, floats, ints])

    def pieces(self, kernel: Kernel, numel: int) -> list[tuple[int, int]]:
        """The pieces to run a kernel in, first element and the one after the last."""
        step = WHOLE if self.compiled(kernel) else TILE
        return [(start, min(start + step, numel)) for start in range(0, numel, step)]

    def compiled(self, kernel: Kernel) -> bool:
        """Whether a kernel runs compiled."""
        return self._look_up(kernel).program is not None

    def run_piece(self, kernel: Kernel, tensors: list[torch.Tensor]) -> None:
        """Run a kernel over one piece: all that it reads and writes, the tables last."""
        known = self._look_up(kernel)
        program = known.program
        # A compiled program is made for any length but these two.
        if program is not None and tensors[0].shape[0] > 1:
            program(tensors)
            return
        began = time.perf_counter()
        with torch.no_grad():
            kernels.run(kernel, tensors)
        known.spent += time.perf_counter() - began

    def _look_up(self, kernel: Kernel) -> _Known:
        known = self._known.get(kernel)
        if known is None:
            known = self._known[kernel] = _Known()
        elif known.program is not None or not self._pays(kernel, known.spent):
            return known
        known.program = self._make(kernel, known.spent)
        return known

    def _make(self, kernel: Kernel, spent: float) -> Program | None:
        if self._device.type != "cpu":
            return _compiled_in_process(kernel)
        if _mode() == "never":
            return None
        try:
            path = _path(kernel)
            if not path.exists() and self._pays(kernel, spent):
                compile_into_cache(kernel)
            return _load(kernel, path) if path.exists() else None
        except (OSError, RuntimeError) as problem:  # no home, or one that cannot be searched
            _gave_up(kernel, problem)
            return None

    def _pays(self, kernel: Kernel, spent: float) -> bool:
        """Whether compiling costs less than what has been, and will be, computed without."""
        mode = _mode()
        if mode == "never" or kernel in _FAILED:
            return False
        return mode == "always" or spent + EAGER * self.ahead > COMPILING


@dataclass
class _Known:
    """A kernel's program, None where it runs as it is, and the seconds that this took so far."""

    program: Program | None = None
    spent: float = 0.0


def compile_into_cache(kernel: Kernel) -> bool:
    """Compile a kernel for the CPU into the cache, unless it lies there; whether it does then.

    Another process may be compiling the same: then this one does not wait, and goes on without.
    """
    path = _path(kernel)
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Lock(lock) as free:
            if free and not path.exists():
                _compile_in_process_of_its_own(kernel, path)
    except (OSError, subprocess.SubprocessError) as problem:
        _gave_up(kernel, problem)
    return path.exists()


def _gave_up(kernel: Kernel, problem: Exception) -> None:
    _FAILED.add(kernel)
    warnings.warn(
        f"merging goes on without a compiler, which is slower: {_told(problem)}", stacklevel=3
    )


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    named = os.environ.get("EVOMERGE_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "evomerge"


_FAILED: set[Kernel] = set()


class _Lock:
    """A lock file that is held or not, never waited for; the system frees it with its process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> bool:
        import fcntl

        self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _mode() -> str:
    return os.environ.get("EVOMERGE_COMPILE", "auto")


def _told(problem: Exception) -> str:
    if isinstance(problem, subprocess.CalledProcessError):
        lines = [line for line in (problem.stderr or "").splitlines() if line.strip()]
        return lines[-1] if lines else f"the compiler ended with {problem.returncode}"
    return str(problem)


def _path(kernel: Kernel) -> Path:
    text = json.dumps([asdict(kernel), _machine()], sort_keys=True)
    return cache_folder() / "kernels" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.pt2"


@lru_cache(maxsize=1)
def _machine() -> list[str]:
    """All else that a compiled kernel depends on."""
    flags = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    names = ("entries.py", "kernels.py", "compiling.py")
    source = b"".join(Path(kernels.__file__).with_name(name).read_bytes() for name in names)
    digest = hashlib.sha256(source + flags.encode()).hexdigest()
    return [digest, torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability()]


def _load(kernel: Kernel, path: Path) -> Program | None:
    """A kernel from the cache; None if it cannot be loaded. A damaged file is deleted.

    The loader's class is what ``torch._inductor.aoti_load_package`` wraps; that function imports
    the whole compiler, which takes longer (2 s) than merging a small model.
    """
    try:
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        program: Program = loader.boxed_run
        return program
    except (AttributeError, TypeError):
        public = torch._inductor.aoti_load_package(str(path))
        return lambda tensors: public(tensors)
    except RuntimeError as problem:
        _FAILED.add(kernel)
        told = str(problem).splitlines()[0]
        if _is_sound(path):  # it could not be unpacked: a full disk, say
            warnings.warn(f"{path} cannot be loaded: {told}", stacklevel=2)
        else:
            path.unlink(missing_ok=True)
            warnings.warn(f"{path}: deleted, it cannot be loaded: {told}", stacklevel=2)
        return None


def _is_sound(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _compiled_in_process(kernel: Kernel) -> Program:
    program = torch.compile(partial(kernels.run, kernel), dynamic=True, fullgraph=True)

    def run(tensors: list[torch.Tensor]) -> None:
        with torch.no_grad():
            program(tensors)

    return run


def _compile_in_process_of_its_own(kernel: Kernel, path: Path) -> None:
    partly = path.with_suffix(f".{os.getpid()}.part.pt2")
    try:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "evomerge.merging.compiling",
                json.dumps(asdict(kernel)),
                str(partly),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=_TOO_LONG,
        )
        partly.replace(path)
    finally:
        partly.unlink(missing_ok=True)
