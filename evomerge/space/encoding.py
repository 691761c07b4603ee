"""From constant weights to the genome that stands for them: baselines as points of the space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from evomerge.references import labels
from evomerge.space.genes import LAMBDA, Site, count_groups, sites
from evomerge.space.methods import EPSILON, METHODS
from evomerge.space.settings import Range, Setting

if TYPE_CHECKING:
    from evomerge.space.model import SearchSpace

_DEFAULTS = {"density": 1.0, "epsilon": EPSILON, LAMBDA: 1.0}


def encode_weights(
    space: SearchSpace,
    num_layers: int,
    weights: Mapping[str, float],
    *,
    density: float | None,
    lambda_: float | None,
    epsilon: float | None,
) -> dict[str, float] | None:
    """The genome of constant weights; see ``SearchSpace.encode``."""
    known = set(labels(space.models).values())
    if set(weights) != known:
        raise ValueError(f"weights are for {sorted(weights)}; the models are {sorted(known)}")
    count_groups(space, num_layers)
    blends = any(weights.values())
    if not blends and not METHODS[space.merge_method].needs_base:
        return None
    wanted = {"density": density, "epsilon": epsilon, LAMBDA: lambda_}
    if blends and not _are_possible(space, wanted):
        return None
    genome: dict[str, float] = {}
    for site in sites(space, num_layers):
        value = _site_value(site, weights[site.label], wanted)
        if value is None:
            return None
        if isinstance(site.setting, Range):
            genome[site.name] = value
    factor = space.genome.lambda_
    if factor is not None:
        value = _value(factor, lambda_ if blends else None, _DEFAULTS[LAMBDA])
        if value is None:
            return None
        if isinstance(factor, Range):
            genome[LAMBDA] = value
    return genome


def _are_possible(space: SearchSpace, wanted: Mapping[str, float | None]) -> bool:
    """Whether the parameters that the space leaves alone have the values asked for."""
    have = {
        "density": space.genome.density,
        "epsilon": space.genome.epsilon,
        LAMBDA: space.genome.lambda_,
    }
    return all(
        value is None or have[name] is not None or _same(value, _DEFAULTS[name])
        for name, value in wanted.items()
    )


def _site_value(site: Site, weight: float, wanted: Mapping[str, float | None]) -> float | None:
    if site.parameter == "weight":
        return _value(site.setting, weight, weight)
    # What is kept of a model that weighs nothing makes no difference.
    asked = wanted[site.parameter] if weight else None
    return _value(site.setting, asked, _DEFAULTS[site.parameter])


def _value(setting: Setting, asked: float | None, default: float) -> float | None:
    """The value asked for, or what is allowed and closest to the default; None if not allowed."""
    if not isinstance(setting, Range):
        return setting if asked is None or _same(setting, asked) else None
    if asked is None:
        return setting.nearest(default)
    return asked if setting.holds(asked) else None


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12)
