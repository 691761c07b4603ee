"""Whether the models have what a resolved recipe asks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.errors import Fault, RecipeError
from evomerge.merging.sources import Source
from evomerge.recipe import TensorMerge
from evomerge.references import ModelReference


def check_inputs(
    specs: Sequence[TensorMerge], sources: Mapping[ModelReference, Source], place: str
) -> None:
    """Refuse tensors that a model lacks or has in another shape or kind, all at once.

    Args:
        specs: the merged tensors.
        sources: the models.
        place: the recipe's, for messages.

    Raises:
        RecipeError: there are such tensors.
    """
    faults: list[Fault] = []
    for spec in specs:
        faults += _faults(spec, sources, f"{place}: {spec.name}")
    if faults:
        raise RecipeError(faults)


def _faults(spec: TensorMerge, sources: Mapping[ModelReference, Source], place: str) -> list[Fault]:
    faults: list[Fault] = []
    shapes, kinds = {}, {}
    wanted = [spec.base] if spec.base else []
    for model, name in [*wanted, *((p.model, p.tensor) for p in spec.contributions)]:
        source = sources[model]
        if name not in source:
            faults.append(Fault(place, f"{model} has no {name}"))
            continue
        shapes[str(model)] = source.shape(name)
        kinds[str(model)] = source.dtype(name)
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{model} {list(shape)}" for model, shape in shapes.items())
        faults.append(Fault(place, f"shapes differ: {listed}"))
    if len({kind.is_floating_point for kind in kinds.values()}) > 1:
        listed = ", ".join(f"{model} {kind}" for model, kind in kinds.items())
        faults.append(Fault(place, f"floating in some models only: {listed}"))
    return faults
