"""The models of an engine: opened, under one model's names, and held where a plan says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, Fault
from evomerge.merging.placing import Device, place_of, plan_here
from evomerge.merging.residency import ResidencyPlan, Wish
from evomerge.merging.sources import MergedModel, Source
from evomerge.merging.stored import Stored
from evomerge.references import ModelReference

Model = ModelReference | str | Checkpoint | MergedModel


def open_models(models: Iterable[Model]) -> dict[ModelReference, Checkpoint | MergedModel]:
    """The models by reference, each once; the first one says by which names tensors go.

    Raises:
        CheckpointError: one cannot be opened.
        ValueError: there are none.
    """
    opened: dict[ModelReference, Checkpoint | MergedModel] = {}
    for model in models:
        reference = _reference(model)
        if reference not in opened:
            opened[reference] = _opened(model, next(iter(opened.values()), None))
    if not opened:
        raise ValueError("an engine needs at least one model")
    return opened


def hold(
    opened: Mapping[ModelReference, Checkpoint | MergedModel],
    device: Device,
    residency: Wish | None,
    spare: Collection[ModelReference] = (),
) -> tuple[dict[ModelReference, Source], ResidencyPlan | None]:
    """The models, the stored ones held where there is room for them.

    Args:
        opened: the models.
        device: see :class:`MergeEngine`.
        residency: where to hold them; None reads each tensor when it is asked for.
        spare: models of which a few rows are all that is asked for: these are never held.

    Raises:
        InputError: they do not fit.
        CheckpointError: one holds NaN or infinity.
    """
    held = [
        model
        for reference, model in opened.items()
        if isinstance(model, Checkpoint) and reference not in spare
    ]
    plan = plan_here(residency, held, device) if residency is not None and held else None
    where, place = None if plan is None else plan.residency, place_of(device)
    sources: dict[ModelReference, Source] = {}
    for reference, model in opened.items():
        if isinstance(model, MergedModel):
            sources[reference] = model
        else:
            own = None if reference in spare else where
            sources[reference] = Stored(model, place, residency=own)
    return sources, plan


def _reference(model: Model) -> ModelReference:
    if isinstance(model, Checkpoint | MergedModel):
        return model.reference
    try:
        return ModelReference.parse(model)
    except ValueError as problem:
        raise CheckpointError([Fault(repr(model), str(problem))]) from problem


def _opened(model: Model, first: Checkpoint | MergedModel | None) -> Checkpoint | MergedModel:
    if isinstance(model, MergedModel):
        return model
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(model)
    if first is None:
        return checkpoint
    # Another version of transformers may have stored it under other names.
    return checkpoint.aligned(first.like if isinstance(first, MergedModel) else first)
