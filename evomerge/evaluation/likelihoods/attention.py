"""Attention over a prefix tree: one row of tokens, in which each sees those on its way only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from evomerge.evaluation.likelihoods.passes import Group, Pass

NAME = "evomerge_prefix_tree"
"""What this attention is called in ``transformers``' table."""

_CURRENT: ContextVar[TreeAttention] = ContextVar("prefix tree")


class UnfitError(Exception):
    """The model wants something of its attention that this one does not give."""


class TreeAttention:
    """Attention of the passes of one tree, in their order.

    What a pass leaves for the next ones are the keys and values on the way to the next pass, layer
    by layer; so every node goes through the model once.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._carried: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[Any, list[torch.Tensor]] = {}
        self._pass: Pass | None = None

    @contextlib.contextmanager
    def during(self, one: Pass) -> Iterator[None]:
        """The pass that the model is about to run."""
        self._pass, self._masks = one, {}
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)
            self._masks = {}

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        **options: Any,
    ) -> torch.Tensor:
        """``[1, heads, N, d]`` queries → ``[1, N, heads, d]``.

        Args:
            layer: whose attention it is.
            query, key, value: of the pass's nodes; keys may have fewer heads.
            window: of a sliding-window layer.
            options: of :func:`_attention`.
        """
        one = self._pass
        assert one is not None
        self.calls += 1
        if layer in self._carried:
            before = self._carried[layer]
            key, value = torch.cat((before[0], key), 2), torch.cat((before[1], value), 2)
        masks = self._visible(one, query, key.shape[1], window)
        parts = [
            _of_group(group, mask, query, key, value, options)
            for group, mask in zip(_groups(one, query.device), masks, strict=True)
        ]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if one.carried is not None:
            places = one.carried.to(key.device)
            self._carried[layer] = key.index_select(2, places), value.index_select(2, places)
        return whole[:, : query.shape[2]]

    def _visible(
        self, one: Pass, query: torch.Tensor, key_heads: int, window: int | None
    ) -> list[torch.Tensor]:
        """Masks to add, one for every group; all layers of a kind share them."""
        times = query.shape[1] // key_heads
        kind = (window, times, query.dtype, query.device)
        if kind not in self._masks:
            self._masks[kind] = [
                torch.zeros((), dtype=query.dtype, device=query.device)
                .masked_fill(~group.visible(window), float("-inf"))
                .repeat(1, 1, times, 1)
                for group in _groups(one, query.device)
            ]
        return self._masks[kind]


def _groups(one: Pass, device: torch.device) -> tuple[Group, ...]:
    if one.tokens.device == device:
        return one.groups
    return tuple(group.to(device) for group in one.groups)


def _of_group(
    group: Group,
    mask: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
) -> torch.Tensor:
    """``[1, blocks * B, heads, d]``, padding included."""
    blocks, length = group.asking.shape
    heads, key_heads = query.shape[1], key.shape[1]
    times = heads // key_heads
    asking = query[0, :, group.first : group.first + blocks * length]
    if asking.shape[1] < blocks * length:
        missing = blocks * length - asking.shape[1]
        asking = torch.nn.functional.pad(asking, (0, 0, 0, missing))
    # Query heads that share a key head stand below one another: no key is copied for each.
    asking = asking.reshape(key_heads, times, blocks, length, -1).permute(2, 0, 1, 3, 4)
    asking = asking.reshape(blocks, key_heads, times * length, -1)
    keys, values = _picked(group, key), _picked(group, value)
    seen = _attention(asking, keys, values, mask, times=times, **options)
    seen = seen.reshape(blocks, key_heads, times, length, -1).permute(0, 3, 1, 2, 4)
    return seen.reshape(1, blocks * length, heads, -1)


def _picked(group: Group, states: torch.Tensor) -> torch.Tensor:
    """``[1, heads, n, d]`` → ``[blocks, heads, K, d]``."""
    picked = states[0].index_select(1, group.keys.reshape(-1))
    return picked.reshape(states.shape[1], *group.keys.shape, -1).transpose(0, 1)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    times: int,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Masked attention of ``[blocks, heads, n, d]``.

    Args:
        times: query heads of each key head, one below the other in ``n``.
        scaling: of the scores; ``None`` is one over the root of ``d``.
        softcap: the bound of the scores, as in Gemma 2.
        sinks: ``[query heads]`` a score for looking nowhere, as in gpt-oss.
    """
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * factor
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        nowhere = sinks.reshape(1, key.shape[1], times, 1, 1)
        nowhere = nowhere.expand(len(query), -1, -1, query.shape[2] // times, 1)
        scores = torch.cat((scores, nowhere.reshape(*scores.shape[:-1], 1)), -1)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return shares[..., : key.shape[2]] @ value


def _tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What ``transformers`` calls; the names are its own."""
    if attention_mask is not None or position_bias is not None:
        raise UnfitError("it makes a mask or a bias of its own")
    if query.shape[2] != key.shape[2]:
        raise UnfitError("queries and keys are not of the same tokens")
    options = {"scaling": scaling, "softcap": softcap, "sinks": s_aux}
    current = _CURRENT.get()
    return current.attend(module, query, key, value, sliding_window, **options), None


@contextlib.contextmanager
def tree_attention(model: Any) -> Iterator[None]:
    """Lets a model's layers use it, if they can; afterwards they use what they used before."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _tree_attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
