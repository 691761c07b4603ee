"""From seconds and bytes to figures beside their targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from tests.benchmarks.agreement import CLOSE, FEW, Agreement
from tests.benchmarks.commands import Commands
from tests.benchmarks.limits import limit_seconds
from tests.benchmarks.memory import Peak
from tests.benchmarks.ours import Ours
from tests.benchmarks.shapes import PRESETS, Shape

FASTER = {"dare_ties": 60.0, "ties": 150.0, "della": 120.0}
"""How many times faster than mergekit's executor a candidate is to be."""
OVER_LIMIT = {"dare_ties": 2.0, "ties": 2.0, "della": 3.0}
"""How many times the limit a candidate may take."""
COMMAND_FASTER = {"dare_ties": 8.0, "ties": 15.0, "della": 15.0}
"""How many times faster than ``mergekit-yaml`` the whole command is to be."""
GPU_SECONDS = {"dare_ties": 0.06}
"""Seconds that a candidate of 8B may take on a GPU."""
SPARE = 1.5
"""Peak memory in models, beyond those that are held (base and fine-tuned: N + 1)."""


@dataclass(frozen=True)
class Figure:
    """One figure, as it is to be read.

    Args:
        name: what it is.
        value: with its unit.
        target: what it is to be; empty if nothing is asked.
        met: whether it is; None without a target.
    """

    name: str
    value: str
    target: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """ok, short or nothing."""
        return {None: "", True: "ok", False: "short"}[self.met]


@dataclass(frozen=True)
class Result:
    """All that was measured of one method.

    Args:
        method: the method.
        shape: the models'.
        models_held: base and fine-tuned models that its recipe reads.
        device: cpu or cuda.
        ours: our merges.
        theirs: seconds of mergekit's; none if it was not run.
        peak: our peak memory; None on a GPU or where it cannot be measured.
        commands: the whole commands; None if they were not run.
        agreement: of both programs' results; None if they were not compared.
    """

    method: str
    shape: Shape
    models_held: int
    device: str
    ours: Ours
    theirs: tuple[float, ...] = ()
    peak: Peak | None = None
    commands: Commands | None = None
    agreement: Agreement | None = None

    @property
    def seconds(self) -> float:
        """The median of our candidates."""
        return median(self.ours.seconds)

    @property
    def ratio(self) -> float | None:
        """How many times faster we are than mergekit; None if it was not run."""
        return median(self.theirs) / self.seconds if self.theirs else None

    @property
    def limit(self) -> float:
        """Seconds of reading every model once and writing one."""
        return limit_seconds(self.shape.parameters, self.models_held, self.ours.bandwidth)

    @property
    def over_limit(self) -> float:
        """Our candidate over the limit."""
        return self.seconds / self.limit

    @property
    def asked(self) -> bool:
        """Whether the targets are about this shape, number of models and device."""
        return (self.shape, self.models_held, self.device) == (PRESETS["350m"], 4, "cpu")

    def figures(self) -> Iterator[Figure]:
        """Everything, in the order in which it is printed."""
        yield from self._speed()
        yield from self._preparation()
        yield from self._memory()
        yield from self._whole_commands()
        if self.agreement is not None:
            yield from _agreed(self.agreement)

    def data(self) -> dict[str, Any]:
        """Everything, for other programs: what was measured, and the figures."""
        derived = {key: getattr(self, key) for key in ("seconds", "ratio", "limit", "over_limit")}
        return {**asdict(self), **derived, "figures": [asdict(one) for one in self.figures()]}

    def _speed(self) -> Iterator[Figure]:
        gpu = self.device == "cuda" and self.shape == PRESETS["8b"] and self.models_held == 4
        yield _at_most("ours, per candidate", self.seconds, "s", self._target(GPU_SECONDS, gpu))
        if self.theirs:
            yield Figure("mergekit's executor, per candidate", number(median(self.theirs), "s"))
            yield _at_least("times faster", self.ratio or 0.0, self._target(FASTER))
        bandwidth = number(self.ours.bandwidth / 1e9, "GB/s")
        yield Figure("limit: read once, written once", number(self.limit, "s"))
        yield Figure("copy bandwidth, read and written", bandwidth)
        yield _at_most("over the limit", self.over_limit, "×", self._target(OVER_LIMIT))

    def _preparation(self) -> Iterator[Figure]:
        yield Figure("loading the models", number(self.ours.load, "s"))
        once = median(self.theirs) if self.theirs and self.asked else None
        yield _at_most("first candidate, with the preparation", self.ours.preparation, "s", once)
        yield Figure("kept beside the models", number(self.ours.kept / self.shape.nbytes, "models"))

    def _memory(self) -> Iterator[Figure]:
        target = self.models_held + SPARE if self.asked else None
        if self.peak is not None:
            models = self.peak.bytes / self.shape.nbytes
            yield _at_most("peak memory", models, "models", target)
            program = number(self.peak.program / 1e6, "MB")
            yield Figure("the program itself, beside that", program)
        if self.ours.gpu_peak is not None:
            models = self.ours.gpu_peak / self.shape.nbytes
            yield _at_most("peak memory of the GPU", models, "models", self.models_held + SPARE)

    def _whole_commands(self) -> Iterator[Figure]:
        if self.commands is None:
            return
        for name, taken in (
            ("evomerge merge, whole command", self.commands.ours),
            ("mergekit-yaml, whole command", self.commands.theirs),
            ("reading and writing as much, plainly", self.commands.plain),
            ("a command that does nothing", self.commands.bare),
        ):
            yield Figure(name, number(median(taken), "s"))
        yield _at_least("command, times faster", self.commands.ratio, self._target(COMMAND_FASTER))

    def _target(self, targets: dict[str, float], applies: bool | None = None) -> float | None:
        return targets.get(self.method) if (self.asked if applies is None else applies) else None


def number(value: float, unit: str = "") -> str:
    """Three digits and a unit: ``0.0123 s``, ``61.3×``."""
    digits = f"{value:.3g}" if 1e-3 <= abs(value) < 1000 or value == 0 else f"{value:.3e}"
    if abs(value) >= 1000:
        digits = f"{value:.0f}"
    return f"{digits}{unit}" if unit == "×" else f"{digits} {unit}".rstrip()


def _at_most(name: str, value: float, unit: str, target: float | None) -> Figure:
    if target is None:
        return Figure(name, number(value, unit))
    return Figure(name, number(value, unit), f"≤ {number(target, unit)}", value <= target)


def _at_least(name: str, value: float, target: float | None) -> Figure:
    if target is None:
        return Figure(name, number(value, "×"))
    return Figure(name, number(value, "×"), f"≥ {number(target, '×')}", value >= target)


def _agreed(agreement: Agreement) -> Iterator[Figure]:
    if agreement.compared:
        value = f"{agreement.different:.1e} of {agreement.compared:.1%}"
        target = f"≤ {FEW:.0e}"
        yield Figure("numbers that both have differently", value, target, agreement.same_numbers)
    if not math.isnan(agreement.change):
        value, target = f"{agreement.change:.4f}×", f"1 ± {CLOSE}"
        met = agreement.same_change
        yield Figure("change of the base over mergekit's", value, target, met)
