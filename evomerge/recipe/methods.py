"""The merge methods that a recipe can name: what each reads, and its defaults.

The maths is the merging room's; here stands only what reading and resolving a recipe needs.
Defaults are mergekit 0.1.5's, because an exported recipe must mean the same thing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Sparsifier = Literal["magnitude", "random", "magprune"]

SHARED = ("normalize", "rescale", "lambda", "int8_mask")
"""Parameters that hold for a whole tensor; a single model cannot set them."""

PER_MODEL = ("weight", "density", "epsilon")
"""Parameters that each fine-tuned model has its own value of."""

SWITCHES = ("normalize", "rescale", "int8_mask")
"""Parameters that are true or false; the others are numbers."""


@dataclass(frozen=True)
class MethodSpec:
    """A merge method.

    Args:
        name: as recipes write it.
        needs_base: it adds task vectors to a base model; otherwise it blends whole models, and a
            base model is one of them.
        sparsifier: how a task vector's elements are dropped: the smallest (``magnitude``), each
            with the same chance (``random``), small ones sooner (``magprune``), or none.
        elects: only the elements that agree with the elected sign are summed (TIES).
        normalize: the default of ``normalize``, dividing by the sum of the weights.
        rescale: the default of ``rescale``, restoring a sparsified task vector's L1 norm.
        epsilon: the default half-width of the keep probabilities (``magprune`` alone; else 0).
        paper: where the method comes from.
        density: the default share of elements that is kept.
        lambda_: the default factor of the summed task vectors.
    """

    name: str
    needs_base: bool
    sparsifier: Sparsifier | None
    elects: bool
    normalize: bool
    rescale: bool
    epsilon: float
    paper: str
    density: float = 1.0
    lambda_: float = 1.0

    @property
    def sparsifies(self) -> bool:
        """Whether ``density`` and ``rescale`` have a meaning."""
        return self.sparsifier is not None

    @property
    def draws_masks(self) -> bool:
        """Whether the result depends on ``mask_seed``."""
        return self.sparsifier in ("random", "magprune")

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that change this method's result."""
        names = ["weight", "normalize"]
        if self.needs_base:
            names.append("lambda")
        if self.sparsifies:
            names += ["density", "rescale"]
        if self.sparsifier == "magprune":
            names.append("epsilon")
        return tuple(names)


_TASK_ARITHMETIC = "Task Arithmetic, arXiv 2212.04089"
_TIES = "TIES-Merging, arXiv 2306.01708"
_DARE = "DARE, arXiv 2311.03099"
_DELLA = "DELLA-Merging, arXiv 2406.11617"

METHODS: Mapping[str, MethodSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            MethodSpec(
                "linear", False, None, False, True, False, 0.0, "Model soups, arXiv 2203.05482"
            ),
            MethodSpec("task_arithmetic", True, None, False, False, False, 0.0, _TASK_ARITHMETIC),
            MethodSpec("ties", True, "magnitude", True, True, False, 0.0, _TIES),
            MethodSpec("dare_linear", True, "random", False, False, True, 0.0, _DARE),
            MethodSpec("dare_ties", True, "random", True, False, True, 0.0, _DARE),
            MethodSpec("della", True, "magprune", True, True, True, 0.15, _DELLA),
            MethodSpec("della_linear", True, "magprune", False, False, True, 0.15, _DELLA),
        )
    }
)
"""Every method that a recipe may name."""
