"""A single model or recipe, to be scored once: what ``evomerge evaluate`` needs of the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from evomerge.checkpoints import Checkpoint
from evomerge.errors import Fault, RecipeError
from evomerge.evaluation import ItemSet, Scorer
from evomerge.merging import DTYPES, staged_engine
from evomerge.recipe import Recipe
from evomerge.references import ModelReference


@dataclass(frozen=True)
class OpenedModel:
    """A model that was found, with what questions need of it; its weights are not read yet.

    Args:
        tokenizer: Hugging Face's.
        config: transformers' configuration.
        device: where the model will be.
        load: reads the weights, merging a recipe's; the model in evaluation mode.
    """

    tokenizer: Any
    config: Any
    device: str
    load: Callable[[], Any]

    @contextmanager
    def scorer(self, items: ItemSet) -> Iterator[Scorer]:
        """Its scorer for these items; the weights are read now, and let go of at the end."""
        yield Scorer(self.load(), self.tokenizer, items, device=self.device)


def open_model(
    source: ModelReference | Sequence[Recipe],
    dtype: str | None = None,
    device: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> OpenedModel:
    """A stored model, or the one that a recipe's stages make, to be merged in memory.

    Args:
        source: a model, or the stages of a recipe.
        dtype: a key of ``merging.DTYPES``; None is the checkpoint's or the recipe's type.
        device: ``cpu``, ``cuda``; None is the accelerator where there is one.
        trust_remote_code: whether models may bring their own code.

    Raises:
        InputError: a model or a recipe is wrong.
    """
    import torch

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = DTYPES[dtype] if dtype else None
    if isinstance(source, ModelReference):
        stored = Checkpoint.open(source, trust_remote_code=trust_remote_code)
        load = partial(stored.load_model, dtype=wanted, device=where)
        return OpenedModel(stored.tokenizer(), stored.model_config(), where, load)
    recipe = source[-1]
    engine = staged_engine(source, {}, trust_remote_code=trust_remote_code, device=where)
    if engine.layers(recipe) is not None:
        problem = "changes the layers; write the model with `evomerge merge`, then evaluate that"
        raise RecipeError([Fault(recipe.place, problem)])

    def merged() -> Any:
        model = engine.load_model(dtype=engine.dtype(recipe), device=where)
        engine.merge_into(model, recipe)
        return model.to(wanted) if wanted else model

    tokenizer = engine.target.vocabulary.tokenizer.load()
    return OpenedModel(tokenizer, engine.like.model_config(), where, merged)
