"""``evomerge merge``: a recipe becomes a model."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from evomerge.cli.output import AS_IT_IS, duration, quiet_libraries, size, stderr
from evomerge.errors import EvomergeError

_SWITCH_SECONDS = 0.0005

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def run_merge(
    recipe: Path, out: Path, max_shard_size: str, device: str, *, trust_remote_code: bool
) -> None:
    """Merge and say what was written."""
    from time import perf_counter

    # torch's threads, the readers, the writer and the sums share the cores: who waits must not
    # spin, and who imports must not keep the sums waiting. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.setswitchinterval(_SWITCH_SECONDS)
    from evomerge.api import merge

    quiet_libraries()
    began = perf_counter()
    summary = merge(
        recipe,
        out,
        trust_remote_code=trust_remote_code,
        max_shard_bytes=parse_size(max_shard_size),
        device=device,
    )
    stderr.print(
        f"Written: {out} ({summary.tensors} tensors, {size(summary.nbytes)}, "
        f"{duration(perf_counter() - began)})",
        **AS_IT_IS,
    )


def parse_size(text: str) -> int:
    """``500MB`` → 500 000 000; ``2GiB`` → 2 147 483 648.

    Raises:
        EvomergeError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", text.strip(), re.IGNORECASE)
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if count < 1:
        raise EvomergeError(f"--max-shard-size: {text!r} is no size; write one like 500MB or 5GB")
    return count
