"""How fast and how large merges are, beside mergekit 0.1.5's and the memory's own speed.

``python -m tests.benchmarks.merge --help``. Random bfloat16 models are made once and kept in
``--workdir``. Both sides merge the same recipes, a different one each time: other weights and
densities for every model and layer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from evomerge.recipe import METHODS
from tests.benchmarks.agreement import Agreement, compare
from tests.benchmarks.candidates import candidate, models_of, reads_base
from tests.benchmarks.commands import time_commands
from tests.benchmarks.limits import CopyBandwidth, seconds_of
from tests.benchmarks.memory import measure_peak
from tests.benchmarks.models import Family, empty_model, ensure_family
from tests.benchmarks.ours import time_ours
from tests.benchmarks.results import Result
from tests.benchmarks.shapes import PRESETS, parse_shape


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if ``--verify`` found the two programs to disagree."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    options.workdir.mkdir(parents=True, exist_ok=True)
    family = ensure_family(options.workdir, options.shape, options.models)
    device = torch.device(options.device)
    before = load()
    live, copies = empty_model(family.shape, device), CopyBandwidth(device, options.copy_bytes)
    results = []
    for method in options.methods:
        print(f"{method} …", file=sys.stderr)
        results.append(_measure(family, method, live, copies, options))
    conditions = {**_conditions(options, device), "load of the machine": f"{before} … {load()}"}
    show(results, conditions)
    if options.json:
        data = {"conditions": conditions, "results": [result.data() for result in results]}
        options.json.write_text(json.dumps(data, indent=2, default=str) + "\n")
    return 1 if any(one.agreement and not one.agreement.holds for one in results) else 0


def show(results: Sequence[Result], conditions: dict[str, Any]) -> None:
    """The figures as a table; without colours and lines if it goes to a file or a pipe."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=120)
    for key, value in conditions.items():
        console.print(f"{key}: {value}", markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE if console.is_terminal else None)
    for header in ("method", "figure", "measured", "target", ""):
        table.add_column(header, justify="right" if header in ("measured", "target") else "left")
    for result in results:
        for position, one in enumerate(result.figures()):
            colour = {"ok": "[green]ok[/]", "short": "[red]short[/]"}.get(one.verdict, "")
            first = result.method if position == 0 else ""
            table.add_row(first, one.name, one.value, one.target, colour)
        table.add_section()
    console.print(table)


def _measure(
    family: Family, method: str, live: Any, copies: CopyBandwidth, options: argparse.Namespace
) -> Result:
    device, shape = torch.device(options.device), family.shape
    peak = None
    if device.type == "cpu" and not options.no_memory:
        peak = measure_peak(options.workdir, shape, options.models, method, options.threads)
    ours = time_ours(
        family, method, live, copies, repetitions=options.repetitions, dtype=options.dtype
    )
    theirs, agreement = _theirs(family, method, live, options)
    commands = None
    if options.command:
        settings = {key: getattr(options, key) for key in ("dtype", "threads")}
        count = options.command_repetitions
        commands = time_commands(family, method, options.workdir, repetitions=count, **settings)
    held = models_of(method, family) + reads_base(method)
    return Result(method, shape, held, device.type, ours, theirs, peak, commands, agreement)


def _theirs(
    family: Family, method: str, live: Any, options: argparse.Namespace
) -> tuple[tuple[float, ...], Agreement | None]:
    """mergekit's seconds on the first candidates, and whether it agrees about the last one."""
    if options.no_mergekit:
        return (), None
    from tests.benchmarks.theirs import Mergekit, read

    device = torch.device(options.device)
    mergekit = Mergekit(family, device)
    seconds = []
    for number in range(1, options.mergekit_repetitions + 1):
        recipe = read(candidate(family, method, number, options.dtype))
        seconds.append(seconds_of(partial(mergekit.merge, recipe), device))
    if not options.verify:
        return tuple(seconds), None
    # The live model still holds our last candidate.
    text = candidate(family, method, options.repetitions, "float32")
    return tuple(seconds), compare(family, text, live.state_dict(), mergekit.tensors(read(text)))


def _conditions(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else processor()
    millions = options.shape.parameters / 1e6
    return {
        "models": f"a base and {options.models} fine-tuned, {millions:.3g} M parameters each",
        "shape": options.shape.label,
        "device": f"{device} ({name}), {torch.get_num_threads()} threads",
        "mergekit's arithmetic": options.dtype,
        "repetitions": f"{options.repetitions} of ours, {options.mergekit_repetitions} of mergekit",
        "torch": torch.__version__,
    }


def load() -> str:
    """Processes that want a core, this one too; more than there are cores, and no time is right.

    Threads that wait for one another at each operation's end wait for strangers then: merges that
    took 8 s on an idle machine of two cores took 360 s at a load of 5, and 45 s with one thread.
    """
    return f"{os.getloadavg()[0]:.1f} of {os.cpu_count()}"


def processor() -> str:
    """What the machine calls its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.merge", description=__doc__)
    add = parser.add_argument
    presets = ", ".join(PRESETS)
    add("--shape", type=parse_shape, default="350m", help=f"{presets} or layers=…,width=…")
    add("--models", type=count, default=3, help="fine-tuned models (3)")
    add("--methods", type=_methods, default="dare_ties,ties,della", help="with commas between")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--threads", type=count, default=torch.get_num_threads(), help="of the CPU; else all")
    add("--repetitions", type=count, default=5, help="our candidates after the first one (5)")
    add("--mergekit-repetitions", type=count, default=3, help="mergekit's candidates (3)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of mergekit's sums")
    add("--no-mergekit", action="store_true", help="only ours")
    add("--no-memory", action="store_true", help="do not measure the peak memory")
    add("--verify", action="store_true", help="compare both programs' results")
    add("--command", action="store_true", help="time evomerge merge and mergekit-yaml too")
    add("--command-repetitions", type=count, default=3, help="of each command (3)")
    add("--copy-bytes", type=count, help="of the bandwidth's buffers; else beyond the caches")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    workdir = Path(tempfile.gettempdir()) / "evomerge-benchmarks"
    add("--workdir", type=Path, default=workdir, help=f"where the models are kept ({workdir})")
    options = parser.parse_args(arguments)
    if options.verify and options.no_mergekit:
        parser.error("--verify compares with mergekit: leave --no-mergekit out")
    return options


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _methods(text: str) -> list[str]:
    names = text.split(",")
    strangers = [name for name in names if name not in METHODS]
    if strangers:
        allowed = ", ".join(METHODS)
        raise argparse.ArgumentTypeError(f"{', '.join(strangers)}; allowed: {allowed}")
    return names


if __name__ == "__main__":
    sys.exit(main())
