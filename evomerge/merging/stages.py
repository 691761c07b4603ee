"""Recipes in several stages, merged into a live model again and again without intermediate models.

The stored models are held once. A stage's result is never whole in memory: the stage after it asks
for one tensor at a time, and that one is merged then.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import Fault, RecipeError
from evomerge.merging.engine import MergeEngine, Model
from evomerge.merging.placing import Device
from evomerge.merging.planning import key_of
from evomerge.merging.residency import Wish
from evomerge.merging.sources import Source
from evomerge.merging.vocabularies import Target
from evomerge.recipe import Recipe
from evomerge.references import ModelReference


class StagedEngine:
    """Merges recipes of one stage or several, of the stored models that it holds.

    Args:
        models: the stored models that recipes may name; the merged models have configuration and
            tokenizer of the first.
        device, resident, residency: see :class:`MergeEngine`.
        vocabulary_of: the stages of a recipe whose vocabulary most of those to come have.

    Raises:
        CheckpointError: a model cannot be read, or holds NaN or infinity.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        device: Device = "cpu",
        resident: bool = True,
        residency: Wish = "auto",
        vocabulary_of: Sequence[Recipe] | None = None,
    ) -> None:
        one = vocabulary_of[0] if vocabulary_of and len(vocabulary_of) == 1 else None
        self._held = MergeEngine(
            None,
            models,
            device=device,
            resident=resident,
            residency=residency,
            vocabulary_of=one,
        )
        self._engines: dict[Hashable, MergeEngine] = {}
        self._targets: dict[Hashable, Target] = {}

    @property
    def held(self) -> MergeEngine:
        """The engine of the stored models."""
        return self._held

    def target_of(self, recipes: Sequence[Recipe] | None) -> Target:
        """The vocabulary that the last recipe asks for; its notes are those of all the stages.

        Raises:
            RecipeError, CheckpointError: a recipe does not fit the models, or its tokens do not.
        """
        if recipes is None:
            return self._held.target
        notes: list[str] = []
        for count in range(1, len(recipes) + 1):
            target = self.engine_of(recipes[:count]).target
            notes += target.notes
        return replace(target, notes=tuple(dict.fromkeys(notes)))

    def merge_into(self, model: torch.nn.Module, recipes: Sequence[Recipe]) -> None:
        """Write the last recipe's tensors into a live model, in place.

        Args:
            model: as for :meth:`MergeEngine.merge_into`.
            recipes: the stages in order; each may name the results of those before it.

        Raises:
            RecipeError: a recipe does not fit the models held, or the last one the live model;
                nothing is written then.
            TrialError: a merged tensor, of whatever stage, holds NaN or infinity; the live model is
                then half written, and whole again after the next merge.
        """
        self.engine_of(recipes).merge_into(model, recipes[-1])

    def engine_of(self, recipes: Sequence[Recipe]) -> MergeEngine:
        """The engine of the last recipe, for which the earlier ones are merged as it asks.

        Raises:
            RecipeError: a recipe does not fit the models held or the results of those before it.
        """
        if len(recipes) == 1 and self._held.fits(recipes[0]):
            return self._held
        results: dict[ModelReference, Source] = {}
        for number, recipe in enumerate(recipes[:-1]):
            if recipe.name is None:
                raise RecipeError(
                    [Fault(recipe.place, "only the last stage may be without a name")]
                )
            reference = ModelReference(recipe.name)
            engine = self._sharing(recipes[: number + 1], results)
            results[reference] = StageResult(reference, engine, recipe)
        return self._sharing(recipes, results)

    def _sharing(
        self, recipes: Sequence[Recipe], results: Mapping[ModelReference, Source]
    ) -> MergeEngine:
        """The engine of the last recipe; how tokens are matched is planned once per study.

        What a stage's tokens are depends on what it and the ones before it say of them and on their
        models, not on the numbers that are searched.
        """
        key = tuple((recipe.name, key_of(recipe)) for recipe in recipes)
        if key not in self._engines:
            engine = self._held.sharing(recipes[-1], results, self._targets.get(key))
            self._targets[key] = engine.target
            if any(model in results for model in recipes[-1].models_named):
                return engine
            self._engines[key] = engine
        return self._engines[key]


class StageResult:
    """The result of a stage, each tensor merged when it is asked for.

    Args:
        reference: the stage's name.
        engine: holds the models of its recipe.
        recipe: how it is merged.

    Raises:
        RecipeError: the recipe does not fit the engine's models.
    """

    def __init__(self, reference: ModelReference, engine: MergeEngine, recipe: Recipe) -> None:
        self.reference = reference
        self.like: Checkpoint = engine.like
        self.layers = engine.layers(recipe)
        self.vocabulary = engine.target.vocabulary
        self._outline: Mapping[str, torch.Tensor] = engine.outline(recipe)
        self._merged: Callable[[str], torch.Tensor] = engine.reader(recipe)
        # The tensor that a thread asked for last: a recipe may use it as base and as model.
        self._last = threading.local()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._outline)

    @property
    def torch_dtype(self) -> torch.dtype:
        counts: Counter[torch.dtype] = Counter()
        for tensor in self._outline.values():
            if tensor.is_floating_point():
                counts[tensor.dtype] += tensor.numel()
        return counts.most_common(1)[0][0] if counts else torch.float32

    @property
    def nbytes(self) -> int:
        return 0

    def __contains__(self, name: object) -> bool:
        return name in self._outline

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._outline[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._outline[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        if getattr(self._last, "name", None) != name:
            self._last.name = self._last.tensor = None  # before there are two
            self._last.tensor, self._last.name = self._merged(name), name
        found: torch.Tensor = self._last.tensor
        return found

    def held(self, name: str) -> torch.Tensor:
        return self.tensor(name)

    def origin(self, name: str) -> None:
        return None
