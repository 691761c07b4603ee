"""Prompts → groups that begin alike, so that what they share is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_PASSES = 64
"""What a group costs in tokens: its beginning is read alone, and its prompts apart from others.

A pass over a single token took as long as one over 15 (350 M parameters) to 35 tokens (0.3 M).
"""
_DEEPEST = 200
"""Groups within groups; beyond it a group stays whole. Real prompts branch a few times."""


@dataclass(frozen=True)
class Group:
    """Prompts that begin alike.

    Args:
        shared: so many tokens, always less than the whole of any of them.
        members: indices of the prompts, the longest first.
    """

    shared: int
    members: tuple[int, ...]


def group_by_beginning(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """One level of groups that saves the most tokens; the longest prompt's group first.

    Args:
        prompts: none of them empty.
    """
    order = sorted(range(len(prompts)), key=lambda index: tuple(prompts[index]))
    # A prompt's last token is fed when the writing begins.
    alike = [_alike(prompts[a], prompts[b]) for a, b in pairwise(order)]
    _, parts = _best(order, alike, 0)
    alone = [index for shared, members in parts if not shared for index in members]
    parts = [(0, alone), *(part for part in parts if part[0])] if alone else parts
    groups = [
        Group(shared, tuple(sorted(members, key=lambda index: -len(prompts[index]))))
        for shared, members in parts
    ]
    return sorted(groups, key=lambda group: -len(prompts[group.members[0]]))


_Parts = list[tuple[int, list[int]]]
"""What each group shares, and its members."""


def _best(order: list[int], alike: list[int], depth: int) -> tuple[int, _Parts]:
    """Tokens saved at most, passes deducted, and the groups that save them.

    Args:
        order: prompts in the order of their tokens.
        alike: what each shares with the next.
    """
    nothing: tuple[int, _Parts] = (0, [(0, order)])
    if len(order) < 2:
        return nothing
    shared = min(alike)
    whole: tuple[int, _Parts] = (shared * (len(order) - 1) - _PASSES, [(shared, order)])
    if depth == _DEEPEST:
        return max(nothing, whole, key=lambda found: found[0])
    cuts = [place + 1 for place, length in enumerate(alike) if length == shared]
    saved, parts = 0, []
    for begin, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        more, found = _best(order[begin:end], alike[begin : end - 1], depth + 1)
        saved += more
        parts += found
    return max(nothing, whole, (saved, parts), key=lambda found: found[0])


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    most = min(len(one), len(other)) - 1
    return next((i for i in range(most) if one[i] != other[i]), most)
