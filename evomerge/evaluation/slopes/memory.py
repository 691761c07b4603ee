"""What memory allows of a gradient: how large a batch, and where the sums are kept."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

_LOGGER = logging.getLogger(__name__)

_TOKENS = {"cuda": 4096}
_TOKENS_ELSEWHERE = 1024
"""Tokens of a batch: all that the layers compute is kept until it was differentiated."""

SPARE = 0.2
"""Share of an accelerator's free memory that is left to what the layers compute."""


@dataclass
class Limits:
    """What is known of the memory; it is tightened as memory runs out.

    Args:
        tokens: of one batch.
        on_host: whether the gradient is summed in the host's memory. Each batch's is then carried
            there.
        accelerated: whether the model lies elsewhere than in the host's memory.
    """

    tokens: int
    on_host: bool = False
    accelerated: bool = False

    def __post_init__(self) -> None:
        self._whole = self.tokens

    @classmethod
    def of(cls, model: torch.nn.Module, device: torch.device | str) -> Limits:
        """The limits of a live model, from what its accelerators have free now."""
        wanted: Counter[torch.device] = Counter()
        for one in model.parameters():
            if one.device.type == "cuda":
                wanted[one.device] += 4 * one.numel()
        free = {one: _free(one) for one in wanted}
        on_host = not has_room(wanted, free)
        if on_host:
            _LOGGER.info("the gradient is summed in the host's memory")
        return cls(_TOKENS.get(torch.device(device).type, _TOKENS_ELSEWHERE), on_host, bool(wanted))

    def tighten(self, *, single: bool) -> bool:
        """Ask for less, after memory ran out.

        Args:
            single: whether a batch was one item already.

        Returns:
            Whether there is anything left to try.
        """
        if not single:
            self.tokens //= 2
            return True
        if self.accelerated and not self.on_host:
            # The batches were halved for a gradient that now lies elsewhere.
            self.on_host, self.tokens = True, self._whole
            return True
        return False


def has_room(wanted: Mapping[torch.device, int], free: Mapping[torch.device, int]) -> bool:
    """Whether each device has the bytes that are wanted of it, and some to :data:`SPARE`."""
    return all(size <= free[device] * (1 - SPARE) for device, size in wanted.items())


def _free(device: torch.device) -> int:
    """Bytes that can still be had, those included that torch holds and does not use."""
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + idle
