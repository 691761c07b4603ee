"""Which documents are searched on, which are raced on, and which are held out.

One seeded permutation per task decides: the search takes its head, the held-out items are its tail.
So more items extend a smaller set, and the held-out items of a study stay what they were when the
number of search items changes. Finalists are raced on some of what is between.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from evomerge.errors import TaskError
from evomerge.evaluation.spec import Counts, Part, TaskRequest

DocIds = tuple[int, ...]

CLIMB = 4
"""Slopes are taken on at most so many times the search items."""


def choose(
    sizes: Mapping[str, int],
    request: TaskRequest,
    part: Part,
    holdout_items: int | None,
    apart: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, DocIds]:
    """The documents of each leaf task behind a request.

    Args:
        sizes: leaf task → number of the documents that it may be searched on, each at least 1.
        request: how many, in which order, by which seed.
        part: ``search``, or ``holdout`` for documents that the search part leaves over.
        holdout_items: how many in all; ``None`` for all that are left. A request for all documents
            leaves so many.
        apart: leaf task → number of the documents that may be held out, where they are others than
            those that may be searched on (another split's).

    Returns:
        leaf task → positions of its documents, ascending, without repetition.

    Raises:
        TaskError: there are too few documents.
    """
    place = f"task {request.task}"
    if part == "search" and request.chosen is not None:
        return {name: ids for name, ids in request.chosen if name in sizes}
    if part == "holdout" and request.order == "balanced":
        request = replace(request, items=None)  # what is not held out is a pool to choose from
    searched = _search_counts(sizes, request, place, holdout_items, apart)
    if part == "search":
        return {
            name: _ascending(_order(name, size, request)[: searched[name]])
            for name, size in sizes.items()
        }
    left = {name: apart.get(name, sizes[name] - searched[name]) for name in sizes}
    held_out = _holdout_counts(left, sizes, holdout_items, place)
    orders = {
        name: generator(request.seed, name).permutation(apart[name])
        if name in apart
        else _holdout_order(name, _order(name, size, request), request, searched[name])
        for name, size in sizes.items()
    }
    return {name: _ascending(orders[name][-held_out[name] :]) for name in sizes}


def choose_race(
    sizes: Mapping[str, int],
    request: TaskRequest,
    counts: Counts,
    apart: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, DocIds]:
    """The documents that finalists are raced on: of those that may be searched on, some that
    neither the search nor the held-out items use.

    Args:
        sizes, request, apart: as for :func:`choose`.
        counts: how many, and which round's; the rounds' sizes differ by at most 1 in a leaf task.

    Returns:
        leaf task → positions of its documents, ascending; empty if a leaf task has none left.

    Raises:
        TaskError: there are fewer than ``race_items``.
    """
    searched = choose(sizes, request, "search", counts.holdout_items, apart)
    left = _unused(sizes, request, searched, counts.holdout_items, apart)
    shares = _race_counts(left, request, searched, counts.race_items)
    number, rounds = counts.race_round
    return {
        name: tuple(sorted(left[name][:count][number::rounds])) for name, count in shares.items()
    }


def choose_climb(
    sizes: Mapping[str, int],
    request: TaskRequest,
    counts: Counts,
    apart: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, DocIds]:
    """The documents that slopes are taken on: the search's, and others that no part uses.

    Args:
        sizes, request, apart: as for :func:`choose`.
        counts: of the other parts. All together are at most :data:`CLIMB` times the search's.

    Returns:
        leaf task → positions of its documents, ascending.

    Raises:
        TaskError: there are too few documents for the other parts.
    """
    searched = choose(sizes, request, "search", counts.holdout_items, apart)
    left = _unused(sizes, request, searched, counts.holdout_items, apart)
    raced = _race_counts(left, request, searched, counts.race_items)
    rest = {name: found for name in left if (found := left[name][raced.get(name, 0) :])}
    most = min((CLIMB - 1) * sum(map(len, searched.values())), sum(map(len, rest.values())))
    if most < len(rest):
        return searched
    shares = proportional(most, [len(documents) for documents in rest.values()]) if rest else []
    more = {name: rest[name][:count] for name, count in zip(rest, shares, strict=True)}
    return {name: tuple(sorted((*ids, *more.get(name, ())))) for name, ids in searched.items()}


def _unused(
    sizes: Mapping[str, int],
    request: TaskRequest,
    searched: Mapping[str, DocIds],
    holdout_items: int | None,
    apart: Mapping[str, int],
) -> dict[str, list[int]]:
    """Leaf task → what neither the search nor the held-out items use, in the order of drawing."""
    held_out = _held_out(sizes, request, holdout_items, apart)
    left = {}
    for name, size in sizes.items():
        taken = {*searched[name], *held_out.get(name, ())}
        order = generator(request.seed, name).permutation(size)
        left[name] = [int(one) for one in order if int(one) not in taken]
    return left


def _race_counts(
    left: Mapping[str, Sequence[int]],
    request: TaskRequest,
    searched: Mapping[str, DocIds],
    race_items: int | None,
) -> dict[str, int]:
    """How many documents of each leaf task the race takes; empty if one has none left."""
    total = sum(map(len, left.values()))
    if race_items is not None and not len(left) <= race_items <= total:
        reason = f"{race_items}, but search and held-out items leave {total} documents"
        problem = f"{reason}; write {len(left)} to {total}, or leave the key out"
        raise TaskError.at(f"task {request.task}: race items", problem)
    if not all(left.values()):
        return {}
    most = sum(map(len, searched.values())) if race_items is None else race_items
    shares = proportional(
        min(max(most, len(left)), total), [len(documents) for documents in left.values()]
    )
    return dict(zip(left, shares, strict=True))


def _held_out(
    sizes: Mapping[str, int],
    request: TaskRequest,
    holdout_items: int | None,
    apart: Mapping[str, int],
) -> dict[str, DocIds]:
    """What is held out of the documents that may be searched on."""
    if request.held_out_elsewhere or all(name in apart for name in sizes):
        return {}
    try:
        held_out = choose(sizes, request, "holdout", holdout_items, apart)
    except TaskError:
        return {}  # nothing is left to hold out, which is told where that is asked for
    return {name: ids for name, ids in held_out.items() if name not in apart}


def proportional(total: int, capacities: Sequence[int]) -> list[int]:
    """Share ``total`` out over strata in proportion to their sizes, at least 1 each.

    Largest remainders first, so that every share is within 1 of its exact proportion wherever the
    minimum of 1 allows it.

    Args:
        total: between ``len(capacities)`` and ``sum(capacities)``.
        capacities: the strata's sizes, each at least 1.
    """
    exact = [total * size / sum(capacities) for size in capacities]
    counts = [max(1, int(share)) for share in exact]
    while (missing := total - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        open_ = [
            i
            for i, count in enumerate(counts)
            if (count < capacities[i] if step > 0 else count > 1)
        ]
        neediest = max(open_, key=lambda i: (step * (exact[i] - counts[i]), -i))
        counts[neediest] += step
    return counts


def _search_counts(
    sizes: Mapping[str, int],
    request: TaskRequest,
    place: str,
    holdout_items: int | None,
    apart: Mapping[str, int],
) -> dict[str, int]:
    total = sum(sizes.values())
    wanted = request.items
    if wanted is None:
        shared = {name: size for name, size in sizes.items() if name not in apart}
        if not shared or holdout_items is None or request.holdout_task is not None:
            return dict(sizes)
        return {**sizes, **_left_over(shared, holdout_items, place, sum(apart.values()))}
    if wanted < 1:
        raise TaskError.at(f"{place}: items", f"{wanted} items; write at least 1")
    if request.order == "first":  # lm-eval's `limit`: so many of each member task, or all it has
        return {name: min(wanted, size) for name, size in sizes.items()}
    if wanted > total:
        reason = f"{wanted} items, but there are {total} documents; write at most {total}"
        raise TaskError.at(f"{place}: items", reason)
    _check_members(wanted, sizes, f"{place}: items")
    return dict(zip(sizes, proportional(wanted, list(sizes.values())), strict=True))


def _left_over(
    shared: Mapping[str, int], holdout_items: int, place: str, elsewhere: int
) -> dict[str, int]:
    """What is left to search on of documents that items are held out of, too."""
    total = sum(shared.values())
    wanted = total - math.ceil(holdout_items * total / (total + elsewhere))
    if wanted < len(shared):
        reason = f"{holdout_items} held-out items leave {max(wanted, 0)} of {total} documents"
        raise TaskError.at(place, f"{reason} to search on; hold out fewer")
    return dict(zip(shared, proportional(wanted, list(shared.values())), strict=True))


def _holdout_counts(
    left: Mapping[str, int], sizes: Mapping[str, int], wanted: int | None, place: str
) -> dict[str, int]:
    total = sum(left.values())
    empty = [name for name, count in left.items() if count == 0]
    if empty:
        reason = (
            f"the search takes all {sizes[empty[0]]} documents of {empty[0]}, none are left to "
            "hold out; write fewer items, or name a holdout_task"
        )
        raise TaskError.at(place, reason)
    if wanted is None:
        return dict(left)
    if not 1 <= wanted <= total:
        reason = (
            f"{wanted}, but the search leaves {total} documents; write 1 to "
            f"{total}, fewer search items, or name a holdout_task"
        )
        raise TaskError.at(f"{place}: held-out items", reason)
    _check_members(wanted, left, f"{place}: held-out items")
    return dict(zip(left, proportional(wanted, list(left.values())), strict=True))


def _check_members(wanted: int, sizes: Mapping[str, int], place: str) -> None:
    if wanted < len(sizes):
        reason = f"{wanted} items for {len(sizes)} member tasks; write at least {len(sizes)}"
        raise TaskError.at(place, reason)


def _order(name: str, size: int, request: TaskRequest) -> np.ndarray:
    if request.order == "first":
        return np.arange(size)
    return generator(request.seed, name).permutation(size)


def _holdout_order(name: str, order: np.ndarray, request: TaskRequest, searched: int) -> np.ndarray:
    if request.order != "first":
        return order
    # "first" says which documents are searched on; those left over are still drawn at random,
    # as the end of a file need not be like its beginning.
    rest = generator(request.seed, name).permutation(order[searched:])
    return np.concatenate([order[:searched], rest])


def generator(seed: int, task: str) -> np.random.Generator:
    """A stream of its own per (seed, task name), whatever else is asked for."""
    digest = hashlib.sha256(task.encode()).digest()
    words = np.frombuffer(digest, dtype=">u4").astype(np.uint32)
    return np.random.default_rng([seed, *(int(word) for word in words)])


def _ascending(ids: np.ndarray) -> DocIds:
    return tuple(sorted(int(i) for i in ids))
