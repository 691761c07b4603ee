"""One row's measurements, ours and lm-eval's, and the figures they make."""

from __future__ import annotations

import copy
import logging
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from evomerge.evaluation import ItemSet, Scorer
from tests.benchmarks.counting import Least, counted, matrix_rate
from tests.benchmarks.limits import seconds_of
from tests.benchmarks.questions import Row
from tests.benchmarks.results import Figure, number

MOST_TOKENS = 1.05
"""Tokens encoded over distinct prefix tokens."""
CLOSE = 1e-4
"""Nats by which log-likelihoods may differ in float32."""


@dataclass(frozen=True)
class Scored:
    """All that was measured of one row.

    Args:
        method: the row's name.
        target: of the ratio.
        writes: whether the model writes answers.
        exact: whether it computes in float32.
        way: how our scorer computes log-likelihoods.
        preparation: seconds of building the items and planning, once per study.
        ours: seconds of each of our scores.
        theirs: batch size → seconds of each ``simple_evaluate``.
        work: seconds that the processor worked for our scores and for lm-eval's best batch size
            (medians; programs that they start included), which a busy machine hardly changes;
            None where lm-eval was not run.
        passes: share of our time that the model's own passes take.
        tokens: that our model was given, padding included.
        least: what the items ask at least.
        operations: of ``least``.
        rate: the machine's operations per second.
        difference: between both programs' log-likelihoods, at most; None if nothing was compared.
        texts: texts that both wrote alike, of how many.
    """

    method: str
    target: float | None
    writes: bool
    exact: bool
    way: str
    preparation: float
    ours: tuple[float, ...]
    theirs: dict[int, tuple[float, ...]]
    work: tuple[float, float] | None
    passes: float
    tokens: int
    least: Least
    operations: float
    rate: float
    difference: float | None
    texts: tuple[int, int]

    @property
    def best_batch(self) -> int:
        """lm-eval's quickest batch size."""
        return min(self.theirs, key=lambda size: median(self.theirs[size]))

    @property
    def ratio(self) -> float | None:
        """How many times faster we are; None if lm-eval was not run."""
        if not self.theirs:
            return None
        return median(self.theirs[self.best_batch]) / median(self.ours)

    def figures(self) -> Iterator[Figure]:
        """Everything, in the order in which it is printed."""
        yield Figure("ours, each score", number(median(self.ours), "s"))
        if self.ratio is not None:
            name = f"simple_evaluate, batch size {self.best_batch}"
            yield Figure(name, number(median(self.theirs[self.best_batch]), "s"))
            target = "" if self.target is None else f"≥ {number(self.target, '×')}"
            met = None if self.target is None else self.ratio >= self.target
            yield Figure("times faster", number(self.ratio, "×"), target, met)
        if self.work is not None:
            told = f"{number(self.work[0], 's')}, {number(self.work[1], 's')}"
            yield Figure("processor's time, ours and theirs", told)
        yield Figure("items built and planned, once", number(self.preparation, "s"))
        yield Figure("share of it in the model's passes", f"{self.passes:.0%}")
        if self.writes:
            yield Figure("tokens through the model", str(self.tokens))
        else:
            yield from self._likelihoods()
        yield from self._agreement()

    def data(self) -> dict[str, Any]:
        """Everything, for other programs."""
        figures = [asdict(one) for one in self.figures()]
        return {**asdict(self), "ratio": self.ratio, "figures": figures}

    def _likelihoods(self) -> Iterator[Figure]:
        over = self.tokens / self.least.tokens
        yield Figure("way", self.way)
        limit = number(MOST_TOKENS, "×")
        yield Figure(
            f"tokens encoded over {self.least.tokens} distinct",
            number(over, "×"),
            f"≤ {limit}",
            over <= MOST_TOKENS,
        )
        achieved = self.operations / median(self.ours)
        yield Figure("rate of the weights' products", number(achieved / 1e9, "GFLOP/s"))
        yield Figure("the machine's, for its type", number(self.rate / 1e9, "GFLOP/s"))
        yield Figure("share of the machine's", f"{achieved / self.rate:.0%}")

    def _agreement(self) -> Iterator[Figure]:
        if self.difference is not None:
            target = f"≤ {number(CLOSE)}" if self.exact else ""
            met = self.difference <= CLOSE if self.exact else None
            yield Figure("log-likelihoods differ by", number(self.difference), target, met)
        if self.texts[1]:
            same, all_texts = self.texts
            told = f"{same} of {all_texts}"
            yield Figure("texts that are the same", told, str(all_texts), same == all_texts)


