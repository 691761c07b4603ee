"""A prefix tree → a row of passes through the model, each node in exactly one of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from evomerge.evaluation.likelihoods.trie import PrefixTree

_SHORTEST, _LONGEST = 32, 512
_WAY_SHARE = 2
"""A block has half as many nodes as lie on the way to it: the way is copied for every block, but
long blocks spend arithmetic on what they mask. (Five examples before each question, 368 M
parameters in bfloat16: 4.7 s at a quarter, 4.2 s at a half.)"""
_LIKE = 256
"""Blocks whose ways differ by less are padded to one length and go into one call."""
_ALIGNED = 16
"""Kernels want keys in multiples of so many: on a CPU with AVX-512, 64 queries of 16 numbers, 88
keys took 0.74 ms, 96 took 0.48."""


@dataclass(frozen=True)
class Group:
    """Neighbouring blocks of queries, and the keys that each sees: its way and itself.

    Args:
        first: where its queries begin in the pass.
        keys: ``[blocks, K]`` where each block's keys lie, in the way to the pass and its nodes.
        nodes, ends, depths: ``[blocks, K]`` of the keys; padding ends before it begins.
        asking: ``[blocks, B]`` the queries' nodes; padding is -1.
        asking_depths: ``[blocks, B]``.
    """

    first: int
    keys: torch.Tensor
    nodes: torch.Tensor
    ends: torch.Tensor
    depths: torch.Tensor
    asking: torch.Tensor
    asking_depths: torch.Tensor

    def visible(self, window: int | None) -> torch.Tensor:
        """Which keys each query sees (bool ``[blocks, 1, B, K]``), in a sliding window or all."""
        nodes, asking = self.nodes[:, None, :], self.asking[:, :, None]
        seen = (nodes <= asking) & (asking < self.ends[:, None, :])
        if window is not None:
            seen &= self.asking_depths[:, :, None] - self.depths[:, None, :] < window
        return seen[:, None]

    def to(self, device: torch.device) -> Group:
        """The same on another device."""
        tensors = (self.keys, self.nodes, self.ends, self.depths, self.asking, self.asking_depths)
        return Group(self.first, *(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class Pass:
    """One sequence for the model, and where it is scored.

    Args:
        start, end: its nodes.
        tokens, positions: ``[1, end - start]``.
        groups: of its queries, in their order.
        carried: where the way to the pass after it lies among the way to this one and its nodes;
            ``None`` if nothing comes after it.
        columns: ``[S]`` positions that are scored, ascending.
        rows: ``[P]`` of each pair, its position among the ``S``.
        asked: ``[P]`` tokens whose probability is asked for.
    """

    start: int
    end: int
    tokens: torch.Tensor
    positions: torch.Tensor
    groups: tuple[Group, ...]
    carried: torch.Tensor | None
    columns: torch.Tensor
    rows: torch.Tensor
    asked: torch.Tensor


class Planner:
    """Cuts a tree into passes.

    Args:
        tree: what is to be run.
        device: where the model takes its input.
        spread: whether the model lies on several devices.
    """

    def __init__(self, tree: PrefixTree, device: torch.device, *, spread: bool) -> None:
        self._tree = tree
        self._device = device
        self._spread = spread

    def passes(self, start: int, most_tokens: int, most_scored: int) -> list[Pass]:
        """Passes from a node on to the last.

        Args:
            start: the first node; those before it have been run.
            most_tokens: of each pass; at least 1.
            most_scored: positions at which a pass is scored; at least 1.
        """
        length = self._block_length(start, most_tokens)
        scored = np.unique(self._tree.scored)
        cuts = [start]
        while cuts[-1] < len(self._tree):
            end = min(cuts[-1] + most_tokens, len(self._tree))
            first = np.searchsorted(scored, cuts[-1])
            if first + most_scored < len(scored):
                end = min(end, int(scored[first + most_scored]))
            whole = (end - cuts[-1]) // length * length
            cuts.append(cuts[-1] + whole if whole and end < len(self._tree) else end)
        return [self._pass(first, end, length) for first, end in pairwise(cuts)]

    def _block_length(self, start: int, most_tokens: int) -> int:
        """Nodes of a block: a power of two that fits the ways' usual length."""
        usual = int(self._tree.depths[start:].mean()) if start < len(self._tree) else 0
        wanted = min(max(usual // _WAY_SHARE, _SHORTEST), _LONGEST, most_tokens)
        return 1 << (wanted.bit_length() - 1)

    def _pass(self, start: int, end: int, length: int) -> Pass:
        tree = self._tree
        way, *ways = tree.ways(np.array([start, *range(start, end, length)]))
        carried = None
        if end < len(tree):
            carried = self._tensor(_places(tree.ways(np.array([end]))[0], start, len(way)))
        first, last = np.searchsorted(tree.scored, [start, end])
        columns, rows = np.unique(tree.scored[first:last] - start, return_inverse=True)
        return Pass(
            start,
            end,
            self._tensor(tree.tokens[None, start:end]),
            self._tensor(tree.depths[None, start:end]),
            tuple(self._groups(start, end, length, ways, len(way))),
            carried,
            # On the CPU it indexes hidden states on whichever device a spread model ends.
            torch.from_numpy(columns) if self._spread else self._tensor(columns),
            self._tensor(rows.reshape(-1)),
            self._tensor(tree.asked[first:last]),
        )

    def _groups(
        self, start: int, end: int, length: int, ways: list[np.ndarray], before: int
    ) -> list[Group]:
        sizes = [len(way) // _LIKE for way in ways]
        cuts = [0, *(i for i in range(1, len(ways)) if sizes[i] != sizes[i - 1]), len(ways)]
        return [
            self._group(start, end, length, ways[first:last], first, before)
            for first, last in pairwise(cuts)
        ]

    def _group(
        self, start: int, end: int, length: int, ways: list[np.ndarray], first: int, before: int
    ) -> Group:
        tree = self._tree
        width = -(-(max(map(len, ways)) + length) // _ALIGNED) * _ALIGNED
        nodes = np.full((len(ways), width), -1, dtype=np.int64)
        begin = start + first * length
        asking = begin + np.arange(len(ways) * length).reshape(len(ways), length)
        asking[asking >= end] = -1
        nodes[:, :length] = asking
        for row, way in enumerate(ways):
            nodes[row, length : length + len(way)] = way
        real = nodes >= 0
        keys = np.where(real, _places(nodes, start, before, tree.depths), 0)
        return Group(
            begin - start,
            self._tensor(keys),
            self._tensor(nodes),
            self._tensor(np.where(real, tree.ends[nodes], -1)),
            self._tensor(tree.depths[nodes]),
            self._tensor(asking),
            self._tensor(tree.depths[asking]),
        )

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def _places(
    nodes: np.ndarray, start: int, before: int, depths: np.ndarray | None = None
) -> np.ndarray:
    """Where nodes lie in a pass that begins at ``start`` behind a way of ``before`` nodes."""
    # On the way to the pass, a node's depth is its place.
    on_way = np.arange(len(nodes)) if depths is None else depths[nodes]
    return np.where(nodes < start, on_way, before + nodes - start)
