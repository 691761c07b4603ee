"""The merge methods that a recipe can name: what each reads, its defaults, the models it takes.

The maths is the merging room's; here stands only what reading and resolving a recipe needs.
Defaults are mergekit 0.1.5's, because an exported recipe must mean the same thing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Base = Literal["required", "optional", "blended"]
Sparsifier = Literal["magnitude", "random", "magprune", "outliers"]
Consensus = Literal["blend", "sum", "elect", "mean", "slerp", "nuslerp", "stock", "sce"]

MERGEKIT, PAPER = "mergekit", "paper"
"""The variants: mergekit 0.1.5's arithmetic, or that of the paper's own code (METHODS.md)."""

RANDOM, MAGNITUDE = "random", "magnitude"
"""What DARE's masks go by (``mask_by``)."""

TASK_VECTORS, WEIGHTS = "task_vectors", "weights"
"""What DARE's masks are put on (``mask_of``)."""

SWITCHES = (
    *("normalize", "rescale", "int8_mask"),
    *("nuslerp_flatten", "nuslerp_row_wise", "filter_wise"),
)
"""Parameters that are true or false; the others are numbers."""

SHARED = ("normalize", "rescale", "lambda", "int8_mask", "t", "select_topk", *SWITCHES[3:])
"""Parameters that hold for a whole tensor; a single model cannot set them."""

PER_MODEL = ("weight", "density", "epsilon", "gamma", "trim")
"""Parameters that each fine-tuned model has its own value of."""


@dataclass(frozen=True)
class MethodSpec:
    """A merge method.

    Args:
        name: as recipes write it.
        paper: where the method comes from.
        base: a base model is ``required``, ``optional``, or ``blended``: one of the models.
        consensus: how the models become one: their ``sum``; the sum of those that agree with an
            elected sign (``elect``; ``mean`` in TIES's own code, unweighted); a ``blend`` of
            weights; along an arc (``slerp``, ``nuslerp``); ``stock``; ``sce``.
        sparsifier: how a task vector's elements are dropped: the smallest (``magnitude``), each
            with the same chance (``random``), small ones sooner (``magprune``), the smallest and
            the largest (``outliers``), or none.
        in_paper: the consensus of the variant ``paper``; None where there is no such variant.
        least, most: how many models it merges, the base not counted; None is no limit.
        normalize: the default of ``normalize``, dividing by the sum of the weights.
        rescale: the default of ``rescale``, making up for what was dropped.
        epsilon: the default half-width of the keep probabilities (``magprune`` alone; else 0).
        gamma: the default share removed as outliers (``outliers`` alone; else 0).
        density: the default share of elements that is kept.
        lambda_: the default factor of the summed task vectors.
        select_topk: the default share of elements that is merged (``sce``).
    """

    name: str
    paper: str
    base: Base = "required"
    consensus: Consensus = "sum"
    sparsifier: Sparsifier | None = None
    in_paper: Consensus | None = None
    least: int = 0
    most: int | None = None
    normalize: bool = False
    rescale: bool = False
    epsilon: float = 0.0
    gamma: float = 0.0
    density: float = 1.0
    lambda_: float = 1.0
    select_topk: float = 1.0

    @property
    def needs_base(self) -> bool:
        """Whether a recipe must name a base model, which is then none of the models."""
        return self.base == "required"

    @property
    def takes_base(self) -> bool:
        """Whether a recipe's base model, if it has one, is none of the models."""
        return self.base != "blended"

    @property
    def elects(self) -> bool:
        """Only the elements that agree with the elected sign are summed (TIES)."""
        return self.consensus == "elect"

    @property
    def sparsifies(self) -> bool:
        """Whether ``density`` and ``rescale`` have a meaning."""
        return self.sparsifier is not None

    @property
    def draws_masks(self) -> bool:
        """Whether the result depends on ``mask_seed``."""
        return self.sparsifier in ("random", "magprune")

    @property
    def variants(self) -> tuple[str, ...]:
        """Whose arithmetic a recipe can ask for."""
        return (MERGEKIT,) if self.in_paper is None else (MERGEKIT, PAPER)

    def consensus_of(self, variant: str) -> Consensus:
        """The consensus of a variant."""
        return self.in_paper if variant == PAPER and self.in_paper else self.consensus

    def trims_whole(self, variant: str) -> str | None:
        """The parameter that a threshold over all of a model's tensors goes by, or None.

        TIES's own code trims the flattened model, so that one value holds for all its tensors.
        """
        if self.consensus_of(variant) != "mean":
            return None
        return "density" if self.sparsifier == "magnitude" else "trim"

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that change this method's result."""
        return self.reads(MERGEKIT)

    def reads(self, variant: str) -> tuple[str, ...]:
        """The parameters that change the result of a variant."""
        consensus = self.consensus_of(variant)
        if consensus in _OWN:
            return _OWN[consensus]
        if consensus == "mean":  # TIES's own code elects and averages without weights
            trims = self.sparsifier == "magnitude"
            return ("lambda", "density") if trims else ("lambda", "density", "rescale", "trim")
        names = ["weight", "normalize"]
        if consensus != "blend":
            names.append("lambda")
        if self.sparsifier is not None:
            names += ["density", "rescale", *_SPARSIFIED.get(self.sparsifier, ())]
        return tuple(names)


