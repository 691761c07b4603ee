"""What must hold of a recipe beyond its shape, as far as it can be known without the models."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from evomerge.recipe.ledger import Ledger
from evomerge.recipe.methods import SHARED, MethodSpec
from evomerge.recipe.model import Recipe, Slice, Source
from evomerge.recipe.settings import Parameters, lookup


def density_problem(spec: MethodSpec, density: float, epsilon: float) -> str | None:
    """What is wrong with a model's density and epsilon, or None.

    mergekit 0.1.5 makes a density <= 0 a task vector of zeros and one > 1 a full one. Neither is
    ever meant (the one is a weight of 0, the other 1), so both are refused.
    """
    if not spec.sparsifies:
        return None
    if not 0 < density <= 1:
        hint = "1 keeps everything" if density > 1 else "to leave a model out, give it weight 0"
        return f"density {density!r} is refused: the share kept lies in (0, 1]; {hint}"
    if spec.sparsifier != "magprune" or density == 1:
        return None
    if epsilon < 0 or density - epsilon <= 0 or density + epsilon >= 1:
        return (
            f"density {density!r} with epsilon {epsilon!r} is refused: {spec.name} keeps elements "
            f"with probabilities from density - epsilon = {density - epsilon:.6g} to density + "
            f"epsilon = {density + epsilon:.6g}, which must lie inside (0, 1); "
            f"epsilon >= 0 and < {min(density, 1 - density):.6g} is allowed here"
        )
    return None


def without_base(recipe: Recipe, ledger: Ledger) -> Recipe:
    """The recipe without its base among ``models``, where it would not be merged with itself.

    mergekit reads the base's entry as if it were not there. An entry with parameters looks as if it
    did something (mergekit up to 0.1.4 ignored it, 0.1.5 refuses a second one): that is said.
    """
    if not recipe.method.needs_base or recipe.base_model is None:
        return recipe
    if recipe.models:
        return replace(recipe, models=_drop(recipe, recipe.models, ledger))
    modules = recipe.modules and tuple(
        replace(module, models=module.models and _drop(recipe, module.models, ledger))
        for module in recipe.modules
    )
    return replace(recipe, modules=modules)


def _drop(recipe: Recipe, models: tuple[Source, ...], ledger: Ledger) -> tuple[Source, ...]:
    listed = [source for source in models if source.model == recipe.base_model]
    for source in listed:
        if source.parameters.settings or len(listed) > 1:
            ledger.note_at(
                source.place,
                f"{source.model} is the base model and is dropped from the models: "
                f"{recipe.merge_method} merges task vectors, and the base's own is zero. Its "
                "parameters have no effect",
            )
    return tuple(source for source in models if source.model != recipe.base_model)


def check(recipe: Recipe, ledger: Ledger) -> None:
    """Leave in ``ledger`` what is wrong with a recipe, and what in it has no effect."""
    if recipe.method.needs_base and any(recipe.base_of(block) is None for block in recipe.blocks):
        ledger.fault(("base_model",), f"is missing, and {recipe.merge_method} requires it")
    for block in recipe.blocks:
        _check_sources(recipe, block, ledger)
        for source in _contributing(recipe, block):
            _check_weight(recipe, block, source, ledger)
            _check_ends(recipe, block, source, ledger)
    _check_values(recipe, ledger)


def _contributing(recipe: Recipe, block: Slice) -> list[Source]:
    return [source for source in block.sources if source.model != recipe.base_of(block)]


def _check_sources(recipe: Recipe, block: Slice, ledger: Ledger) -> None:
    count = Counter(source.model for source in block.sources)
    seen = set()
    for source in block.sources:
        if source.model in seen:
            ledger.fault_at(source.place, f"{source.model} stands {count[source.model]} times here")
        seen.add(source.model)
    base = recipe.base_of(block)
    if base is not None and base not in count:
        ledger.fault_at(
            block.place,
            f"the base model {base} is not among the sources: add it with its layer_range",
        )
    lengths = {end - first for first, end in (s.layers for s in block.sources if s.layers)}
    if len(lengths) > 1:
        found = ", ".join(
            f"{s.model} [{s.layers[0]}, {s.layers[1]}]" for s in block.sources if s.layers
        )
        ledger.fault_at(block.place, f"the sources' layer_range differ in length: {found}")


def _check_weight(recipe: Recipe, block: Slice, source: Source, ledger: Ledger) -> None:
    if any("weight" in level.settings for level in recipe.levels(block, source)):
        return
    problem = f"{source.model} has no weight; every model but the base needs one"
    if not recipe.method.needs_base:
        problem = f"{source.model} has no weight; {recipe.merge_method} needs one for every model"
        if source.model == recipe.base_model:
            problem += ", the base model included; give it one among the models, or no base_model"
    ledger.fault_at(source.place, f"{problem} (parameters: {{weight: 1.0}})")


def _check_ends(recipe: Recipe, block: Slice, source: Source, ledger: Ledger) -> None:
    """Density against epsilon at both ends of a gradient, where the names of tensors do not matter.

    The first value is always used (embeddings), and so is the last; between them, and behind
    filters, it takes the layers to tell, and resolving does.
    """
    levels = recipe.levels(block, source)
    if recipe.method.sparsifier != "magprune" or any(
        case.filter is not None or not all(0 < value <= 1 for value in case.values)
        for level in levels
        for name in ("density", "epsilon")
        for case in level.settings.get(name, ())
    ):
        return
    for t in (0.0, 1.0):
        density, place = lookup(levels, "density", "", t)
        epsilon, other = lookup(levels, "epsilon", "", t)
        density = recipe.method.density if density is None else density
        epsilon = recipe.method.epsilon if epsilon is None else epsilon
        problem = density_problem(recipe.method, float(density), float(epsilon))
        if problem:
            ledger.fault_at(place or other or source.place, f"{source.model}: {problem}")


def _check_values(recipe: Recipe, ledger: Ledger) -> None:
    _check_level(recipe, recipe.parameters, ledger, whole=True)
    for module in recipe.modules or ():
        _check_level(recipe, module.parameters, ledger, whole=True)
    for block in recipe.blocks:
        _check_level(recipe, block.parameters, ledger, whole=True)
        for source in block.sources:
            if source.model != recipe.base_of(block):
                _check_level(recipe, source.parameters, ledger, whole=False)
            elif source.parameters.settings:
                ledger.note_at(source.place, "the base model's parameters have no effect")


def _check_level(recipe: Recipe, level: Parameters, ledger: Ledger, *, whole: bool) -> None:
    for name, cases in level.settings.items():
        place = level.place(name)
        if name == "int8_mask":
            continue  # It changes how mergekit stores a mask, never a result.
        if name not in recipe.method.parameters:
            reads = ", ".join(recipe.method.parameters)
            ledger.note_at(place, f"has no effect: {recipe.merge_method} reads {reads}")
            continue
        if name in SHARED and not whole:
            ledger.note_at(place, "has no effect on a single model; set it for all of them")
        for value in dict.fromkeys(value for case in cases for value in case.values):
            if name == "density" and not 0 < value <= 1:
                problem = density_problem(recipe.method, value, 0.0)
                ledger.fault_at(place, str(problem))
            if name == "epsilon" and value < 0:
                ledger.fault_at(place, f"epsilon {value!r} is refused: it is at least 0")
