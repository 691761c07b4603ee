"""From a genome to the recipe that it stands for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.errors import Fault, SpaceError
from evomerge.space.genes import METHOD, Gene, choose, count_groups, layer_blocks, parts, sites
from evomerge.space.methods import EPSILON, METHODS, PER_MODEL
from evomerge.space.settings import Range

if TYPE_CHECKING:
    from evomerge.space.stage import Stage

MARGIN = 1e-9
"""How far density ± epsilon stays inside (0, 1): more than what rounding can do to a gradient."""

_NOTHING, _NUDGE = 1e-12, 1e-6
"""A sum of weights that may be 0 once it is rounded, and what is more than that."""

Knots = list[float]
"""A value for each layer group."""

Components = dict[str | None, Knots]
"""Filter (None: the rest) → a value for each layer group."""

Table = dict[str, dict[str | None, Components]]
"""parameter → label (None: all models share it) → component → a value for each layer group."""


def check_genome(found: Sequence[Gene], genome: Mapping[str, float]) -> None:
    """Refuse a genome that is none of these genes' within their bounds.

    Raises:
        SpaceError: genes are missing, unknown or out of bounds.
    """
    faults = []
    for gene in found:
        if gene.name not in genome:
            problem = f"is missing; a value in [{gene.low}, {gene.high}] is needed"
            faults.append(Fault(f"genome: {gene.name}", problem))
        elif not gene.low <= genome[gene.name] <= gene.high:
            problem = f"{genome[gene.name]!r} is refused: must be in [{gene.low}, {gene.high}]"
            faults.append(Fault(f"genome: {gene.name}", problem))
    strangers = sorted(set(genome) - {gene.name for gene in found})
    faults += [Fault(f"genome: {name}", "is not a gene of this space") for name in strangers]
    if faults:
        raise SpaceError(faults)


def decode_stage(
    stage: Stage, genome: Mapping[str, float], num_layers: int, prefix: str = ""
) -> dict[str, Any]:
    """The recipe of one stage, as plain data.

    Args:
        stage: the stage.
        genome: a value for every gene, those of other stages too.
        num_layers: of the models.
        prefix: of the names of this stage's genes.
    """
    method = stage.methods[0]
    if len(stage.methods) > 1:
        method = choose(stage, genome[prefix + METHOD])
    table = _table(stage, method, genome, num_layers, prefix)
    recipe: dict[str, Any] = {"merge_method": method}
    base = _base(stage, method)
    if base is not None:
        recipe["base_model"] = base
    shared = {
        key: value for key, value in stage.genome.switches.items() if _reads(stage, method, key)
    }
    if stage.genome.layers.smooth or count_groups(stage, num_layers) == 1:
        recipe["models"] = _models(stage, table)
        shared |= _parameters(stage, table, None, None)
    else:
        recipe["slices"] = _slices(stage, table, num_layers, base)
        shared |= _parameters(stage, _of_whole(table), None, None)
    if shared:
        recipe["parameters"] = shared
    return {**recipe, **_rest(stage, method)}


def _reads(stage: Stage, method: str, key: str) -> bool:
    return key in stage.reads(method)


def _table(
    stage: Stage, method: str, genome: Mapping[str, float], num_layers: int, prefix: str
) -> Table:
    """Every value that the method reads; genes that it does not read are inert."""
    table: Table = {}
    groups = count_groups(stage, num_layers)
    for site in sites(stage, num_layers):
        if not _reads(stage, method, site.parameter):
            continue
        components = table.setdefault(site.parameter, {}).setdefault(site.label, {})
        value = site.setting
        if isinstance(value, Range):
            value = float(genome[prefix + site.name])
        for part in site.parts:
            knots = components.setdefault(part, [0.0] * groups)
            for group in site.groups:
                knots[group] = value
    if _reads(stage, method, "epsilon") and "density" in table:
        table["epsilon"] = _legal_epsilons(stage, table)
    if "gamma" in table:
        table["gamma"] = _legal_gammas(stage, table)
    if method == "linear" and stage.genome.normalize is not False:
        _keep_sums_from_zero(stage, table["weight"], num_layers)
    return table


def _legal_epsilons(stage: Stage, table: Table) -> dict[str | None, Components]:
    """DELLA's half-widths: shares of what the densities leave room for, or cut down to that.

    0 < density − epsilon and density + epsilon < 1 are linear in the two, so that what holds at
    the knots of a gradient holds between them.
    """
    wanted = table.get("epsilon", {})
    share = stage.genome.epsilon is not None and stage.genome.epsilon.share

    def legal(density: float, epsilon: float) -> float:
        room = min(density, 1.0 - density)
        return max(0.0, min(epsilon * room if share else epsilon, room - MARGIN))

    return {
        label: {
            part: [
                legal(density, epsilon)
                for density, epsilon in zip(
                    densities,
                    wanted[label][part] if label in wanted else [EPSILON] * len(densities),
                    strict=True,
                )
            ]
            for part, densities in components.items()
        }
        for label, components in table["density"].items()
    }


def _legal_gammas(stage: Stage, table: Table) -> dict[str | None, Components]:
    """Breadcrumbs' outliers: shares of what is not kept, or as they are (the merge lets them shrink
    where they conflict with the density)."""
    gammas = table["gamma"]
    if stage.genome.gamma is None or not stage.genome.gamma.share:
        return gammas
    densities = table.get("density", {})
    return {
        label: {
            part: [
                gamma * (1.0 - density)
                for gamma, density in zip(
                    knots,
                    densities[label][part] if label in densities else [1.0] * len(knots),
                    strict=True,
                )
            ]
            for part, knots in components.items()
        }
        for label, components in gammas.items()
    }


def _keep_sums_from_zero(
    stage: Stage, weights: dict[str | None, Components], num_layers: int
) -> None:
    """Change weights where a normalized blend would divide by nothing: models whose weights are
    searched have equal ones there.

    A sampler that keeps to its bounds often ends on them, so that all weights are 0 is no rarity.
    Where negative weights cancel out between the knots of a gradient, the first knot gives way.
    """
    setting = stage.genome.weight
    searched = [label for label in weights if isinstance(setting.of(str(label)), Range)]
    for part, first in next(iter(weights.values())).items():
        for group in range(len(first)):
            if _is_nothing(components[part][group] for components in weights.values()):
                for label in searched:
                    weights[label][part][group] = 1.0
        columns = [components[part] for components in weights.values()]
        while searched and stage.genome.layers.smooth and _cancels(columns, num_layers):
            weights[searched[0]][part][0] += _NUDGE


def _cancels(columns: Sequence[Knots], num_layers: int) -> bool:
    """Whether interpolated weights sum to nothing at some layer."""
    depths = (layer / max(num_layers - 1, 1) for layer in range(num_layers))
    return any(_is_nothing(_at(knots, depth) for knots in columns) for depth in depths)


def _at(knots: Knots, depth: float) -> float:
    position = depth * (len(knots) - 1)
    low = min(int(position), max(len(knots) - 2, 0))
    high = min(low + 1, len(knots) - 1)
    return knots[low] + (position - low) * (knots[high] - knots[low])


def _is_nothing(values: Iterable[float]) -> bool:
    return abs(math.fsum(values)) < _NOTHING


def _models(stage: Stage, table: Table) -> list[dict[str, Any]]:
    return [
        _with({"model": model.as_data()}, _parameters(stage, table, label, None))
        for model, label in stage.labels.items()
    ]


def _slices(stage: Stage, table: Table, num_layers: int, base: Any | None) -> list[dict[str, Any]]:
    slices = []
    groups = count_groups(stage, num_layers)
    common = {name: models for name, models in table.items() if name not in _of_whole(table)}
    for group, (start, stop) in enumerate(layer_blocks(num_layers, groups)):
        sources: list[dict[str, Any]] = [
            _with(
                {"model": model.as_data(), "layer_range": [start, stop]},
                _parameters(stage, table, label, group),
            )
            for model, label in stage.labels.items()
        ]
        if base is not None and not any(source["model"] == base for source in sources):
            sources.append({"model": base, "layer_range": [start, stop]})
        slices.append(_with({"sources": sources}, _parameters(stage, common, None, group)))
    return slices


def _with(data: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    return {**data, "parameters": parameters} if parameters else data


def _of_whole(table: Table) -> Table:
    """What all models share and no component and no layer group has its own of."""
    return {
        name: models
        for name, models in table.items()
        if name not in PER_MODEL and len({v for knots in models[None].values() for v in knots}) == 1
    }


def _parameters(stage: Stage, table: Table, label: str | None, group: int | None) -> dict[str, Any]:
    """A model's parameters (or what all share): of one layer group, or as gradients (None)."""
    found: dict[str, Any] = {}
    for parameter, models in table.items():
        if label not in models:
            continue
        values = {
            part: _gradient(knots) if group is None else knots[group]
            for part, knots in models[label].items()
        }
        rest = values[None]
        if all(value == rest for value in values.values()):
            found[parameter] = rest
        else:
            cases = [{"filter": part, "value": values[part]} for part in parts(stage) if part]
            found[parameter] = [*cases, {"value": rest}]
    return found


