"""A live model's arithmetic in float32, whatever its weights are stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_HALVES = (torch.bfloat16, torch.float16)


class InFloat32(TorchFunctionMode):
    """While it lasts, every operation takes float32 copies of bfloat16 and float16 tensors.

    Of the weights only those of one operation are copied at a time, and none is changed. It is
    slow: meant for a few sequences, where rounding would hide what is to be seen.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        wide_args, wide_kwargs = tree_map(_widened, (tuple(args), dict(kwargs or {})))
        return func(*wide_args, **wide_kwargs)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _HALVES:
        return torch.Tensor.to(value, torch.float32)
    return value
