"""Genes: what they are called, what they may be, which layers they reach."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from evomerge.errors import SpaceError
from evomerge.space.methods import PARAMETERS
from evomerge.space.settings import Common, Range, Setting

if TYPE_CHECKING:
    from evomerge.space.specs import SearchSettings
    from evomerge.space.stage import Stage

METHOD = "merge_method"
"""The gene that chooses among several methods: each has an equal part of [0, 1]."""

AUTO_GENES = 32
"""``layers: auto`` has at most so many genes, those apart that all layers share: with 48 on 400
items the climb fits the items' luck (``studies/LOG.md``)."""


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
        parameter: one of ``PARAMETERS``.
        label: the fine-tuned model's; None for what all models share.
        parts: the filters whose tensors take it (None: the tensors that match none).
        groups: the layer groups that take it, from 0.
        name: the gene's.
        setting: what the value may be.
    """

    parameter: str
    label: str | None
    parts: tuple[str | None, ...]
    groups: tuple[int, ...]
    name: str
    setting: Setting


def count_groups(stage: Stage, num_layers: int) -> int:
    """How many layer groups a model of so many layers has; see ``SearchSpace.group_count``."""
    layers = stage.genome.layers
    if layers.size is not None:
        if num_layers % layers.size:
            divisors = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
            problem = (
                f"{layers.size} is refused: it does not divide the models' {num_layers} layers; "
                f"allowed: {', '.join(map(str, divisors))}"
            )
            raise SpaceError([stage.fault(("genome", "layers", "size"), problem)])
        return num_layers // layers.size
    if layers.groups == "auto":
        return max(1, min(num_layers, AUTO_GENES // max(1, _varying(stage))))
    groups = int(layers.groups or 1)
    if groups > num_layers:
        problem = f"{groups} is refused: the models have {num_layers} layers; write at most that"
        raise SpaceError([stage.fault(("genome", "layers", "groups"), problem)])
    return groups


def _varying(stage: Stage) -> int:
    """How many genes of a stage each layer group has of its own."""
    each = [site for site in _sites(stage, 2) if len(site.groups) == 1]
    return sum(isinstance(site.setting, Range) for site in each) // 2


def layer_blocks(num_layers: int, groups: int) -> list[tuple[int, int]]:
    """The layers of each group, first and one after the last, as equal in number as can be."""
    edges = [index * num_layers // groups for index in range(groups + 1)]
    return list(pairwise(edges))


def parts(stage: Stage) -> tuple[str | None, ...]:
    """The components with values of their own; the last, None, is the rest."""
    return (*stage.genome.filters, None)


def sites(stage: Stage, num_layers: int) -> Iterator[Site]:
    """Every value that one of the stage's methods reads, in the order of the genome."""
    return _sites(stage, count_groups(stage, num_layers))


def _sites(stage: Stage, groups: int) -> Iterator[Site]:
    read = {key for method in stage.methods for key in stage.reads(method)}
    for parameter in PARAMETERS:
        spec = stage.genome.parameter(parameter)
        if spec is None or parameter not in read:
            continue
        if isinstance(spec, Common):
            yield from _spread(stage, groups, parameter, None, spec.setting, each=spec.each)
            continue
        for label in stage.labels.values():
            setting = spec.of(label)
            if setting is not None:
                each = not stage.whole(parameter)
                yield from _spread(stage, groups, parameter, label, setting, each=each)


def _spread(
    stage: Stage, groups: int, parameter: str, label: str | None, setting: Setting, *, each: bool
) -> Iterator[Site]:
    """A parameter's values: one for each component and layer group, or one for all of them."""
    stem = [parameter] if label is None else [parameter, label]
    components = parts(stage)
    if not each:
        yield Site(parameter, label, components, tuple(range(groups)), "/".join(stem), setting)
        return
    rest = next(name for name in ("rest", "others", "*") if name not in components)
    for part in components:
        for group in range(groups):
            name = [*stem, part or rest] if len(components) > 1 else stem
            name = [*name, str(group)] if groups > 1 else name
            yield Site(parameter, label, (part,), (group,), "/".join(name), setting)


def find_genes(
    stage: Stage, num_layers: int, search: SearchSettings, prefix: str = ""
) -> tuple[Gene, ...]:
    """What is searched in a stage; see ``SearchSpace.genes``.

    Args:
        stage: the stage.
        num_layers: of the models.
        search: whether and how genes begin at random places.
        prefix: of the genes' names.
    """
    found = [
        _gene(search, prefix + site.name, site.setting)
        for site in sites(stage, num_layers)
        if isinstance(site.setting, Range)
    ]
    if len(stage.methods) > 1:
        found.append(_gene(search, prefix + METHOD, Range(0.0, 1.0)))
    return tuple(found)


def choose(stage: Stage, value: float) -> str:
    """The method that a value of the gene ``METHOD`` stands for."""
    count = len(stage.methods)
    return stage.methods[min(int(value * count), count - 1)]


def choice(stage: Stage, method: str) -> float:
    """The value in the middle of those that stand for a method; the inverse of ``choose``."""
    return (stage.methods.index(method) + 0.5) / len(stage.methods)


def _gene(search: SearchSettings, name: str, allowed: Range) -> Gene:
    initial = allowed.initial
    if search.random_init:
        # As mergekit-evolve draws them, uniform in [0, 1), as far as the bounds allow.
        low, high = max(allowed.low, 0.0), min(allowed.high, 1.0)
        if low >= high:
            low, high = allowed.low, allowed.high
        initial = low + _unit(f"{search.seed}/{name}") * (high - low)
    return Gene(name, allowed.low, allowed.high, initial)


def _unit(key: str) -> float:
    """A number in [0, 1) that depends on ``key`` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def chooses_method(gene: str) -> bool:
    """Whether a gene, by its name, chooses the merge method."""
    return gene.rpartition("/")[2] == METHOD
