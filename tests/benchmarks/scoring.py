"""How fast items are scored, beside ``lm_eval.simple_evaluate`` and the machine's own speed.

``python -m tests.benchmarks.scoring --help``. Both programs score the same live model on the same
items, lm-eval with its Hugging Face backend and the quickest of some batch sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks.merge import count, load, processor, show
from tests.benchmarks.questions import ROWS, Wanted
from tests.benchmarks.scored import measure
from tests.benchmarks.shapes import parse_shape

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    before = load()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = Wanted(Path(folder), options.shape, DTYPES[options.dtype], device, options.items)
        for row in options.rows:
            print(f"{row} …", file=sys.stderr)
            results.append(
                measure(
                    ROWS[row](wanted),
                    repetitions=options.repetitions,
                    their_repetitions=options.their_repetitions,
                    batch_sizes=() if options.no_lm_eval else options.batch_sizes,
                )
            )
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else processor()
    told = {
        "shape of the random model": f"{options.shape.label}, {options.dtype}",
        "device": f"{device} ({name}), {torch.get_num_threads()} threads",
        "repetitions": f"{options.repetitions} of ours, {options.their_repetitions} of lm-eval",
        "torch": torch.__version__,
        "load of the machine": f"{before} … {load()}",
    }
    show(results, told, first="row")
    if options.json:
        data = {"conditions": told, "results": [result.data() for result in results]}
        options.json.write_text(json.dumps(data, indent=2, default=str) + "\n")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.scoring", description=__doc__)
    add = parser.add_argument
    add("--rows", type=_rows, default=",".join(ROWS), help="with commas between")
    add("--shape", type=parse_shape, default="350m", help="of the random model (350m)")
    add("--dtype", choices=DTYPES, default="bfloat16", help="of the random model")
    add("--items", type=count, help="of each task; else 100 of the quickstart's, 16 of others")
    add("--batch-sizes", type=_counts, default="1,8,32", help="of lm-eval, tried in turn")
    add("--repetitions", type=count, default=5, help="of ours (5)")
    add("--their-repetitions", type=count, default=3, help="of lm-eval's best batch size (3)")
    add("--no-lm-eval", action="store_true", help="only ours")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--threads", type=count, default=torch.get_num_threads(), help="of the CPU; else all")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    return parser.parse_args(arguments)


def _counts(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def _rows(text: str) -> list[str]:
    names = text.split(",")
    strangers = [name for name in names if name not in ROWS]
    if strangers:
        raise argparse.ArgumentTypeError(f"{', '.join(strangers)}; allowed: {', '.join(ROWS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
