"""Running kernels: as they are, or compiled once on a machine and kept for all later runs.

On a CPU a kernel is compiled ahead of time (AOTInductor) into a file of the user's cache, by a
process of its own, so that neither the compiler's imports nor its memory stay in this one; loading
it again takes milliseconds, and calling it microseconds. Compiled or not, the bits are the same, so
that it is a matter of time alone: a kernel is compiled once that costs less than what is still
computed without. On a CUDA device a kernel is always compiled (``torch.compile``, to Triton), whose
multiplications and additions are fused: there the two would differ by roundings, and so may two
kernels, which is why those whose numbers are compared run as they are.

``EVOMERGE_CACHE`` names another folder than ``~/.cache/evomerge`` for what is kept;
``EVOMERGE_COMPILE`` set to ``never`` compiles nothing on a CPU, to ``always`` everything.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from evomerge.merging.kernels import WHOLE
from evomerge.merging.taskvectors import pieces

Program = Callable[[list[torch.Tensor]], object]

COMPILING = 15.0
"""Seconds that compiling a kernel takes, about (5 to 9 seen, and the compiler's start)."""

_SOURCES = ("entries", "kernels", "mixtures", "fusion", "compiling")
"""The modules that a compiled kernel is made of."""

_TOO_LONG = 600  # seconds
_SCRATCH = 64 << 20  # bytes that are kept for kernels to write to


class AnyKernel(Protocol):
    """A pass over tensors of one shape: a frozen dataclass of plain values, so that equal ones are
    compiled once.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def eager(self) -> float:
        """Seconds per element and model without a compiler, about; only for a first decision."""
        ...

    @property
    def compares(self) -> bool:
        """Whether numbers of two passes are compared, which must then be alike to the last bit."""
        ...

    def run(self, tensors: Sequence[torch.Tensor]) -> None:
        """Read the inputs and write the outputs among ``tensors``, in place."""
        ...

    def __hash__(self) -> int: ...


class Runner:
    """A kernel as it runs now: compiled, or as it is.

    Args:
        kernel: the pass.
        device: where the tensors are.
    """

    def __init__(self, kernel: AnyKernel, device: torch.device) -> None:
        self.kernel, self._device = kernel, device
        self.program: Program | None = None
        self.spent = 0.0
        # A program runs once at a time: torch lets a second call wait while it holds Python's lock.
        self._running = threading.Lock()

    @property
    def compiled(self) -> bool:
        """Whether it runs compiled."""
        return self.program is not None

    def run(
        self,
        tensors: Sequence[torch.Tensor],
        numel: int,
        tables: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Run the kernel over ``numel`` elements, in as few pieces as it takes.

        Args:
            tensors: in the kernel's order, without the two tables; of shape [numel]. No ``sums``,
                whose pieces must be added (``run_piece``).
            numel: how many elements.
            tables: from a piece's first element to its ``floats`` and ``ints``.
        """
        for start, mine in self.pieces(tensors, numel):
            self.run_piece([*mine, *tables(start)])

    def pieces(
        self, tensors: Sequence[torch.Tensor], numel: int
    ) -> Iterator[tuple[int, Sequence[torch.Tensor]]]:
        """The pieces to run it in: each one's first element, and the tensors cut to it."""
        for start, stop in self.ranges(numel):
            whole = stop - start == numel
            yield start, tensors if whole else [tensor[start:stop] for tensor in tensors]

    def ranges(self, numel: int, unit: int = 1) -> Iterator[tuple[int, int]]:
        """The same as ranges of elements: whole units (rows), at least one unit each."""
        if self.compiled and numel <= WHOLE:
            return iter([(0, numel)] if numel else [])
        return pieces(numel, self._device, unit, WHOLE if self.compiled else None)

    def run_piece(self, tensors: list[torch.Tensor]) -> None:
        """Run the kernel over one piece: all that it reads and writes, the tables last."""
        # A compiled program is made for any lengths but these two.
        if self.program is not None and min(tensors[0].shape) > 1:
            with self._running:
                self.program(tensors)
            return
        began = time.perf_counter()
        with torch.no_grad():
            self.kernel.run(tensors)
        self.spent += time.perf_counter() - began


class Programs:
    """Kernels ready to run on one device.

    Args:
        device: where the tensors are.
        ahead: elements times models that are known to come, beyond what is run so far.
    """

    def __init__(self, device: torch.device, ahead: int = 0) -> None:
        self._device = device
        self._runners: dict[AnyKernel, Runner] = {}
        self._scratch = threading.local()
        self.ahead = ahead

    def of(self, kernel: AnyKernel) -> Runner:
        """A kernel's runner; compiled first where that pays by now. Ask for each tensor anew."""
        runner = self._runners.get(kernel)
        if runner is None:
            runner = self._runners[kernel] = Runner(kernel, self._device)
        elif runner.compiled or not self._pays(kernel, runner.spent):
            return runner
        runner.program = self._make(kernel, runner.spent)
        return runner

    def scratch(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory that a kernel may write to, shape [numel]; until this thread asks again.

        On a CPU it is the same each time, up to 64 MB, which are kept: taken from the system anew
        for each tensor, its empty pages would cost as much as a third of a candidate. (CUDA's
        allocator keeps its own.)
        """
        nbytes = numel * dtype.itemsize
        if self._device.type != "cpu" or nbytes > _SCRATCH:
            return torch.empty(numel, dtype=dtype, device=self._device)
        held: torch.Tensor | None = getattr(self._scratch, "held", None)
        if held is None or held.numel() < nbytes:
            self._scratch.held = held = None  # before the new one is taken
            held = self._scratch.held = torch.empty(nbytes, dtype=torch.uint8)
        return held[:nbytes].view(dtype)

    def _make(self, kernel: AnyKernel, spent: float) -> Program | None:
        if self._device.type != "cpu":
            return None if kernel.compares else _compiled_in_process(kernel, self._device)
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

    def _pays(self, kernel: AnyKernel, spent: float) -> bool:
        """Whether compiling costs less than what has been, and will be, computed without."""
        mode = _mode()
        if mode == "never" or kernel in _FAILED:
            return False
        return mode == "always" or spent + kernel.eager * self.ahead > COMPILING


def compile_into_cache(kernel: AnyKernel) -> bool:
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


def _gave_up(kernel: AnyKernel, problem: Exception) -> None:
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


_FAILED: set[AnyKernel] = set()
_NUMBERS = itertools.count()


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


def _named(kernel: AnyKernel) -> dict[str, object]:
    """A kernel as plain values: its class's name and its fields."""
    return {"class": type(kernel).__name__, **asdict(kernel)}


def _path(kernel: AnyKernel) -> Path:
    text = json.dumps([_named(kernel), _machine()], sort_keys=True)
    return cache_folder() / "kernels" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.pt2"


@lru_cache(maxsize=1)
def _machine() -> list[str]:
    """All else that a compiled kernel depends on."""
    flags = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    folder = Path(__file__).parent
    source = b"".join((folder / f"{name}.py").read_bytes() for name in _SOURCES)
    digest = hashlib.sha256(source + flags.encode()).hexdigest()
    return [digest, torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability()]


def _load(kernel: AnyKernel, path: Path) -> Program | None:
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


@cache
def _compiled_in_process(kernel: AnyKernel, device: torch.device) -> Program:
    """A kernel compiled for one device, once for all engines of this process."""

    def run(tensors: list[torch.Tensor]) -> None:
        kernel.run(tensors)

    # torch compiles the same code object 8 times at most, whatever it is a closure of: for each
    # kind of shapes, and for each device.
    run.__code__ = run.__code__.replace(co_name=f"{type(kernel).__name__}_{next(_NUMBERS)}")
    program = torch.compile(run, dynamic=True, fullgraph=True)

    def compiled(tensors: list[torch.Tensor]) -> None:
        with torch.no_grad():
            program(tensors)

    return compiled


def _compile_in_process_of_its_own(kernel: AnyKernel, path: Path) -> None:
    partly = path.with_suffix(f".{os.getpid()}.part.pt2")
    try:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "evomerge.merging.compiling",
                json.dumps(_named(kernel)),
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
