"""From a genome to the recipe that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.errors import Fault, SpaceError
from evomerge.space.genes import METHOD, Gene, choose, count_groups, layer_blocks, parts, sites
from evomerge.space.legal import (
    Knots,
    Table,
    keep_sums_from_zero,
    legal_epsilons,
    legal_gammas,
)
from evomerge.space.methods import METHODS, PER_MODEL
from evomerge.space.settings import Range

if TYPE_CHECKING:
    from evomerge.space.stage import Stage


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
        table["epsilon"] = legal_epsilons(stage, table)
    if "gamma" in table:
        table["gamma"] = legal_gammas(stage, table)
    if method == "linear" and stage.genome.normalize is not False:
        keep_sums_from_zero(stage, table["weight"], num_layers)
    return table


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
