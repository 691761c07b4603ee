"""How the commands speak: results to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.console import Console

from evomerge.errors import EvomergeError, EvomergeWarning, InputError

INTERRUPTED = 130
"""The shell's exit status of a command that Ctrl-C ended."""

Command = TypeVar("Command", bound=Callable[..., Any])

AS_IT_IS: Any = {"markup": False, "highlight": False, "soft_wrap": True}
"""How to print what holds names and paths: ``[x]`` is no markup there, and a path is not broken."""

stdout = Console()
stderr = Console(stderr=True)


def errors_told(command: Command) -> Command:
    """Print our own errors as messages, not as tracebacks, and exit with 1."""

    @functools.wraps(command)
    def told(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except EvomergeError as problem:
            tell_error(problem)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            stderr.print("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None

    return told  # type: ignore[return-value]


def tell_error(problem: EvomergeError) -> None:
    """The error, with all its faults, on stderr."""
    if isinstance(problem, InputError):
        count = len(problem.faults)
        head = f"The {problem.subject} is refused" + (
            f", for {count} reasons:" if count > 1 else ":"
        )
        stderr.print(f"[bold red]{head}[/]")
        for fault in problem.faults:
            stderr.print(f"  {fault}", **AS_IT_IS)
    else:
        stderr.print("[bold red]Error:[/]", end=" ")
        stderr.print(str(problem), **AS_IT_IS)


def quiet_libraries() -> None:
    """Keep the libraries' chatter off the terminal; print our own warnings as notes, each once."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("once", category=EvomergeWarning)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    for name in ("lm_eval", "lm-eval", "datasets", "transformers", "filelock", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


def tell_note(message: object, console: Console = stderr) -> None:
    """Something that the user should know."""
    console.print("[yellow]Note:[/]", end=" ")
    console.print(str(message), **AS_IT_IS)


def _show_warning(message: Warning | str, *_: Any) -> None:
    tell_note(message)


def print_json(data: Any) -> None:
    """JSON for other programs: stdout, plain, one document."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 10 min``"""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """``812 B``, ``3.1 MB``, ``16.1 GB`` (powers of ten, as disks and model cards have it)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
