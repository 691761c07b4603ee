"""The types that a recipe can name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from evomerge.errors import Fault, RecipeError
from evomerge.recipe import Recipe

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The types that a recipe can name."""


def dtype_of(recipe: Recipe) -> torch.dtype | None:
    """The type that a recipe names: ``out_dtype``, else ``dtype``; None where it names none.

    Raises:
        RecipeError: it is not among ``DTYPES``.
    """
    name = recipe.out_dtype or recipe.dtype
    if name is None:
        return None
    if name not in DTYPES:
        problem = f"{name} is not supported: the arithmetic is float32"
        allowed = f"{problem}; allowed: {', '.join(DTYPES)}"
        place = f"{recipe.place}: {'out_dtype' if recipe.out_dtype else 'dtype'}"
        raise RecipeError([Fault(place, allowed)])
    return DTYPES[name]
