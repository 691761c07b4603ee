"""From constant weights to the genome that stands for them: baselines as points of the space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from evomerge.space.genes import METHOD, Site, choice, count_groups, sites
from evomerge.space.legal import is_nothing
from evomerge.space.methods import EPSILON, PARAMETERS
from evomerge.space.settings import Range, Setting

if TYPE_CHECKING:
    from evomerge.space.stage import Stage

_DEFAULTS = {
    **{"weight": 1.0, "density": 1.0, "epsilon": EPSILON, "gamma": 0.01, "trim": 1.0},
    **{"lambda": 1.0, "t": 0.5, "select_topk": 1.0},
}
_SHARES = {"epsilon": 0.5, "gamma": 0.0}
"""What stands for the default where a space says it as a share of what the density leaves."""


def encode_weights(
    stage: Stage,
    num_layers: int,
    weights: Mapping[str, float],
    wanted: Mapping[str, float | None],
    method: str | None = None,
) -> dict[str, float] | None:
    """The genome of constant weights; see ``SearchSpace.encode``.

    Args:
        stage: the stage; its genes' names have no prefix here.
        num_layers: of the models.
        weights: label → weight, for every fine-tuned model.
        wanted: parameter → the value of every model whose weight is not 0; None asks for nothing.
        method: one of the stage's; None is the first that can.
    """
    known = set(stage.labels.values())
    if set(weights) != known:
        raise ValueError(f"weights are for {sorted(weights)}; the models are {sorted(known)}")
    count_groups(stage, num_layers)
    for name in stage.methods if method is None else (method,):
        genome = _encoded(stage, num_layers, weights, wanted, name)
        if genome is not None:
            return genome
    return None


def plain_genome(stage: Stage, num_layers: int) -> dict[str, float]:
    """The genome that is closest to a blend of equal weights by the first method, all else at its
    default."""
    equal, genome = equal_weights(stage), {}
    for site in sites(stage, num_layers):
        default = equal[str(site.label)] if site.parameter == "weight" else None
        if isinstance(site.setting, Range):
            default = _default(stage, site.parameter) if default is None else default
            genome[site.name] = site.setting.nearest(default)
    if len(stage.methods) > 1:
        genome[METHOD] = choice(stage, stage.methods[0])
    return genome


def equal_weights(stage: Stage, method: str | None = None) -> dict[str, float]:
    """The weights of a uniform blend: the same for every model; half of it where slerp, which has a
    single model, blends that one with the base.

    Args:
        stage: the stage.
        method: one of its methods; None is the first.
    """
    share = 1.0 / (len(stage.models) + ((method or stage.methods[0]) == "slerp"))
    return dict.fromkeys(stage.labels.values(), share)


def _encoded(
    stage: Stage,
    num_layers: int,
    weights: Mapping[str, float],
    wanted: Mapping[str, float | None],
    method: str,
) -> dict[str, float] | None:
    reads, blends = stage.reads(method), any(weights.values())
    if not _can_weigh(stage, method, weights):
        return None
    asked = {**wanted, "t": next(iter(weights.values()))} if "t" in reads else dict(wanted)
    if blends and not _are_possible(stage, reads, asked):
        return None
    genome: dict[str, float] = {}
    for site in sites(stage, num_layers):
        inert = site.parameter not in reads
        value = _site_value(stage, site, weights, {} if inert else asked)
        if inert and isinstance(site.setting, Range):
            value = site.setting.nearest(_default(stage, site.parameter))
        if value is None and not inert:
            return None
        if value is not None and isinstance(site.setting, Range):
            genome[site.name] = value
    if len(stage.methods) > 1:
        genome[METHOD] = choice(stage, method)
    return genome


def _can_weigh(stage: Stage, method: str, weights: Mapping[str, float]) -> bool:
    """Whether a method has a merge of such weights at all."""
    reads = stage.reads(method)
    if "t" in reads:
        return True
    if "weight" not in reads:
        # All it can say is that the models count alike.
        return len(set(weights.values())) == 1 and any(weights.values())
    if method == "linear" and stage.genome.normalize is not False and is_nothing(weights.values()):
        return False
    return any(weights.values()) or method not in ("linear", "nuslerp")


def _are_possible(stage: Stage, reads: tuple[str, ...], wanted: Mapping[str, float | None]) -> bool:
    """Whether the parameters that the space leaves alone have the values asked for."""
    return all(
        value is None
        or name not in reads
        or stage.genome.parameter(name) is not None
        or _same(value, _DEFAULTS[name])
        for name, value in wanted.items()
        if name in PARAMETERS
    )


def _site_value(
    stage: Stage, site: Site, weights: Mapping[str, float], wanted: Mapping[str, float | None]
) -> float | None:
    default = _default(stage, site.parameter)
    if site.parameter == "weight":
        weight = weights[str(site.label)]
        return _value(site.setting, weight, weight)
    if site.parameter == "t":
        return _value(site.setting, wanted.get("t"), default)
    # What is kept of a model that weighs nothing makes no difference, nor what nothing is times.
    matters = any(weights.values()) if site.label is None else weights[site.label]
    asked = wanted.get(site.parameter) if matters else None
    return _value(site.setting, asked, default)


def _default(stage: Stage, parameter: str) -> float:
    spec = stage.genome.parameter(parameter)
    if parameter in _SHARES and getattr(spec, "share", False):
        return _SHARES[parameter]
    return _DEFAULTS[parameter]


def _value(setting: Setting, asked: float | None, default: float) -> float | None:
    """The value asked for, or what is allowed and closest to the default; None if not allowed."""
    if not isinstance(setting, Range):
        return setting if asked is None or _same(setting, asked) else None
    if asked is None:
        return setting.nearest(default)
    return asked if setting.holds(asked) else None


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12)
