"""The prefix tree of many windows: every distinct prefix is one node, in depth-first order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evomerge.evaluation.queries import Window


@dataclass(frozen=True)
class PrefixTree:
    """Nodes in depth-first order: a node's descendants follow it without a gap.

    Args:
        tokens: ``[N]`` the token that each node adds to its parent's prefix.
        depths: ``[N]`` tokens before it: its position in every window that goes through it.
        parents: ``[N]`` the node before it; -1 where a window begins.
        ends: ``[N]`` the first node after its descendants, so that ``i`` lies on the way to ``j``
            exactly if ``i <= j < ends[i]``.
        scored: ``[P]`` nodes at which a token's probability is asked for, ascending.
        asked: ``[P]`` that token; every pair of node and token stands there once.
        sources: ``[T]`` of every target of every window, window after window, its pair.
        starts: ``[W]`` where each window's targets begin among the ``T``.
    """

    tokens: np.ndarray
    depths: np.ndarray
    parents: np.ndarray
    ends: np.ndarray
    scored: np.ndarray
    asked: np.ndarray
    sources: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, windows: Sequence[Window]) -> PrefixTree:
        """The tree of windows, each with at least one target."""
        nodes = _Nodes(sum(len(window.tokens) for window in windows))
        at_targets: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(windows)
        for number in sorted(range(len(windows)), key=lambda number: windows[number].tokens):
            path = nodes.add(windows[number].tokens)
            at_targets[number] = path[len(path) - len(windows[number].targets) :]
        counts = [len(window.targets) for window in windows]
        targets = [token for window in windows for token in window.targets]
        pairs = np.stack([np.concatenate([*at_targets, _NONE]), np.array(targets, np.int64)])
        (scored, asked), sources = np.unique(pairs, axis=1, return_inverse=True)
        starts = np.cumsum([0, *counts[:-1]]) if counts else _NONE
        return cls(*nodes.arrays(), scored, asked, sources.reshape(-1), starts)

    def ways(self, nodes: np.ndarray) -> list[np.ndarray]:
        """For each node the nodes on the way to it, without itself, from the window's beginning."""
        depths = self.depths[nodes]
        table = np.full((len(nodes), int(depths.max(initial=0))), -1, dtype=np.int64)
        current = np.asarray(nodes)
        for _ in range(table.shape[1]):
            current = np.where(current < 0, -1, self.parents[current])
            above = np.flatnonzero(current >= 0)
            table[above, self.depths[current[above]]] = current[above]
        return [row[:depth] for row, depth in zip(table, depths, strict=True)]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return int(self.depths.max(initial=-1)) + 1


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common before they part."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


_NONE = np.zeros(0, dtype=np.int64)


class _Nodes:
    """The nodes of windows that are added in lexicographic order of their tokens."""

    def __init__(self, most: int) -> None:
        self._tokens, self._depths, self._parents, self._ends = np.zeros((4, most), dtype=np.int64)
        self._count = 0
        self._before = _NONE
        self._path = _NONE

    def add(self, tokens: tuple[int, ...]) -> np.ndarray:
        """The window's nodes, of which those are new that no window before it has."""
        new = np.array(tokens, dtype=np.int64)
        both = min(len(new), len(self._before))
        different = np.flatnonzero(new[:both] != self._before[:both])
        shared = int(different[0]) if len(different) else both
        self._close(shared)
        first, self._count = self._count, self._count + len(new) - shared
        fresh = np.arange(first, self._count)
        path = np.concatenate([self._path[:shared], fresh])
        self._tokens[fresh] = new[shared:]
        self._depths[fresh] = np.arange(shared, len(new))
        self._parents[fresh] = np.concatenate([[-1], path])[shared : len(new)]
        self._before, self._path = new, path
        return path

    def _close(self, shared: int) -> None:
        """What lies beyond ``shared`` tokens on the last window's way gets no more descendants."""
        self._ends[self._path[shared:]] = self._count

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, depths, parents and ends of all nodes."""
        self._close(0)
        tables = (self._tokens, self._depths, self._parents, self._ends)
        tokens, depths, parents, ends = (table[: self._count] for table in tables)
        return tokens, depths, parents, ends
