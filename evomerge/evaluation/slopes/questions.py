"""A fixed set of items → what a smooth fitness asks of the model, item by item.

The smooth fitness stands for the one that is searched for, of which accuracy has no gradient. Its
terms are weighted alike: per item the right choices' share of the choices' probabilities
(``gold_prob``; compared per character or per byte where the metric compares them so); where there
are no choices, the log-likelihood of the gold text, in bits per byte. Where the metric only asks
which choice is the likeliest, the share is made sharper, and so closer to it. The share's logarithm
climbs worse: it pays for doubt in every answer rather than for right ones (``studies/LOG.md``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.errors import TaskError
from evomerge.evaluation.choices import Choices, choices_of
from evomerge.evaluation.groups import group_shares
from evomerge.evaluation.items import ItemSet
from evomerge.evaluation.judging import TaskItems, reported_metrics
from evomerge.evaluation.queries import Continuation, Encoder, Query, Rolling, Window
from evomerge.evaluation.smooth import BITS_PER_BYTE, GOLD_LIKELIHOOD, SMOOTH, plan_smooth
from evomerge.evaluation.spec import TaskRequest

SHARPNESS = 3.0
"""Of :func:`smooth_fitness`, where nobody says otherwise."""


@dataclass(frozen=True)
class Question:
    """One item's term of the smooth fitness: ``share`` times a value, of its log-likelihoods ℓ.

    With ``contrast`` the value is Σ_right exp(ℓ/u) / Σ_all exp(ℓ/u); else ℓ/u of the likeliest
    right choice.

    Args:
        windows: what is put to the model.
        choice: of each window, the choice that it belongs to.
        right: of each choice.
        units: u of each choice, above 0: what its log-likelihood is divided by.
        share: the factor of its value in the fitness.
        contrast: whether the choices are compared.
    """

    windows: tuple[Window, ...]
    choice: tuple[int, ...]
    right: tuple[bool, ...]
    units: tuple[float, ...]
    share: float
    contrast: bool


@dataclass(frozen=True)
class SmoothFitness:
    """What there is to differentiate.

    Args:
        questions: the terms.
        left_out: task → why it has no part in it.
    """

    questions: tuple[Question, ...]
    left_out: Mapping[str, str]

    @property
    def left_out_words(self) -> tuple[str, ...]:
        """Each task that has no part in it, with the reason."""
        return tuple(f"task {task}: {why}" for task, why in self.left_out.items())

    @property
    def no_slope(self) -> str | None:
        """Why there is nothing to differentiate; None where there is."""
        if self.questions:
            return None
        return f"the fitness has no slope: {'; '.join(self.left_out_words) or 'every weight is 0'}"


def smooth_fitness(
    items: ItemSet,
    tokenizer: Any,
    max_length: int,
    *,
    chat: bool = False,
    plain_sum: bool = False,
    sharpness: float = SHARPNESS,
) -> SmoothFitness:
    """The smooth fitness of a set of items; tokenises gold solutions that nobody asked for yet.

    Args:
        items: with the requests that say how tasks are weighted.
        tokenizer: the one that they were built with.
        max_length: the model's longest input, in tokens.
        chat: whether prompts were rendered with a chat template.
        plain_sum: as for :func:`~evomerge.evaluation.fitness.fitness`.
        sharpness: what log-likelihoods are multiplied by where a metric tells right from wrong
            only; with 1 the value is ``gold_prob``, and the larger it is, the closer to accuracy.
    """
    encoder = Encoder(tokenizer, max_length)
    leaves = {task.name: task for task in items.tasks}
    total = 1.0 if plain_sum else sum(abs(request.weight) for request in items.requests)
    questions: list[Question] = []
    left_out: dict[str, str] = {}
    for request in items.requests:
        for leaf, share in _shares(items, request).items():
            try:
                found = _asked(leaves[leaf], request.metric.name, encoder, chat, sharpness)
            except TaskError as problem:
                left_out[leaf] = "; ".join(fault.problem for fault in problem.faults)
                continue
            weight = request.weight * share / total
            if plain_sum and not _higher_is_better(leaves[leaf], request.metric.name):
                weight = -weight
            questions += [replace(one, share=one.share * weight) for one in found]
    return SmoothFitness(tuple(one for one in questions if one.share), left_out)


def cut(questions: Sequence[Question], blocks: int, seed: int) -> list[tuple[Question, ...]]:
    """Blocks of questions that each stand for all of them.

    Neighbours go to different blocks, so that every task is in each of them by its share.

    Args:
        questions: the terms of a smooth fitness.
        blocks: how many; at most one for each question.
        seed: of which neighbour goes where.

    Returns:
        The blocks, their terms scaled so that each block's are as large as all of the whole's.
    """
    number = max(1, min(blocks, len(questions)))
    draw = np.random.default_rng(seed)
    found: list[list[Question]] = [[] for _ in range(number)]
    for first in range(0, len(questions), number):
        for block, one in zip(
            draw.permutation(number), questions[first : first + number], strict=False
        ):
            found[block].append(one)
    whole = _size(questions)
    return [
        tuple(replace(one, share=one.share * whole / _size(block)) for one in block)
        for block in found
    ]


def _size(questions: Sequence[Question]) -> float:
    return sum(abs(one.share) for one in questions)


def _shares(items: ItemSet, request: TaskRequest) -> Mapping[str, float]:
    """Leaf task → its share of a request's value."""
    for group in items.groups:
        if group.name == request.task:
            reported = {task.name: reported_metrics(task) for task in items.tasks}
            sizes = {task.name: len(task.doc_ids) for task in items.tasks}
            return group_shares(group, reported, sizes)[request.metric]
    return {request.task: 1.0}


