"""The papers' own variants and MergeLM's ablations in float64, as METHODS.md's table reads.

Whole models, because TIES trims and elects over all of a model's elements: dicts from tensor names
to tensors of any floating type. Masks are given (booleans; True is kept), so that whatever draws
them is tested apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Tensor = torch.Tensor
Model = Mapping[str, Tensor]
Deltas = dict[str, Tensor]


def task_vector(base: Model, model: Model) -> Deltas:
    """δ = θ − θ₀."""
    return {name: model[name].to(torch.float64) - base[name].to(torch.float64) for name in base}


def masked(deltas: Model, masks: Model, density: float, *, rescale: bool = True) -> Deltas:
    """DARE: δ·m/d. Without ``rescale`` DropOnly. A mask by magnitude is the ablation by magnitude.

    Nothing is divided where everything is dropped (d = 0).
    """
    divisor = density if rescale and density > 0 else 1.0
    return {name: delta.to(torch.float64) * masks[name] / divisor for name, delta in deltas.items()}


def masked_weights(
    model: Model, masks: Model, density: float, *, rescale: bool = True
) -> dict[str, Tensor]:
    """MergeLM's ``finetuned_weight``: the same of θ itself; what is merged is this as a model."""
    return masked(model, masks, density, rescale=rescale)


def largest(tensor: Tensor, density: float) -> Tensor:
    """A mask of the ⌊d·n⌋ largest, the first of equal ones."""
    sizes = tensor.abs().reshape(-1).tolist()
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    mask = torch.zeros(len(sizes), dtype=torch.bool)
    mask[order[: int(density * len(sizes))]] = True
    return mask.reshape(tensor.shape)


def keep_probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """DELLA's q: from d − w/2 for a row's smallest to d + w/2 for its largest, w = 2ε.

    Rows are the last dimension; of equal elements the first is the smaller; a row of one has d.
    """
    length = delta.shape[-1] if delta.dim() else 1
    if length == 1:
        return torch.full(delta.shape, density, dtype=torch.float64)
    rows = []
    for row in delta.reshape(-1, length).abs().tolist():
        order = sorted(range(length), key=lambda index: (row[index], index))
        q = [0.0] * length
        for rank, index in enumerate(order):
            q[index] = (density - epsilon) + 2 * epsilon * rank / (length - 1)
        rows.append(q)
    return torch.tensor(rows, dtype=torch.float64).reshape(delta.shape)


def della_masked(
    deltas: Model, masks: Model, density: float, epsilon: float, *, rescale: bool = True
) -> Deltas:
    """DELLA: δ·m/q, element by element (unbiased)."""
    found = {}
    for name, delta in deltas.items():
        q = keep_probabilities(delta, density, epsilon) if rescale else 1.0
        found[name] = delta.to(torch.float64) * masks[name] / q
    return found


def trim(deltas: Model, density: float) -> Deltas:
    """TIES: |δ| below the whole model's (n − ⌊dn⌋)-th smallest goes; all that equal it stay."""
    sizes = torch.cat([delta.to(torch.float64).abs().reshape(-1) for delta in deltas.values()])
    place = len(sizes) - int(density * len(sizes))
    if place < 1:
        return {name: delta.to(torch.float64) for name, delta in deltas.items()}
    threshold = float(sizes.sort().values[place - 1])
    return {
        name: torch.where(delta.abs() >= threshold, delta.to(torch.float64), 0.0)
        for name, delta in deltas.items()
    }


def elect(models: Sequence[Model]) -> Deltas:
    """TIES: the sign of Σδ, unweighted; where that is 0, the sign that most elements have.

    −1, 1, or 0 where as many elements have either sign: nothing agrees with it.
    """
    signs = {
        name: sum(deltas[name].to(torch.float64) for deltas in models).sign() for name in models[0]
    }
    dominant = torch.sign(sum(sign.sum() for sign in signs.values()))
    return {name: torch.where(sign == 0, dominant, sign) for name, sign in signs.items()}


def fuse(models: Sequence[Model], signs: Model) -> Deltas:
    """TIES: the mean of the δ that are not 0 and have the elected sign; 0 where there is none."""
    found = {}
    for name, sign in signs.items():
        total, count = torch.zeros_like(sign), torch.zeros_like(sign)
        for deltas in models:
            agrees = (deltas[name].sign() == sign) & (sign != 0)
            total += torch.where(agrees, deltas[name], 0.0)
            count += agrees
        found[name] = total / count.clamp(min=1)
    return found


def added(base: Model, deltas: Model, lambda_: float) -> dict[str, Tensor]:
    """θ₀ + λδ."""
    return {name: base[name].to(torch.float64) + lambda_ * deltas[name] for name in base}


def ties(
    base: Model, models: Sequence[Model], densities: Sequence[float], lambda_: float = 1.0
) -> dict[str, Tensor]:
    """The paper's TIES: trim, elect, disjoint mean, × λ."""
    return trim_elect_mean(base, [task_vector(base, model) for model in models], densities, lambda_)


def dare_then_ties(
    base: Model,
    models: Sequence[Model],
    masks: Sequence[Model],
    densities: Sequence[float],
    trims: Sequence[float],
    lambda_: float = 1.0,
    *,
    rescale: bool = True,
) -> dict[str, Tensor]:
    """MergeLM's order: DARE, trim, elect, mean, × λ.

    The trim's share is of all elements, dropped ones too: one that is no smaller than what DARE
    left trims nothing.
    """
    dropped = [
        masked(task_vector(base, model), mask, density, rescale=rescale)
        for model, mask, density in zip(models, masks, densities, strict=True)
    ]
    return trim_elect_mean(base, dropped, trims, lambda_)


def trim_elect_mean(
    base: Model, models: Sequence[Model], densities: Sequence[float], lambda_: float
) -> dict[str, Tensor]:
    """The rest of TIES, from task vectors on."""
    trimmed = [trim(deltas, d) for deltas, d in zip(models, densities, strict=True)]
    return added(base, fuse(trimmed, elect(trimmed)), lambda_)


def summed(
    base: Model, models: Sequence[Model], weights: Sequence[float], lambda_: float = 1.0
) -> dict[str, Tensor]:
    """Task arithmetic of task vectors (masked ones for DARE and DELLA): θ₀ + λΣwδ."""
    total = {
        name: sum(w * deltas[name] for w, deltas in zip(weights, models, strict=True))
        for name in base
    }
    return added(base, total, lambda_)


def elected(
    base: Model,
    models: Sequence[Model],
    weights: Sequence[float],
    lambda_: float = 1.0,
    *,
    normalize: bool = False,
) -> dict[str, Tensor]:
    """mergekit's election (on weighted task vectors, 0 counts as +), for the paper's masks.

    θ₀ + λΣwδ over those that agree, divided by their Σw (1 where that is 0) if ``normalize``.
    """
    found = {}
    for name in base:
        terms = [w * deltas[name] for w, deltas in zip(weights, models, strict=True)]
        sign = torch.where(sum(terms) >= 0, 1.0, -1.0)
        total, divisor = torch.zeros_like(terms[0]), torch.zeros_like(terms[0])
        for term, weight in zip(terms, weights, strict=True):
            agrees = term.sign() == sign
            total += torch.where(agrees, term, 0.0)
            divisor += torch.where(agrees, weight, 0.0)
        found[name] = total / divisor.masked_fill(divisor == 0, 1.0) if normalize else total
    return added(base, found, lambda_)
