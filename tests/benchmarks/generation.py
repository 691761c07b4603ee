"""How fast answers are written, beside ``lm_eval.simple_evaluate``.

``python -m tests.benchmarks.generation --help``. Both programs write after the same prompts with
the same live model, in turn; lm-eval with its Hugging Face backend and the quickest of some batch
sizes. The models go on after what would have ended their texts, so that lengths differ.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from evomerge.evaluation import ItemSet, Scorer
from tests.benchmarks.limits import seconds_of
from tests.benchmarks.shapes import parse_shape
from tests.benchmarks.works import WORKS, Work

CPU = torch.device("cpu")
TARGETS = {"quickstart": 3.0}


@dataclass(frozen=True)
class Written:
    """What was measured.

    Args:
        name: of the work.
        ours: seconds of each of our scores.
        theirs: batch size → seconds of each ``simple_evaluate``.
        passes: calls of our model in one score.
        read: tokens that went through it, padding included.
        written: tokens that it wrote.
        same: texts that both programs wrote alike.
        texts: all texts.
    """

    name: str
    ours: tuple[float, ...]
    theirs: dict[int, tuple[float, ...]]
    passes: int
    read: int
    written: int
    same: int
    texts: int

    @property
    def best_batch(self) -> int:
        """lm-eval's quickest batch size."""
        return min(self.theirs, key=lambda size: median(self.theirs[size]))

    @property
    def ratio(self) -> float:
        """How many times faster we are."""
        return median(self.theirs[self.best_batch]) / median(self.ours)

    def lines(self) -> list[str]:
        """The figures, as they are to be read."""
        seconds, theirs = median(self.ours), median(self.theirs[self.best_batch])
        target = TARGETS.get(self.name)
        asked = f" (at least {target:g})" if target else ""
        rate = f"{self.written / seconds:.0f} tokens/s"
        return [
            f"{self.name}: {self.texts} texts, {self.written} tokens",
            f"  ours                            {seconds:.3f} s, {rate}",
            f"  simple_evaluate, batch size {self.best_batch:<4}{theirs:.3f} s",
            f"  times faster                    {self.ratio:.2f}{asked}",
            f"  passes of the model             {self.passes}",
            f"  tokens through the model        {self.read}",
            f"  texts that are the same         {self.same} of {self.texts}",
        ]


def measure(work: Work, repetitions: int, batch_sizes: Sequence[int]) -> Written:
    """Both programs in turn; the first run of each warms up and is not counted.

    Args:
        work: what is written.
        repetitions: of both sides, lm-eval at its quickest batch size.
        batch_sizes: of lm-eval, each of them once.
    """
    items = work.build()
    scorer = Scorer(work.model, work.tokenizer, items)
    with _counted(work.model) as calls:
        texts = [text for given in scorer.respond() for text in given]
    answers = _evaluate(work, items, batch_sizes[0])
    theirs = {
        size: [seconds_of(partial(_evaluate, work, items, size), CPU)] for size in batch_sizes
    }
    best = min(theirs, key=lambda size: theirs[size][0])
    ours = []
    for _ in range(repetitions):
        ours.append(seconds_of(scorer.score, CPU))
        theirs[best].append(seconds_of(partial(_evaluate, work, items, best), CPU))
    # Every text costs as many tokens as what is left of it has; what stopped it is not counted.
    counts = [len(work.tokenizer(str(text), add_special_tokens=False).input_ids) for text in texts]
    return Written(
        name=work.name,
        ours=tuple(ours),
        theirs={size: tuple(seconds) for size, seconds in theirs.items()},
        passes=len(calls),
        read=sum(calls),
        written=sum(counts),
        same=sum(mine == other for mine, other in zip(texts, answers, strict=True)),
        texts=len(texts),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    results = []
    for name in options.works:
        print(f"{name} …", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            count = options.items or {"quickstart": 100}.get(name, 16)
            dtype = getattr(torch, options.dtype)
            work = WORKS[name](Path(folder), count, options.shape, dtype)
            results.append(measure(work, options.repetitions, options.batch_sizes))
    told = f"threads {options.threads}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    print(f"{told}, random model {options.shape.label} in {options.dtype}")
    print("\n".join(line for result in results for line in result.lines()))
    return int(any(one.ratio < TARGETS.get(one.name, 0.0) for one in results))


def _evaluate(work: Work, items: ItemSet, batch_size: int) -> list[str]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.disable(logging.WARNING)
    try:
        results = simple_evaluate(
            HFLM(
                pretrained=work.model,
                tokenizer=copy.deepcopy(work.tokenizer),
                batch_size=batch_size,
            ),
            tasks=list(work.tasks),
            samples=items.samples,
            task_manager=TaskManager(include_path=str(work.folder), include_defaults=False),
            bootstrap_iters=0,
        )
    finally:
        logging.disable(logging.NOTSET)
    assert results is not None
    logged = [sample for task in items.tasks for sample in results["samples"][task.name]]
    return [answer for sample in logged for given in sample["resps"] for answer in given]


@contextlib.contextmanager
def _counted(model: Any) -> Iterator[list[int]]:
    """Tokens of every call of a model while it lasts."""
    calls: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, given, named: calls.append(named["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.generation", description=__doc__)
    add = parser.add_argument
    add("--works", nargs="+", choices=WORKS, default=["quickstart"], help="what is written")
    add("--items", type=int, help="of each task; else 100 of the quickstart's, 16 of others")
    add("--batch-sizes", type=int, nargs="+", default=[50, 100, 200], help="of lm-eval")
    add("--repetitions", type=int, default=3, help="of both programs (3)")
    add("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    add("--shape", type=parse_shape, default="350m", help="of the random model (350m)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the random model")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