_OWN: Mapping[str, tuple[str, ...]] = {
    "slerp": ("t",),
    "nuslerp": ("weight", "nuslerp_flatten", "nuslerp_row_wise"),
    "stock": ("filter_wise",),
    "sce": ("select_topk",),
}
_SPARSIFIED = {"magprune": ("epsilon",), "outliers": ("gamma",)}

_TASK_ARITHMETIC = "Task Arithmetic, arXiv 2212.04089"
_TIES = "TIES-Merging, arXiv 2306.01708"
_DARE = "DARE, arXiv 2311.03099"
_DELLA = "DELLA-Merging, arXiv 2406.11617"
_CRUMBS = "Model Breadcrumbs, arXiv 2312.06795"
_SLERP = "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985"
_STOCK = "Model Stock, arXiv 2403.19522"
_SCE = "FuseChat (SCE), arXiv 2408.07990"

_ALL = (
    MethodSpec("linear", "Model soups, arXiv 2203.05482", "blended", "blend", normalize=True),
    MethodSpec("task_arithmetic", _TASK_ARITHMETIC),
    MethodSpec("ties", _TIES, "required", "elect", "magnitude", "mean", normalize=True),
    MethodSpec("dare_linear", _DARE, "required", "sum", "random", "sum", rescale=True),
    MethodSpec("dare_ties", _DARE, "required", "elect", "random", "mean", rescale=True),
    MethodSpec(
        name="della",
        paper=_DELLA,
        consensus="elect",
        sparsifier="magprune",
        in_paper="elect",
        normalize=True,
        rescale=True,
        epsilon=0.15,
    ),
    MethodSpec(
        name="della_linear",
        paper=_DELLA,
        sparsifier="magprune",
        in_paper="sum",
        rescale=True,
        epsilon=0.15,
    ),
    MethodSpec("breadcrumbs", _CRUMBS, "required", "sum", "outliers", gamma=0.01),
    MethodSpec("breadcrumbs_ties", _CRUMBS, "required", "elect", "outliers", gamma=0.01),
    MethodSpec("slerp", _SLERP, "required", "slerp", least=1, most=1),
    MethodSpec("nuslerp", _SLERP, "optional", "nuslerp", least=2, most=2),
    MethodSpec("model_stock", _STOCK, "required", "stock", least=2),
    MethodSpec("sce", _SCE, "required", "sce"),
)

METHODS: Mapping[str, MethodSpec] = MappingProxyType({spec.name: spec for spec in _ALL})
"""Every method that a recipe may name."""