def _gradient(knots: Knots) -> float | Knots:
    """One number where a gradient is flat."""
    return knots[0] if all(knot == knots[0] for knot in knots) else knots


def _base(stage: Stage, method: str) -> Any | None:
    """The recipe's base model. ``linear`` has one only where it is blended like the others."""
    base = stage.base_model
    if base is None:
        return None
    if METHODS[method].takes_base or base in stage.models:
        return base.as_data()
    return None


def recipe_types(dtype: str | None) -> dict[str, str]:
    """The recipe's keys for a merged model of this type.

    We compute in float32 and cast once. mergekit computes in ``dtype``, where trimming and election
    come out otherwise; so that its own command makes the same model, the two are told apart.
    """
    if dtype is None:
        return {}
    return {"dtype": "float32"} if dtype == "float32" else {"dtype": "float32", "out_dtype": dtype}


def method_keys(stage: Stage, method: str) -> dict[str, Any]:
    """The recipe's keys for a method's variant, its ablations and its masks."""
    known = METHODS[method]
    keys: dict[str, Any] = {}
    if known.paper is not None and stage.variant == "paper":
        keys["variant"] = "paper"
    if known.masks == "dare":
        keys |= {"mask_by": "magnitude"} if stage.mask_by == "magnitude" else {}
        keys |= {"mask_of": "weights"} if stage.mask_of == "weights" else {}
    if known.draws_masks and "mask_by" not in keys:
        keys["mask_seed"] = stage.mask_seed
    return keys


def _rest(stage: Stage, method: str) -> dict[str, Any]:
    rest: dict[str, Any] = {**recipe_types(stage.dtype), "tokenizer_source": stage.tokenizer_source}
    rest |= method_keys(stage, method)
    return {name: value for name, value in rest.items() if value is not None}
