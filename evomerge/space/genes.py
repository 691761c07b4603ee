"""Genes: what they are called, what they may be, which layers they reach."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from evomerge.errors import SpaceError
from evomerge.references import labels
from evomerge.space.settings import PerModel, Range, Setting

if TYPE_CHECKING:
    from evomerge.space.model import SearchSpace

LAMBDA = "lambda"
PER_MODEL = ("weight", "density", "epsilon")


@dataclass(frozen=True)
class Gene:
    """One number that is searched.

    Args:
        name: such as ``weight/math/mlp/0``.
        low, high: its bounds, both allowed.
        initial: where the search begins, if the space says so.
    """

    name: str
    low: float
    high: float
    initial: float | None = None


@dataclass(frozen=True)
class Site:
    """One value of a genome's table, whether it is a gene or fixed.

    Args:
        parameter: ``weight``, ``density`` or ``epsilon``.
        label: the fine-tuned model's.
        part: the filter, or None for the tensors that match none.
        group: the layer group, from 0.
        name: the gene's.
        setting: what the value may be.
    """

    parameter: str
    label: str
    part: str | None
    group: int
    name: str
    setting: Setting


def count_groups(space: SearchSpace, num_layers: int) -> int:
    """How many layer groups a model of so many layers has; see ``SearchSpace.group_count``."""
    layers = space.genome.layers
    if layers.size is not None:
        if num_layers % layers.size:
            divisors = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
            problem = (
                f"{layers.size} is refused: it does not divide the models' {num_layers} layers; "
                f"allowed: {', '.join(map(str, divisors))}"
            )
            raise SpaceError([space.fault(("genome", "layers", "size"), problem)])
        return num_layers // layers.size
    groups = layers.groups or 1
    if groups > num_layers:
        problem = f"{groups} is refused: the models have {num_layers} layers; write at most that"
        raise SpaceError([space.fault(("genome", "layers", "groups"), problem)])
    return groups


def layer_blocks(num_layers: int, groups: int) -> list[tuple[int, int]]:
    """The layers of each group, first and one after the last, as equal in number as can be."""
    edges = [index * num_layers // groups for index in range(groups + 1)]
    return list(pairwise(edges))


def parts(space: SearchSpace) -> tuple[str | None, ...]:
    """The components with values of their own; the last, None, is the rest."""
    return (*space.genome.filters, None)


def sites(space: SearchSpace, num_layers: int) -> Iterator[Site]:
    """Every value per model, component and layer group, in the order of the genome."""
    groups = count_groups(space, num_layers)
    components = parts(space)
    rest = next(name for name in ("rest", "others", "*") if name not in components)
    for parameter in PER_MODEL:
        spec: PerModel | None = getattr(space.genome, parameter)
        if spec is None:
            continue
        for label in labels(space.models).values():
            setting = spec.of(label)
            if setting is None:
                continue
            for part in components:
                for group in range(groups):
                    name = [parameter, label]
                    name += [part or rest] if len(components) > 1 else []
                    name += [str(group)] if groups > 1 else []
                    yield Site(parameter, label, part, group, "/".join(name), setting)


def find_genes(space: SearchSpace, num_layers: int) -> tuple[Gene, ...]:
    """What is searched; see ``SearchSpace.genes``."""
    found = [
        _gene(space, site.name, site.setting)
        for site in sites(space, num_layers)
        if isinstance(site.setting, Range)
    ]
    factor = space.genome.lambda_
    if isinstance(factor, Range):
        found.append(_gene(space, LAMBDA, factor))
    return tuple(found)


def _gene(space: SearchSpace, name: str, allowed: Range) -> Gene:
    initial = allowed.initial
    if space.search.random_init:
        # As mergekit-evolve draws them, uniform in [0, 1), as far as the bounds allow.
        low, high = max(allowed.low, 0.0), min(allowed.high, 1.0)
        if low >= high:
            low, high = allowed.low, allowed.high
        initial = low + _unit(f"{space.search.seed}/{name}") * (high - low)
    return Gene(name, allowed.low, allowed.high, initial)


def _unit(key: str) -> float:
    """A number in [0, 1) that depends on ``key`` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