def measure(
    row: Row, *, repetitions: int, their_repetitions: int, batch_sizes: Sequence[int]
) -> Scored:
    """Both programs on one row, one after the other; the first run of each is not counted."""
    device, dtype = row.model.device, row.model.dtype
    began = time.perf_counter()
    items = row.build()
    scorer = Scorer(row.model, row.tokenizer, items)
    preparation = time.perf_counter() - began
    scorer.score()
    with counted(row.model) as counts:
        took = seconds_of(scorer.score, device)
    theirs, their_work, answers = _theirs(row, items, batch_sizes, their_repetitions)
    ours, our_work = _timed(scorer.score, device, repetitions)
    difference, texts = _compared(scorer, answers)
    least = Least.of(items)
    return Scored(
        method=row.name,
        target=row.target,
        writes=row.writes,
        exact=dtype == torch.float32,
        way=scorer.way,
        preparation=preparation,
        ours=tuple(ours),
        theirs=theirs,
        work=(median(our_work), their_work) if theirs else None,
        passes=counts.seconds / took,
        tokens=counts.tokens,
        least=least,
        operations=least.operations(row.model),
        rate=matrix_rate(device, dtype),
        difference=difference,
        texts=texts,
    )


def _worked() -> float:
    """Seconds that this process and the programs it has started have worked."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _timed(
    action: Callable[[], object], device: torch.device, repetitions: int
) -> tuple[list[float], list[float]]:
    """Seconds that an action takes, and those that the processor works at it."""
    seconds, work = [], []
    for _ in range(repetitions):
        began = _worked()
        seconds.append(seconds_of(action, device))
        work.append(_worked() - began)
    return seconds, work


def _theirs(
    row: Row, items: ItemSet, batch_sizes: Sequence[int], repetitions: int
) -> tuple[dict[int, tuple[float, ...]], float, list[Any]]:
    """Seconds of ``simple_evaluate``, the best batch size's work, and its model's answers.

    Every batch size once, then the quickest again; the first run of all warms up and is not
    counted.
    """
    if not batch_sizes:
        return {}, 0.0, []
    answers = _evaluate(row, items, batch_sizes[0], log=True)
    took, work = {}, {}
    for size in batch_sizes:
        took[size], work[size] = _timed(partial(_evaluate, row, items, size), row.model.device, 1)
    best = min(took, key=lambda size: took[size][0])
    more = _timed(partial(_evaluate, row, items, best), row.model.device, repetitions - 1)
    took[best] += more[0]
    seconds = {size: tuple(all_seconds) for size, all_seconds in took.items()}
    return seconds, median(work[best] + more[1]), answers


def _evaluate(row: Row, items: ItemSet, batch_size: int, *, log: bool = False) -> list[Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.disable(logging.WARNING)
    try:
        results = simple_evaluate(
            HFLM(
                pretrained=row.model, tokenizer=copy.deepcopy(row.tokenizer), batch_size=batch_size
            ),
            tasks=list(row.tasks),
            samples=items.samples,
            task_manager=TaskManager(include_path=str(row.folder), include_defaults=False),
            bootstrap_iters=0,
            log_samples=log,
        )
    finally:
        logging.disable(logging.NOTSET)
    if not log or results is None:
        return []
    logged = [sample for task in items.tasks for sample in results["samples"][task.name]]
    return [answer for sample in logged for given in sample["resps"] for answer in given]


def _compared(scorer: Scorer, theirs: Sequence[Any]) -> tuple[float | None, tuple[int, int]]:
    """The largest difference of log-likelihoods; how many texts are the same, of how many."""
    ours = [answer for given in scorer.respond() for answer in given]
    if not theirs:
        return None, (0, 0)
    pairs = list(zip(ours, theirs, strict=True))
    texts = [(mine, other) for mine, other in pairs if isinstance(mine, str)]
    differences = [abs(mine[0] - other[0]) for mine, other in pairs if isinstance(mine, tuple)]
    same = sum(mine == other for mine, other in texts)
    return max(differences, default=None), (same, len(texts))
