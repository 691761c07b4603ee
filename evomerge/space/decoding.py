"""From a genome to the recipe that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.errors import Fault, SpaceError
from evomerge.references import labels
from evomerge.space.genes import LAMBDA, Gene, count_groups, find_genes, layer_blocks, parts, sites
from evomerge.space.methods import EPSILON, METHODS
from evomerge.space.settings import Range, Setting

if TYPE_CHECKING:
    from evomerge.space.model import SearchSpace

MARGIN = 1e-9
"""How far density ± epsilon stays inside (0, 1): more than what rounding can do to a gradient."""

Knots = list[float]
"""A value for each layer group."""

Table = dict[str, dict[str, dict[str | None, Knots]]]
"""parameter → label → component → value for each layer group."""


def decode_genome(
    space: SearchSpace, genome: Mapping[str, float], num_layers: int
) -> dict[str, Any]:
    """The recipe of a genome; see ``SearchSpace.recipe_mapping``."""
    found = find_genes(space, num_layers)
    _check(found, genome)
    table = _table(space, genome, num_layers)
    recipe: dict[str, Any] = {"merge_method": space.merge_method}
    base = _base(space)
    if base is not None:
        recipe["base_model"] = base
    if space.genome.layers.smooth or count_groups(space, num_layers) == 1:
        recipe["models"] = _models(space, table)
    else:
        recipe["slices"] = _slices(space, table, num_layers, base)
    shared = _shared(space, genome)
    if shared:
        recipe["parameters"] = shared
    return {**recipe, **_rest(space)}


def _check(found: Sequence[Gene], genome: Mapping[str, float]) -> None:
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


def _table(space: SearchSpace, genome: Mapping[str, float], num_layers: int) -> Table:
    table: Table = {}
    for site in sites(space, num_layers):
        knots = table.setdefault(site.parameter, {}).setdefault(site.label, {})
        value = _value(genome, site.name, site.setting)
        knots.setdefault(site.part, []).append(value)
    method = METHODS[space.merge_method]
    if method.widens and "density" in table:
        table["epsilon"] = _legal_epsilons(table)
    if not method.needs_base and space.genome.normalize is not False:
        _blend_equally_where_all_are_zero(space, table["weight"])
    return table


def _value(genome: Mapping[str, float], name: str, setting: Setting) -> float:
    return float(genome[name]) if isinstance(setting, Range) else setting


def _legal_epsilons(table: Table) -> dict[str, dict[str | None, Knots]]:
    """DELLA's half-widths, cut down to what the densities leave room for.

    0 < density − epsilon and density + epsilon < 1 are linear in the two, so that what holds at
    the knots of a gradient holds between them.
    """
    wanted = table.get("epsilon", {})
    return {
        label: {
            part: [
                max(0.0, min(epsilon, min(density, 1.0 - density) - MARGIN))
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


def _blend_equally_where_all_are_zero(
    space: SearchSpace, weights: dict[str, dict[str | None, Knots]]
) -> None:
    """Give models equal weights where a normalized blend would divide nothing by nothing.

    A sampler that keeps to its bounds often ends on them, so this corner is no rarity.
    """
    searched = [label for label in weights if isinstance(space.genome.weight.of(label), Range)]
    for part, knots in next(iter(weights.values())).items():
        for group in range(len(knots)):
            if all(components[part][group] == 0 for components in weights.values()):
                for label in searched:
                    weights[label][part][group] = 1.0


def _models(space: SearchSpace, table: Table) -> list[dict[str, Any]]:
    return [
        {"model": model.as_data(), "parameters": _parameters(space, table, label, None)}
        for model, label in labels(space.models).items()
    ]


def _slices(
    space: SearchSpace, table: Table, num_layers: int, base: Any | None
) -> list[dict[str, Any]]:
    slices = []
    groups = count_groups(space, num_layers)
    for group, (start, stop) in enumerate(layer_blocks(num_layers, groups)):
        sources: list[dict[str, Any]] = [
            {
                "model": model.as_data(),
                "layer_range": [start, stop],
                "parameters": _parameters(space, table, label, group),
            }
            for model, label in labels(space.models).items()
        ]
        if METHODS[space.merge_method].needs_base:
            sources.append({"model": base, "layer_range": [start, stop]})
        slices.append({"sources": sources})
    return slices


def _parameters(space: SearchSpace, table: Table, label: str, group: int | None) -> dict[str, Any]:
    """A model's parameters: of one layer group, or as gradients over all of them (None)."""
    found: dict[str, Any] = {}
    for parameter, models in table.items():
        values = {
            part: _gradient(knots) if group is None else knots[group]
            for part, knots in models[label].items()
        }
        rest = values[None]
        if all(value == rest for value in values.values()):
            found[parameter] = rest
        else:
            cases = [{"filter": part, "value": values[part]} for part in parts(space) if part]
            found[parameter] = [*cases, {"value": rest}]
    return found


def _gradient(knots: Knots) -> float | Knots:
    """One number where a gradient is flat."""
    return knots[0] if all(knot == knots[0] for knot in knots) else knots


def _shared(space: SearchSpace, genome: Mapping[str, float]) -> dict[str, Any]:
    shared: dict[str, Any] = {"normalize": space.genome.normalize, "rescale": space.genome.rescale}
    if space.genome.lambda_ is not None:
        shared["lambda"] = _value(genome, LAMBDA, space.genome.lambda_)
    return {name: value for name, value in shared.items() if value is not None}


def _base(space: SearchSpace) -> Any | None:
    """The recipe's base model. ``linear`` has one only where it is blended like the others."""
    base = space.base_model
    if base is None:
        return None
    if METHODS[space.merge_method].needs_base or base in space.models:
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


def _rest(space: SearchSpace) -> dict[str, Any]:
    rest: dict[str, Any] = {**recipe_types(space.dtype), "tokenizer_source": space.tokenizer_source}
    if METHODS[space.merge_method].draws_masks:
        rest["mask_seed"] = space.mask_seed
    return {name: value for name, value in rest.items() if value is not None}
