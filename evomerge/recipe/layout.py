"""What resolving a recipe works on, and what it gives: names and numbers, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from evomerge.references import ModelReference


@dataclass(frozen=True)
class Layout:
    """The tensors of the models that are merged, and the layer that each belongs to.

    Args:
        tensors: tensor name → layer index from 0, or None for a tensor outside the layers. A
            layer's index is the first path component of the name that is this number.
        last: the tensors outside the layers that come after them (final norm, output head). They
            take the last slice's settings; the others (input embeddings) the first slice's.
        num_layers: how many layers there are.

    Raises:
        ValueError: a layer index is out of range or not part of its tensor's name, or ``last``
            names a tensor that is unknown or belongs to a layer.
    """

    tensors: Mapping[str, int | None]
    last: frozenset[str]
    num_layers: int

    def __post_init__(self) -> None:
        for name, layer in self.tensors.items():
            if layer is None:
                continue
            if not 0 <= layer < self.num_layers:
                raise ValueError(f"{name}: layer {layer} is not among 0 … {self.num_layers - 1}")
            if str(layer) not in name.split("."):
                raise ValueError(f"{name}: the name has no component {layer}, its layer")
        strangers = sorted(name for name in self.last if self.tensors.get(name, 0) is not None)
        if strangers:
            raise ValueError(f"not tensors outside the layers: {', '.join(strangers)}")

    def at_layer(self, name: str, layer: int) -> str:
        """The name that a layer's tensor has in another layer."""
        if layer == self.tensors[name]:
            return name
        parts = name.split(".")
        parts[parts.index(str(self.tensors[name]))] = str(layer)
        return ".".join(parts)

    @cached_property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The tensors of each layer, in the order of ``tensors``."""
        names: list[list[str]] = [[] for _ in range(self.num_layers)]
        for name, layer in self.tensors.items():
            if layer is not None:
                names[layer].append(name)
        return tuple(tuple(part) for part in names)


@dataclass(frozen=True)
class Contribution:
    """One model's part in one output tensor.

    Args:
        model: the model.
        label: its short name; masks are keyed by it, so that they do not depend on folders.
        tensor: the name of its tensor (another layer's where slices move layers).
        weight: the coefficient; 1 where the method reads none.
        density: the share of elements that is kept, in (0, 1]; 1 keeps all. The same for all of a
            model's tensors where ``MethodSpec.trims_whole(variant)`` says so.
        epsilon: half-width of the keep probabilities, 0 < density ± epsilon < 1 where density < 1.
        gamma: the share of elements, the largest ones, that is removed as outliers, in [0, 1)
            (breadcrumbs); where density + gamma > 1, density is kept and gamma shrinks.
        trim: the share of elements, the largest ones of all of the model's tensors together, that
            is kept after the masks were drawn (DARE before TIES, in MergeLM's order); 1 keeps all.
    """

    model: ModelReference
    label: str
    tensor: str
    weight: float
    density: float
    epsilon: float
    gamma: float = 0.0
    trim: float = 1.0


@dataclass(frozen=True)
class TensorMerge:
    """How one output tensor is made; every default is applied, nothing downstream adds one.

    What a method in its variant does not read (``MethodSpec.reads``) has its default and no effect;
    how the contributions become one is ``MethodSpec.consensus_of(variant)``.

    Args:
        name: the output tensor.
        method: a key of ``METHODS``.
        base: the base model and the name of its tensor; None for a method without a base.
        contributions: the fine-tuned models, in the recipe's order (all models for a method
            without a base). None at all means the base's tensor as it is.
        normalize: divide by the sum of the weights.
        rescale: restore the L1 norm of sparsified task vectors.
        lambda_: the factor of the summed task vectors.
        mask_seed: the seed of the random masks.
        variant: ``mergekit`` or ``paper``: whose arithmetic, where the two differ.
        mask_by: what a random mask goes by: ``random``, or ``magnitude`` (the largest are kept;
            MergeLM's ablation of DARE).
        mask_of: what is masked: ``task_vectors``, or ``weights`` (the fine-tuned models' own
            weights; MergeLM's ablation).
        t: how far from the base to the other model (slerp), usually in [0, 1].
        select_topk: the share of elements, those that vary most, that is merged, in (0, 1] (sce).
        flatten: take a tensor as one vector (nuslerp); else work along one of its dimensions.
        row_wise: if not ``flatten``: along rows, else columns (nuslerp).
        filter_wise: compare and interpolate row by row (model_stock).
    """

    name: str
    method: str
    base: tuple[ModelReference, str] | None
    contributions: tuple[Contribution, ...]
    normalize: bool
    rescale: bool
    lambda_: float
    mask_seed: int
    variant: str = "mergekit"
    mask_by: str = "random"
    mask_of: str = "task_vectors"
    t: float = 0.0
    select_topk: float = 1.0
    flatten: bool = True
    row_wise: bool = False
    filter_wise: bool = False
