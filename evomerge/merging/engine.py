"""The engine: models held once, any number of recipes merged from them.

A live model and a written one get their tensors from the same place, :meth:`MergeEngine.tensors`,
so that what was scored and what is exported are the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from copy import copy

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import TrialError
from evomerge.merging.dtypes import dtype_of
from evomerge.merging.holding import Model, hold, open_models
from evomerge.merging.inputs import Inputs
from evomerge.merging.layout import layout_of, stacked
from evomerge.merging.live import LiveTensors
from evomerge.merging.machine import reuse_freed_memory
from evomerge.merging.methods import merge_bounded, prepare
from evomerge.merging.once import Once, Ready, made_ahead
from evomerge.merging.placing import Device
from evomerge.merging.planning import Presentation, spare_models
from evomerge.merging.programs import Programs
from evomerge.merging.residency import ResidencyPlan, Wish
from evomerge.merging.sources import Source
from evomerge.merging.stored import read_ahead
from evomerge.merging.taskvectors import Memory
from evomerge.merging.trimming import measure
from evomerge.merging.vocabularies import Target
from evomerge.merging.whole import Whole
from evomerge.recipe import Layout, Recipe, TensorMerge, resolve
from evomerge.references import ModelReference

_CANDIDATES = 20  # that an engine of resident models is expected to merge at least
_AHEAD = 1 << 28  # bytes of inputs whose merges may be prepared ahead, where they are read once
_ROOM = 64 << 20  # bytes that may be kept about models beyond their own size


class MergeEngine:
    """Merges recipes of the models that it holds.

    They are held in their own types. What no candidate changes is found out once and kept, up to
    the models' own size: for DARE 98 KB per large tensor and model, for TIES about as much (the
    whole tensor's magnitudes are counted), for DELLA two bytes per element and model (ranks).
    Beside them a merge needs, for one tensor at a time, a byte per element where norms are restored
    tensor by tensor, and the result where it is not made in place. glibc is told, for the whole
    process, to keep up to 64 MB of what is freed (``machine.reuse_freed_memory``), unless the
    environment says otherwise.

    Args:
        base_model: the model that task vectors are taken from and added to; None for methods that
            need none.
        models: the fine-tuned models; those that a recipe may name.
        device: where the arithmetic is done; for each tensor by its name, where a live model lies
            over several devices (``devices_of``).
        resident: hold all tensors in memory (for many recipes); else read them as they are needed
            (for one).
        residency: where they are held then: ``device``, ``host`` or ``auto`` (``plan_residency``).
        vocabulary_of: a recipe whose vocabulary the merged models have (``tokenizer_source``); all
            others must ask for the same one. None is for recipes that do not say.

    Raises:
        InputError: the models do not fit into memory.
        CheckpointError: a model cannot be read, or holds NaN or infinity (with ``resident``; else
            when the tensor's turn comes), or models number their tokens otherwise.
        RecipeError: ``vocabulary_of`` names models that are not held, or asks for tokens that
            cannot be had.
    """

    def __init__(
        self,
        base_model: Model | None,
        models: Sequence[Model],
        *,
        device: Device = "cpu",
        resident: bool = True,
        residency: Wish = "auto",
        vocabulary_of: Recipe | None = None,
    ) -> None:
        reuse_freed_memory()
        opened = open_models([*([base_model] if base_model is not None else []), *models])
        held, self._plan = hold(
            opened, device, residency if resident else None, spare_models(vocabulary_of)
        )
        self._presentation = Presentation(held, vocabulary_of, resident=resident)
        self._resident = resident
        self._programs: dict[torch.device, Programs] = {}
        self._begin(remember=resident)

    def sharing(
        self,
        recipe: Recipe,
        results: Mapping[ModelReference, Source],
        target: Target | None = None,
    ) -> MergeEngine:
        """An engine of models that this one holds, which stay where they are, and of others.

        It remembers nothing of merges that the others have part in: they may change.

        Args:
            recipe: names which, in the order that a new engine would have them in, and says the
                vocabulary.
            results: the others, such as the results of a recipe's earlier stages.
            target: the recipe's vocabulary, if it is known already.

        Raises:
            RecipeError: a model is among neither.
        """
        self._presentation.check_held(recipe, results)
        there = {**self._presentation.plain, **results}
        sources = {model: there[model] for model in recipe.models_named}
        keep = self._memory is not None and not any(model in results for model in sources)
        other = copy(self)
        other._presentation = Presentation(sources, recipe, resident=keep, target=target)
        other._begin(remember=keep)
        return other

    def _begin(self, *, remember: bool) -> None:
        """Take the models as they are presented; see what follows from them."""
        self._sources = self._presentation.sources
        self._inputs = Inputs(self._sources)
        self._own = {model: model for model in self._sources}
        held = sum(source.nbytes for source in self._sources.values())
        self._memory = Memory(held + _ROOM) if remember else None
        # The base, where there is one: integer tensors, and what is no tensor, come from it.
        self._first = next(iter(self._sources.values()))
        layers = None if self._first.layers is None else len(self._first.layers)
        self._layout = layout_of(self._first.like, self._first.names, layers)

    def fits(self, recipe: Recipe) -> bool:
        """Whether the models are presented in the vocabulary that a recipe of them asks for."""
        return self._presentation.fits(recipe)

    def reader(self, recipe: Recipe) -> Callable[[str], torch.Tensor]:
        """A function that merges one tensor of a recipe, by its name: :meth:`tensors` bit for bit.

        Raises:
            RecipeError: as :meth:`tensors`; the function raises TrialError as that does.
        """
        dtype = self.dtype(recipe)
        specs = {spec.name: spec for spec in self._resolve(recipe)}
        whole = self._whole(tuple(specs.values()))
        return lambda name: self._merged(specs[name], dtype, whole=whole)

    def merges(self, recipe: Recipe) -> tuple[TensorMerge, ...]:
        """How each of a recipe's tensors is made.

        Raises:
            RecipeError: as :meth:`tensors`.
        """
        return self._resolve(recipe)

    def inputs(self, spec: TensorMerge) -> tuple[torch.Tensor | None, Sequence[torch.Tensor]]:
        """What a tensor is made of: the base's, and those of its contributions, in their order."""
        return self._inputs.tensors(spec)

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
    def target(self) -> Target:
        """The merged models' vocabulary, and what it takes to present the models in it."""
        return self._presentation.target

    def load_model(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> torch.nn.Module:
        """A live model to merge into: ``like``, as tall as the merged models' vocabulary.

        Args:
            dtype: of its parameters; None is the checkpoint's.
            device: where they lie.

        Raises:
            CheckpointError: transformers cannot build it.
        """
        live = self.like.load_model(dtype=dtype, device=device)
        return self.target.vocabulary.fitted(live, self.like)

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
        return dtype_of(recipe) or self._first.torch_dtype

    def layers(self, recipe: Recipe) -> tuple[int, ...] | None:
        """For each layer of the merged model the one of ``like`` that it is made like.

        None where they are the same, as in every recipe without slices that move layers.
        """
        before = self._first.layers or range(self._layout.num_layers)
        after = stacked(recipe, before)
        return None if after == tuple(range(self.like.num_layers)) else after

    def outline(self, recipe: Recipe) -> dict[str, torch.Tensor]:
        """What :meth:`tensors` would give, as tensors without values (on the meta device).

        Reads nothing; refuses what :meth:`tensors` would refuse before it merges.
        """
        dtype = self.dtype(recipe)
        outline = {}
        for spec in self._resolve(recipe):
            stored = self._inputs.kind(spec)
            kind = dtype if stored.is_floating_point else stored
            shape = self._inputs.shape(spec)
            outline[spec.name] = torch.empty(shape, dtype=kind, device="meta")
        return outline

    def differing(self, before: Recipe, after: Recipe) -> set[str]:
        """The tensors that two recipes make differently, or may.

        Raises:
            RecipeError: as :meth:`tensors`.
        """
        pairs = list(zip(self._resolve(before), self._resolve(after), strict=True))
        apart = {one.name for one, other in pairs if one != other}
        # Where a method looks at the whole model, any tensor may hang on any other's numbers.
        whole = any(recipe.method.trims_whole(recipe.variant) for recipe in (before, after))
        return {one.name for one, _ in pairs} if apart and whole else apart

    def tensors(self, recipe: Recipe) -> Generator[tuple[str, torch.Tensor], None, None]:
        """The merged model, tensor by tensor, each cast once to the recipe's type.

        Tensors that are no floating numbers are the base model's.

        Raises:
            RecipeError: the recipe names a model that is not held, or does not fit the models.
            TrialError: a merged tensor holds NaN or infinity.
        """
        dtype, specs = self.dtype(recipe), self._resolve(recipe)
        whole = self._whole(specs)
        with closing(self._prepared(specs)) as prepared:
            for spec, ready in prepared:
                yield spec.name, self._merged(spec, dtype, whole=whole, ready=ready)

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
        live.check({spec.name: self._inputs.shape(spec) for spec in specs}, dtype, recipe.place)
        whole = self._whole(specs)
        with closing(self._prepared(specs)) as prepared:
            for spec, ready in prepared:
                place = live.place(spec.name)
                live.write(spec.name, self._merged(spec, dtype, place, whole, ready))

    def _prepared(
        self, specs: Sequence[TensorMerge]
    ) -> Generator[tuple[TensorMerge, Ready | None], None, None]:
        """Merges, in turn; of models that are not resident, with what was read and found ahead."""
        with read_ahead(self._sources, specs):
            if self._resident:
                for spec in specs:
                    yield spec, None
            else:
                threads = max(torch.get_num_threads(), 1)
                yield from made_ahead(specs, self._ready, self._inputs.size, _AHEAD, threads)

    def _ready(self, spec: TensorMerge) -> Ready | None:
        if not self._inputs.kind(spec).is_floating_point:
            return None
        base, inputs = self._inputs.tensors(spec)
        memory, device = Once(), (inputs[0] if base is None else base).device
        if device.type == "cpu":
            prepare(spec, base, inputs, memory, self._programs_on(device))
        return Ready(base, inputs, memory)

    def _merged(
        self,
        spec: TensorMerge,
        dtype: torch.dtype,
        place: torch.Tensor | None = None,
        whole: Whole | None = None,
        ready: Ready | None = None,
    ) -> torch.Tensor:
        """One merged tensor; in ``place`` if that is given, can be written to and is near."""
        if not self._inputs.kind(spec).is_floating_point:
            return self._inputs.only(spec).clone()
        base, inputs = self._inputs.tensors(spec) if ready is None else (ready.base, ready.inputs)
        device = (inputs[0] if base is None else base).device
        if place is not None and not (place.is_contiguous() and place.device == device):
            place = None
        merged, certain = merge_bounded(
            spec,
            base,
            inputs,
            dtype=dtype,
            out=place,
            memory=self._memory if ready is None else ready.memory,
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
        floating = [spec for spec in specs if self._inputs.kind(spec).is_floating_point]
        return measure(floating, self._inputs.with_base)

    def _programs_on(self, device: torch.device) -> Programs:
        if device not in self._programs:
            numel = sum(math.prod(self._first.shape(name)) for name in self._first.names)
            ahead = numel * len(self._sources) * (_CANDIDATES if self._resident else 1)
            self._programs[device] = Programs(device, ahead)
        return self._programs[device]

    def _resolve(self, recipe: Recipe) -> tuple[TensorMerge, ...]:
        self._presentation.check(recipe)
        # The same objects in every recipe: they are looked up several times for every tensor.
        own = recipe.renamed(lambda model: self._own.get(model, model))
        specs = resolve(own, self._layout)
        self._inputs.check(specs, recipe)
        return specs
