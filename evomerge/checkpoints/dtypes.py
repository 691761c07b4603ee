"""torch's number types and safetensors' names for them."""

from __future__ import annotations

import torch

STORED_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in STORED_NAMES.items()}


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16``"""
    return str(dtype).removeprefix("torch.")
