"""How the commands speak: results to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evomerge.errors import EvomergeError, EvomergeWarning, InputError

INTERRUPTED = 130
"""The shell's exit status of a command that Ctrl-C ended."""

_NARROW = 8
"""Characters that a column of names has at least, before the lines of a table get too long."""

Command = TypeVar("Command", bound=Callable[..., Any])

AS_IT_IS: Any = {"markup": False, "highlight": False, "soft_wrap": True}
"""How to print what holds names and paths: ``[x]`` is no markup there, and a path is not broken."""

# A name such as ``a:key:`` is no emoji.
stdout = Console(emoji=False)
stderr = Console(stderr=True, emoji=False)


def bear_any_encoding() -> None:
    """Let a character that the terminal's encoding lacks come out as ``?``, not as a crash."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test's or a notebook's may have none
        if reconfigure is not None:
            reconfigure(errors="replace")


def wrapping(console: Console = stdout) -> Any:
    """How to print prose: broken into lines for a terminal, left whole for a file or a pipe."""
    return {"soft_wrap": not console.is_terminal}


def say(text: str, console: Console = stdout) -> None:
    """Prose that may hold anybody's names: ``[x]`` is no markup in it."""
    console.print(text, markup=False, highlight=False, **wrapping(console))


def show_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Collection[int],
    title: str | None = None,
) -> None:
    """A table on stdout, whose numbers stay whole however narrow the terminal is.

    Args:
        headers: of the columns; they may be broken, and so may the cells that are no numbers.
        rows: the cells, as they are to be read.
        numbers: which columns hold numbers.
        title: stands above.
    """
    caption = None if title is None else Text(title, style="table.title")
    table = Table(title=caption, title_justify="left")
    for index, header in enumerate(headers):
        longest = max((len(row[index]) for row in rows), default=0)
        if index in numbers:
            table.add_column(Text(header), justify="right", min_width=longest, overflow="fold")
        else:
            table.add_column(Text(header), min_width=min(longest, _NARROW), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    stdout.print(table, crop=False)


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
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    typer.echo(json.dumps(data, indent=2, ensure_ascii=not unicode, default=str))


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 10 min``"""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def capitalised(text: str) -> str:
    """The text as a sentence begins; the rest of it as it is."""
    return text[:1].upper() + text[1:]


def size(count: float) -> str:
    """``812 B``, ``3.1 MB``, ``16.1 GB`` (powers of ten, as disks and model cards have it)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def common_prefix(tasks: Sequence[str]) -> str:
    """What all the names begin with, up to a ``_``; there is little room in a terminal."""
    if len(tasks) < 2:
        return ""
    common = os.path.commonprefix(list(tasks))  # noqa: RUF071 (characters are what is wanted)
    return common[: common.rfind("_") + 1]
