"""Recipes in several stages, merged into a live model again and again without intermediate models.

The stored models are held once. A stage's result is never whole in memory: the stage after it asks
for one tensor at a time, and that one is merged then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import Fault, RecipeError
from evomerge.merging.engine import MergeEngine, Model
from evomerge.merging.placing import Device
from evomerge.merging.residency import Wish
from evomerge.merging.sources import Source
from evomerge.recipe import Recipe
from evomerge.references import ModelReference


class StagedEngine:
    """Merges recipes of one stage or several, of the stored models that it holds.

    Args:
        models: the stored models that recipes may name; the merged models have configuration and
            tokenizer of the first.
        device, residency: as for :class:`MergeEngine`.

    Raises:
        InputError: the models do not fit into memory.
        CheckpointError: a model cannot be read, or holds NaN or infinity.
    """

    def __init__(
        self, models: Sequence[Model], *, device: Device = "cpu", residency: Wish = "auto"
    ) -> None:
        self._held = MergeEngine(None, models, device=device, residency=residency)

    @property
    def held(self) -> MergeEngine:
        """The engine of the stored models."""
        return self._held

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
        if len(recipes) == 1:
            return self._held
        results: dict[ModelReference, Source] = {}
        for recipe in recipes[:-1]:
            if recipe.name is None:
                raise RecipeError(
                    [Fault(recipe.place, "only the last stage may be without a name")]
                )
            reference = ModelReference(recipe.name)
            engine = self._held.sharing(recipe.models_named, results)
            results[reference] = StageResult(reference, engine, recipe)
        return self._held.sharing(recipes[-1].models_named, results)


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
        self._outline: Mapping[str, torch.Tensor] = engine.outline(recipe)
        self._merged: Callable[[str], torch.Tensor] = engine.reader(recipe)
        # The tensor that was asked for last: a recipe may use it as base and as model.
        self._last: tuple[str, torch.Tensor] | None = None

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
        if self._last is None or self._last[0] != name:
            self._last = (name, self._merged(name))
        return self._last[1]