def _higher_is_better(task: TaskItems, metric: str) -> bool:
    if metric in SMOOTH:
        return SMOOTH[metric].higher_is_better
    return task.task.higher_is_better().get(metric, True) is not False


def _asked(
    task: TaskItems, metric: str, encoder: Encoder, chat: bool, sharpness: float
) -> list[Question]:
    """A leaf task's questions; their shares sum to 1, or to what makes bits per byte of nats.

    Raises:
        TaskError: there is nothing to differentiate.
    """
    compares = task.task.OUTPUT_TYPE == "multiple_choice"
    if compares:
        choices, queries = choices_of(task.name, task.task), task.own_queries
    else:
        plan = plan_smooth(task.name, task.task, task.doc_ids, [BITS_PER_BYTE], encoder, chat=chat)
        assert plan is not None  # for the type checker: a smooth metric was asked for
        choices, queries = plan.choices, plan.queries or task.own_queries
    some = np.asarray(choices.right.any(axis=1))
    if not some.any():
        raise TaskError.at(f"task {task.name}", "none of its documents has a right choice")
    if metric == GOLD_LIKELIHOOD:
        shares = some / some.sum()
    elif compares and metric != BITS_PER_BYTE:
        units = _units(choices, metric) / (1.0 if metric in SMOOTH else sharpness)
        found = _rows(choices, queries, units, some / some.sum(), contrast=True)
        return [one for row, one in found if some[row]]
    else:
        gold = np.where(choices.right, choices.scored, 0).max(axis=1)
        shares = some / (math.log(2) * gold.sum())
    found = _rows(choices, queries, np.ones_like(choices.chars), shares, contrast=False)
    return [part for row, one in found if some[row] for part in _parted(one)]


def _units(choices: Choices, metric: str) -> np.ndarray:
    """What the metric divides log-likelihoods by; an empty choice counts as one of length 1."""
    for ending, lengths in (("_norm", choices.chars), ("_bytes", choices.utf8)):
        if metric.endswith(ending):
            return np.maximum(lengths, 1.0)
    return np.ones_like(choices.chars)


def _rows(
    choices: Choices,
    queries: Sequence[Query],
    units: np.ndarray,
    shares: np.ndarray,
    *,
    contrast: bool,
) -> Iterator[tuple[int, Question]]:
    for row, places in enumerate(choices.query.tolist()):
        width = int((choices.query[row] >= 0).sum())
        parts = [(c, w) for c in range(width) for w in _windows(queries[places[c]])]
        yield (
            row,
            Question(
                windows=tuple(window for _, window in parts),
                choice=tuple(number for number, _ in parts),
                right=tuple(choices.right[row, :width].tolist()),
                units=tuple(units[row, :width].tolist()),
                share=float(shares[row]),
                contrast=contrast,
            ),
        )


def _windows(query: Query) -> tuple[Window, ...]:
    if isinstance(query, Continuation):
        return (query.window,)
    return query.windows if isinstance(query, Rolling) else ()


def _parted(one: Question) -> list[Question]:
    """A long text's windows as questions of their own: their log-likelihoods only add up."""
    if len(one.right) > 1:
        return [one]
    return [replace(one, windows=(window,), choice=(0,)) for window in one.windows]
