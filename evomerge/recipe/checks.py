"""What must hold of a recipe beyond its shape, as far as it can be known without the models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from evomerge.recipe.ledger import Ledger
from evomerge.recipe.methods import METHODS, SHARED, MethodSpec
from evomerge.recipe.model import Recipe, Slice, Source
from evomerge.recipe.ranges import density_problem, value_problem
from evomerge.recipe.settings import Parameters, Setting, lookup


def without_base(recipe: Recipe, ledger: Ledger) -> Recipe:
    """The recipe without its base among ``models``, where it would not be merged with itself.

    mergekit reads the base's entry as if it were not there. An entry with parameters looks as if it
    did something (mergekit up to 0.1.4 ignored it, 0.1.5 refuses a second one): that is said.
    """
    if not recipe.method.takes_base or recipe.base_model is None:
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
    why = f"{recipe.merge_method} merges task vectors, and the base's own is zero"
    if recipe.merge_method == "slerp":
        why = "slerp leads from the base to the other model"
    for source in listed:
        if source.parameters.settings or len(listed) > 1:
            ledger.note_at(
                source.place,
                f"{source.model} is the base model and is dropped from the models: {why}. Its "
                "parameters have no effect",
            )
    return tuple(source for source in models if source.model != recipe.base_model)


def check(recipe: Recipe, ledger: Ledger) -> None:
    """Leave in ``ledger`` what is wrong with a recipe, and what in it has no effect."""
    if recipe.method.needs_base and any(recipe.base_of(block) is None for block in recipe.blocks):
        ledger.fault(("base_model",), f"is missing, and {recipe.merge_method} requires it")
    for block in recipe.blocks:
        _check_sources(recipe, block, ledger)
        _check_number(recipe, block, ledger)
        _check_t(recipe, block, ledger)
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


def _check_number(recipe: Recipe, block: Slice, ledger: Ledger) -> None:
    """As many models as the method merges; with none at all, that is what is said elsewhere."""
    least, most = recipe.method.least, recipe.method.most
    models = dict.fromkeys(source.model for source in _contributing(recipe, block))
    number = len(models)
    if not block.sources or (number >= least and (most is None or number <= most)):
        return
    wanted = f"exactly {least}" if least == most else f"at least {least}"
    besides = "" if recipe.base_of(block) is None else ", the base model not counted"
    found = ", ".join(str(model) for model in models) if number else "none"
    ledger.fault_at(
        block.place,
        f"{number} models ({found}) are refused: {recipe.merge_method} merges {wanted}{besides}",
    )


def _check_t(recipe: Recipe, block: Slice, ledger: Ledger) -> None:
    if "t" in recipe.reads and not any("t" in one.settings for one in recipe.levels(block)):
        ledger.fault_at(
            block.place,
            f"{recipe.merge_method} needs t, how far from the base to the other model "
            "(parameters: {t: 0.5})",
        )


def _check_weight(recipe: Recipe, block: Slice, source: Source, ledger: Ledger) -> None:
    levels = recipe.levels(block, source)
    if "weight" not in recipe.reads or any("weight" in level.settings for level in levels):
        return
    problem = f"{source.model} has no weight; every model but the base needs one"
    if not recipe.method.needs_base and recipe.base_of(block) is None:
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
        if name not in recipe.reads:
            _tell_unread(recipe, name, place, ledger)
            continue
        if name in SHARED and not whole:
            ledger.note_at(place, "has no effect on a single model; set it for all of them")
        for value in dict.fromkeys(value for case in cases for value in case.values):
            problem = value_problem(name, value)
            if problem:
                ledger.fault_at(place, problem)
        if name == recipe.method.trims_whole(recipe.variant):
            _check_constant(recipe, name, cases, place, ledger)


def _tell_unread(recipe: Recipe, name: str, place: str, ledger: Ledger) -> None:
    variant = "" if recipe.variant == "mergekit" else f" with variant {recipe.variant}"
    problem = f"has no effect: {recipe.merge_method}{variant} reads {', '.join(recipe.reads)}"
    if name == "trim":
        # mergekit has no such key, so that nobody's recipe has it by habit.
        problem = problem.replace("has no effect", "is refused", 1)
        ledger.fault_at(place, f"{problem}; trim goes with dare_ties and variant: paper")
    else:
        ledger.note_at(place, problem)


def _check_constant(recipe: Recipe, name: str, cases: Setting, place: str, ledger: Ledger) -> None:
    """TIES's own code trims a model as a whole, which no gradient and no filter can say."""
    values = {float(value) for case in cases for value in case.values}
    if len(values) > 1:
        ledger.fault_at(place, several_problem(recipe.method, name, values))


def several_problem(spec: MethodSpec, name: str, values: set[float]) -> str:
    """What is wrong with several values where one holds for all of a model's tensors."""
    found = ", ".join(f"{value:g}" for value in sorted(values))
    return (
        f"{name} differs between tensors ({found}), which is refused: {spec.name} with variant "
        "paper trims all of a model's tensors together; one value for each model is allowed"
    )


def check_keys(spec: MethodSpec, given: Mapping[str, str], ledger: Ledger) -> None:
    """Refuse a variant, or an ablation of DARE, that the method does not have.

    Args:
        spec: the method.
        given: those of ``variant``, ``mask_by``, ``mask_of`` that the recipe names and that are
            right by themselves.
        ledger: takes the faults.
    """
    for key, value in given.items():
        if key == "variant" and value not in spec.variants:
            have = ", ".join(name for name, one in METHODS.items() if value in one.variants)
            problem = f"{value!r} is refused: {spec.name} has no such variant; allowed for {have}"
            ledger.fault((key,), problem)
        elif key != "variant" and spec.sparsifier != "random":
            have = ", ".join(name for name, one in METHODS.items() if one.sparsifier == "random")
            ledger.fault((key,), f"is refused: {spec.name} has no such masks; allowed for {have}")
