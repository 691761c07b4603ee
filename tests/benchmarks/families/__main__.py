"""``python -m tests.benchmarks.families [NAME …]``: build families, list them, measure them."""

from __future__ import annotations

import argparse
import time

from tests.benchmarks.families import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.families", description=__doc__
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FAMILIES)}; all by default")
    parser.add_argument("--list", action="store_true", help="what there is, without building it")
    parser.add_argument("--measure", action="store_true", help="baselines on all items")
    parser.add_argument("--search", type=int, default=0, metavar="TRIALS", help="a long search too")
    parser.add_argument("--seeds", type=int, default=2, help="of the long search")
    options = parser.parse_args()
    unknown = set(options.names) - set(FAMILIES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: unknown; there are {', '.join(FAMILIES)}")
    for name in options.names or FAMILIES:
        family = FAMILIES[name]
        print(f"{name}: {family.note}", flush=True)
        if options.list:
            continue
        began = time.perf_counter()
        space = family.build()
        print(f"  {space} ({time.perf_counter() - began:.0f} s)", flush=True)
        if options.measure or options.search:
            from tests.benchmarks.families.measuring import measure

            measure(space, options.search, options.seeds)


if __name__ == "__main__":
    main()
