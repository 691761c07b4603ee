"""Importing evomerge loads nothing heavy, and ``evomerge --help`` answers in under a second."""

from __future__ import annotations

import subprocess
import sys
import time

HEAVY = {"torch", "transformers", "ray", "optuna", "lm_eval", "datasets", "pandas", "numpy"}


def main() -> None:
    """Exit with a message if either promise is broken."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import evomerge, evomerge.cli, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    found = sorted(HEAVY.intersection(loaded))
    if found:
        sys.exit(f"importing evomerge loads {', '.join(found)}")
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(["evomerge", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    best = min(times)
    print(f"evomerge --help: {best:.2f} s")
    if best >= 1.0:
        sys.exit("evomerge --help takes a second or more")


if __name__ == "__main__":
    main()
