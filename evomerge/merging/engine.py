"""The engine: models held once, any number of recipes merged from them.

A live model and a written one get their tensors from the same place, :meth:`MergeEngine.tensors`,
so that what was scored and what is exported are the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from copy import copy

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, Fault, RecipeError, TrialError
from evomerge.merging.layout import make_layout
from evomerge.merging.live import LiveTensors
from evomerge.merging.methods import merge_bounded
from evomerge.merging.placing import Device, place_of, plan_here
from evomerge.merging.programs import Programs
from evomerge.merging.residency import ResidencyPlan, Wish
from evomerge.merging.sources import MergedModel, Source, Stored, read_ahead
from evomerge.merging.taskvectors import Memory
from evomerge.merging.trimming import measure
from evomerge.merging.whole import Whole
from evomerge.recipe import Layout, Recipe, TensorMerge, resolve
from evomerge.references import ModelReference

_CANDIDATES = 20  # that an engine of resident models is expected to merge at least
_ROOM = 64 << 20  # bytes that may be kept about models beyond their own size

Model = ModelReference | str | Checkpoint | MergedModel

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The types that a recipe can name."""


class MergeEngine:
    """Merges recipes of the models that it holds.

    They are held in their own types. What no candidate changes is found out once and kept, up to
    the models' own size: for DARE 98 KB per large tensor and model, for TIES about as much (the
    whole tensor's magnitudes are counted), for DELLA two bytes per element and model (ranks).
    Beside them a merge needs, for one tensor at a time, a byte per element where norms are restored
    tensor by tensor, and the result where it is not made in place.

    Args:
        base_model: the model that task vectors are taken from and added to; None for methods that
            need none.
        models: the fine-tuned models; those that a recipe may name.
        device: where the arithmetic is done; for each tensor by its name, where a live model lies
            over several devices (``devices_of``).
        resident: hold all tensors in memory (for many recipes); else read them as they are needed
            (for one).
        residency: where they are held then: ``device``, ``host`` or ``auto`` (``plan_residency``).

    Raises:
        InputError: the models do not fit into memory.
        CheckpointError: a model cannot be read, or holds NaN or infinity (with ``resident``; else
            when the tensor's turn comes).
    """

    def __init__(
        self,
        base_model: Model | None,
        models: Sequence[Model],
        *,
        device: Device = "cpu",
        resident: bool = True,
        residency: Wish = "auto",
    ) -> None:
        opened: dict[ModelReference, Checkpoint | MergedModel] = {}
        for model in [*([base_model] if base_model is not None else []), *models]:
            if _reference(model) not in opened:
                opened[_reference(model)] = _opened(model)
        if not opened:
            raise ValueError("an engine needs at least one model")
        stored = [model for model in opened.values() if isinstance(model, Checkpoint)]
        self._plan = plan_here(residency, stored, device) if resident and stored else None
        where = None if self._plan is None else self._plan.residency
        self._sources: dict[ModelReference, Source] = {
            reference: Stored(model, place_of(device), residency=where)
            if isinstance(model, Checkpoint)
            else model
            for reference, model in opened.items()
        }
        self._resident = resident
        held = sum(source.nbytes for source in self._sources.values())
        self._memory = Memory(held + _ROOM) if resident else None
        self._programs: dict[torch.device, Programs] = {}
        # The base, where there is one: integer tensors, and what is no tensor, come from it.
        self._first = next(iter(self._sources.values()))
        self._layout = _layout(self._first)

    def sharing(
        self, models: Sequence[ModelReference], results: Mapping[ModelReference, Source]
    ) -> MergeEngine:
        """An engine of models that this one holds, which stay where they are, and of others.

        It remembers nothing of merges that the others have part in: they may change.

        Args:
            models: which, in the order that a new engine would have them in.
            results: the others, such as the results of a recipe's earlier stages.

        Raises:
            RecipeError: a model is among neither.
        """
        strangers = [one for one in models if one not in results and one not in self._sources]
        if strangers:
            raise RecipeError(Fault(str(one), "is not among the models held") for one in strangers)
        other = copy(self)
        other._sources = {one: results.get(one) or self._sources[one] for one in models}
        if any(one in results for one in models):
            other._memory = None
        other._first = next(iter(other._sources.values()))
        other._layout = _layout(other._first)
        return other

    def reader(self, recipe: Recipe) -> Callable[[str], torch.Tensor]:
        """A function that merges one tensor of a recipe, by its name: :meth:`tensors` bit for bit.

        Raises:
            RecipeError: as :meth:`tensors`; the function raises TrialError as that does.
        """
        dtype = self.dtype(recipe)
        specs = {spec.name: spec for spec in self._resolve(recipe)}
        whole = self._whole(tuple(specs.values()))
        return lambda name: self._merged(specs[name], dtype, whole=whole)

    @property
    def residency(self) -> ResidencyPlan | None:
        """Where the stored models are held; None where none is."""
        return self._plan

    @property
    def layout(self) -> Layout:
        """The layers of the models."""
        return self._layout

    @property
    def like(self) -> Checkpoint:
        """The stored model that merged ones have configuration and tokenizer of."""
        return self._first.like

    @property
    def nbytes(self) -> int:
        """Size in bytes of all the models' tensors and of what is kept about them."""
        kept = 0 if self._memory is None else self._memory.nbytes
        return kept + sum(source.nbytes for source in self._sources.values())

    def dtype(self, recipe: Recipe) -> torch.dtype:
        """The type of a recipe's floating tensors: ``out_dtype``, ``dtype``, else the model's.

        Raises:
            RecipeError: the recipe names one that is not among ``DTYPES``.
        """
        name = recipe.out_dtype or recipe.dtype
        if name is None:
            return self._first.torch_dtype
        if name not in DTYPES:
            problem = f"{name} is not supported: the arithmetic is float32"
            allowed = f"{problem}; allowed: {', '.join(DTYPES)}"
            place = f"{recipe.place}: {'out_dtype' if recipe.out_dtype else 'dtype'}"
            raise RecipeError([Fault(place, allowed)])
        return DTYPES[name]

    def layers(self, recipe: Recipe) -> tuple[int, ...] | None:
        """For each layer of the merged model the one of ``like`` that it is made like.

        None where they are the same, as in every recipe without slices that move layers.
        """
        before = self._first.layers or range(self._layout.num_layers)
        after: list[int] = []
        for block in recipe.blocks:
            base = recipe.base_of(block)
            lead = next((s for s in block.sources if s.model == base), block.sources[0])
            after += before[slice(*lead.layers)] if lead.layers else before
        return None if after == list(range(self.like.num_layers)) else tuple(after)

    def outline(self, recipe: Recipe) -> dict[str, torch.Tensor]:
        """What :meth:`tensors` would give, as tensors without values (on the meta device).

        Reads nothing; refuses what :meth:`tensors` would refuse before it merges.
        """
        dtype = self.dtype(recipe)
        return {
            spec.name: torch.empty(self._shape(spec), dtype=self._kind(spec, dtype), device="meta")
            for spec in self._resolve(recipe)
        }

    def tensors(self, recipe: Recipe) -> Generator[tuple[str, torch.Tensor], None, None]:
        """The merged model, tensor by tensor, each cast once to the recipe's type.

        Tensors that are no floating numbers are the base model's.

        Raises:
            RecipeError: the recipe names a model that is not held, or does not fit the models.
            TrialError: a merged tensor holds NaN or infinity.
        """
        dtype, specs = self.dtype(recipe), self._resolve(recipe)
        whole = self._whole(specs)
        with read_ahead(self._sources, specs):
            for spec in specs:
                yield spec.name, self._merged(spec, dtype, whole=whole)

    def merge_into(self, model: torch.nn.Module, recipe: Recipe) -> None:
        """Write a recipe's tensors into a live model, in place.

        Args:
            model: of the merged model's shape; its parameters' type must hold the recipe's type
                without loss.
            recipe: the recipe.

        Raises:
            RecipeError: the recipe does not fit the models held or the live model; nothing is
                written then.
            TrialError: a merged tensor holds NaN or infinity; the live model is then half written,
                and whole again after the next merge.
        """
        # Looked up each time: a parameter may have been replaced (resized embeddings).
        live = LiveTensors(model)
        specs, dtype = self._resolve(recipe), self.dtype(recipe)
        live.check({spec.name: self._shape(spec) for spec in specs}, dtype, recipe.place)
        whole = self._whole(specs)
        with read_ahead(self._sources, specs):
            self._write(live, specs, dtype, whole)

    def _write(
        self,
        live: LiveTensors,
        specs: Sequence[TensorMerge],
        dtype: torch.dtype,
        whole: Whole | None,
    ) -> None:
        for spec in specs:
            live.write(spec.name, self._merged(spec, dtype, live.place(spec.name), whole))

    def _merged(
        self,
        spec: TensorMerge,
        dtype: torch.dtype,
        place: torch.Tensor | None = None,
        whole: Whole | None = None,
    ) -> torch.Tensor:
        """One merged tensor; in ``place`` if that is given, can be written to and is near."""
        model, name = self._lead(spec)
        if not self._sources[model].dtype(name).is_floating_point:
            return self._sources[model].tensor(name).clone()
        base = self._sources[spec.base[0]].tensor(spec.base[1]) if spec.base else None
        inputs = [self._sources[part.model].tensor(part.tensor) for part in spec.contributions]
        # Layers that a recipe moves may come from another device.
        device = (inputs[0] if base is None else base).device
        inputs = [tensor.to(device) for tensor in inputs]
        if place is not None and not (place.is_contiguous() and place.device == device):
            place = None
        merged, certain = merge_bounded(
            spec,
            base,
            inputs,
            dtype=dtype,
            out=place,
            memory=self._memory,
            programs=self._programs_on(device),
            whole=whole,
        )
        if not certain and merged.numel():
            low, high = torch.aminmax(merged)
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                problem = f"the merged tensor holds NaN or infinity (as {dtype})"
                raise TrialError(f"{spec.name}: {problem}")
        return merged

    def _whole(self, specs: Sequence[TensorMerge]) -> Whole | None:
        """What a variant decides over all tensors, before the first is merged."""
        floating = [
            spec
            for spec in specs
            if self._sources[self._lead(spec)[0]].dtype(self._lead(spec)[1]).is_floating_point
        ]
        return measure(floating, self._inputs)

    def _inputs(self, spec: TensorMerge) -> tuple[torch.Tensor, list[torch.Tensor]]:
        assert spec.base is not None
        base = self._sources[spec.base[0]].tensor(spec.base[1])
        parts = spec.contributions
        return base, [self._sources[p.model].tensor(p.tensor).to(base.device) for p in parts]

    def _programs_on(self, device: torch.device) -> Programs:
        if device not in self._programs:
            numel = sum(math.prod(self._first.shape(name)) for name in self._first.names)
            ahead = numel * len(self._sources) * (_CANDIDATES if self._resident else 1)
            self._programs[device] = Programs(device, ahead)
        return self._programs[device]

    def _lead(self, spec: TensorMerge) -> tuple[ModelReference, str]:
        """The model and its tensor that give a merged tensor's shape: the base if it has part."""
        inputs = [(part.model, part.tensor) for part in spec.contributions]
        first = self._first.reference
        return spec.base or next((one for one in inputs if one[0] == first), inputs[0])

    def _shape(self, spec: TensorMerge) -> tuple[int, ...]:
        model, name = self._lead(spec)
        return self._sources[model].shape(name)

    def _kind(self, spec: TensorMerge, dtype: torch.dtype) -> torch.dtype:
        model, name = self._lead(spec)
        stored = self._sources[model].dtype(name)
        return dtype if stored.is_floating_point else stored

    def _resolve(self, recipe: Recipe) -> tuple[TensorMerge, ...]:
        strangers = [model for model in recipe.models_named if model not in self._sources]
        if strangers:
            held = ", ".join(str(reference) for reference in self._sources)
            raise RecipeError(
                Fault(recipe.place, f"{model} is not among the models held: {held}")
                for model in strangers
            )
        specs = resolve(recipe, self._layout)
        self._check_names(specs, recipe)
        return specs

    def _check_names(self, specs: Sequence[TensorMerge], recipe: Recipe) -> None:
        """Refuse tensors that a model lacks or has in another shape or kind, all at once."""
        faults = []
        for spec in specs:
            place = f"{recipe.place}: {spec.name}"
            shapes, kinds = {}, {}
            wanted = [spec.base] if spec.base else []
            for model, name in [*wanted, *((p.model, p.tensor) for p in spec.contributions)]:
                source = self._sources[model]
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
        if faults:
            raise RecipeError(faults)


def _layout(source: Source) -> Layout:
    layers = source.like.num_layers if source.layers is None else len(source.layers)
    return make_layout(source.names, layers)


def _reference(model: Model) -> ModelReference:
    if isinstance(model, Checkpoint | MergedModel):
        return model.reference
    try:
        return ModelReference.parse(model)
    except ValueError as problem:
        raise CheckpointError([Fault(repr(model), str(problem))]) from problem


def _opened(model: Model) -> Checkpoint | MergedModel:
    return model if isinstance(model, Checkpoint | MergedModel) else Checkpoint.open(model)
