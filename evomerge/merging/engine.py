"""The engine: models held once, any number of recipes merged from them.

A live model and a written one get their tensors from the same place, :meth:`MergeEngine.tensors`,
so that what was scored and what is exported are the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import Fault, RecipeError, TrialError
from evomerge.merging.layout import make_layout
from evomerge.merging.live import LiveTensors
from evomerge.merging.methods import merge
from evomerge.merging.sources import MergedModel, Source, Stored
from evomerge.recipe import Layout, Recipe, TensorMerge, resolve
from evomerge.references import ModelReference

Model = ModelReference | str | Checkpoint | MergedModel

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The types that a recipe can name."""


class MergeEngine:
    """Merges recipes of the models that it holds.

    Args:
        base_model: the model that task vectors are taken from and added to; None for methods that
            need none.
        models: the fine-tuned models; those that a recipe may name.
        device: where the models are held and the arithmetic is done.
        resident: hold all tensors in memory (for many recipes); else read them as they are needed
            (for one).

    Raises:
        CheckpointError: a model cannot be read, or holds NaN or infinity (with ``resident``; else
            when the tensor's turn comes).
    """

    def __init__(
        self,
        base_model: Model | None,
        models: Sequence[Model],
        *,
        device: torch.device | str = "cpu",
        resident: bool = True,
    ) -> None:
        self._device = torch.device(device)
        self._sources: dict[ModelReference, Source] = {}
        for model in [*([base_model] if base_model is not None else []), *models]:
            source = _source(model, self._device, resident)
            self._sources.setdefault(source.reference, source)
        first = next(iter(self._sources.values()))
        self._like = first.checkpoint if isinstance(first, Stored) else _like(first)
        self._layout = make_layout(first.names, self._like.num_layers)
        self._names = {model: frozenset(source.names) for model, source in self._sources.items()}
        self._live: tuple[torch.nn.Module, LiveTensors] | None = None

    @property
    def layout(self) -> Layout:
        """The layers of the models."""
        return self._layout

    @property
    def like(self) -> Checkpoint:
        """The stored model that merged ones have configuration and tokenizer of."""
        return self._like

    @property
    def nbytes(self) -> int:
        """Size of all the models' tensors in bytes."""
        return sum(
            tensor.numel() * tensor.element_size()
            for source in self._sources.values()
            for tensor in map(source.tensor, source.names)
        )

    def dtype(self, recipe: Recipe) -> torch.dtype:
        """The type of a recipe's floating tensors: ``out_dtype``, ``dtype``, else the model's."""
        name = recipe.out_dtype or recipe.dtype
        return DTYPES[name] if name else self._like.torch_dtype

    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged model, tensor by tensor, each cast once to the recipe's type.

        Tensors that are no floating numbers are the base model's.

        Raises:
            RecipeError: the recipe names a model that is not held, or does not fit the models.
            TrialError: a merged tensor holds NaN or infinity.
        """
        dtype = self.dtype(recipe)
        for spec in self._resolve(recipe):
            yield spec.name, self._merged(spec, dtype)

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
        if self._live is None or self._live[0] is not model:
            self._live = (model, LiveTensors(model))
        live = self._live[1]
        specs, dtype = self._resolve(recipe), self.dtype(recipe)
        live.check({spec.name: self._shape(spec) for spec in specs}, dtype, recipe.place)
        for spec in specs:
            live.write(spec.name, self._merged(spec, dtype))

    def _merged(self, spec: TensorMerge, dtype: torch.dtype) -> torch.Tensor:
        base = self._sources[spec.base[0]].tensor(spec.base[1]) if spec.base else None
        inputs = [self._sources[part.model].tensor(part.tensor) for part in spec.contributions]
        example = base if base is not None else inputs[0]
        if not example.is_floating_point():
            return example
        with torch.no_grad():
            merged = merge(spec, base, inputs).to(dtype)
        low, high = torch.aminmax(merged) if merged.numel() else (merged.sum(), merged.sum())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise TrialError(f"{spec.name}: the merged tensor holds NaN or infinity (as {dtype})")
        return merged

    def _shape(self, spec: TensorMerge) -> tuple[int, ...]:
        model, name = spec.base or (spec.contributions[0].model, spec.contributions[0].tensor)
        return self._sources[model].shape(name)

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
        """Refuse tensors that a model lacks or has in another shape, all at once."""
        faults = []
        for spec in specs:
            wanted = [spec.base] if spec.base else []
            wanted += [(part.model, part.tensor) for part in spec.contributions]
            shapes = {}
            for model, name in wanted:
                if name not in self._names[model]:
                    faults.append(Fault(f"{recipe.place}: {spec.name}", f"{model} has no {name}"))
                else:
                    shapes[str(model)] = self._sources[model].shape(name)
            if len(set(shapes.values())) > 1:
                listed = ", ".join(f"{model} {list(shape)}" for model, shape in shapes.items())
                faults.append(Fault(f"{recipe.place}: {spec.name}", f"shapes differ: {listed}"))
        if faults:
            raise RecipeError(faults)


def _source(model: Model, device: torch.device, resident: bool) -> Source:
    if isinstance(model, MergedModel):
        return model
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(model)
    return Stored(checkpoint, device, resident=resident)


def _like(source: Source) -> Checkpoint:
    if isinstance(source, MergedModel):
        return source.like
    raise TypeError(f"{type(source).__name__} is no model")
