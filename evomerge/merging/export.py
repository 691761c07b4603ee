"""Recipes → a model on disk: one stage or several, streamed, with its card and its recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.checkpoints import Checkpoint, compare, write_model
from evomerge.errors import CheckpointError, Fault, RecipeError
from evomerge.merging.card import model_card
from evomerge.merging.engine import DTYPES, MergeEngine
from evomerge.merging.sources import MergedModel
from evomerge.recipe import Recipe, output_layers
from evomerge.references import ModelReference

RECIPE_FILE = "mergekit_config.yml"
"""The recipe beside the model, where mergekit puts it too."""


@dataclass(frozen=True)
class MergeSummary:
    """What was written.

    Args:
        folder: the model's.
        tensors: how many.
        parameters: how many elements they have.
        nbytes: their size.
        weight_files: the names of their files.
    """

    folder: Path
    tensors: int
    parameters: int
    nbytes: int
    weight_files: tuple[str, ...]


def write_merge(
    recipes: Sequence[Recipe],
    out: Path | str,
    *,
    trust_remote_code: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    device: torch.device | str = "cpu",
) -> MergeSummary:
    """Merge and write the model; the results of earlier stages stay in memory.

    Args:
        recipes: the stages; each may name the ones before it. The last one is written.
        out: the model's folder; must not exist, or be empty.
        trust_remote_code: whether models may bring their own code.
        max_shard_bytes: size of a weight file at most.
        device: where the arithmetic is done.

    Raises:
        RecipeError: a recipe does not fit its models, or asks for what cannot be done.
        CheckpointError: a model cannot be read, models do not fit, or ``out`` cannot be written.
        TrialError: a merged tensor holds NaN or infinity.
    """
    _refuse_taken(Path(out))
    opened: dict[ModelReference, Checkpoint] = {}
    engine = staged_engine(recipes, opened, trust_remote_code=trust_remote_code, device=device)
    last = recipes[-1]
    layers = output_layers(last, engine.layout.num_layers)
    counted = _Counted()
    written = write_model(
        out,
        counted.through(engine, last),
        like=_tokenizer_of(last, engine, opened),
        torch_dtype=engine.dtype(last),
        num_layers=layers if layers != engine.layout.num_layers else None,
        files=_files(recipes, opened),
        max_shard_bytes=max_shard_bytes,
    )
    return MergeSummary(
        folder=Path(out),
        tensors=counted.tensors,
        parameters=written.parameters,
        nbytes=written.nbytes,
        weight_files=written.weight_files,
    )


def staged_engine(
    recipes: Sequence[Recipe],
    opened: dict[ModelReference, Checkpoint],
    *,
    trust_remote_code: bool = False,
    device: torch.device | str = "cpu",
    resident: bool = False,
) -> MergeEngine:
    """The engine of the last stage, the stages before it merged in memory.

    Args:
        recipes: the stages, in order.
        opened: the stored models, by reference; filled here.
        trust_remote_code: whether models may bring their own code.
        device: where the arithmetic is done.
        resident: see :class:`MergeEngine`.
    """
    if not recipes:
        raise RecipeError([Fault("recipe", "none given; at least one is needed")])
    merged: dict[str, MergedModel] = {}
    engines = []
    for recipe in recipes:
        _check_supported(recipe)
        models = [
            merged.get(reference.path) or _open(reference, opened, trust_remote_code)
            for reference in recipe.models_named
        ]
        _check_fit([model for model in models if isinstance(model, Checkpoint)])
        engine = MergeEngine(None, models, device=device, resident=resident)
        engines.append(engine)
        if recipe.name is not None and recipe is not recipes[-1]:
            reference = ModelReference(recipe.name)
            tensors = dict(engine.tensors(recipe))
            merged[recipe.name] = MergedModel(reference, engine.like, tensors)
    return engines[-1]


class _Counted:
    """Counts tensors on their way to the disk."""

    def __init__(self) -> None:
        self.tensors = 0

    def through(self, engine: MergeEngine, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        """The recipe's tensors, counted."""
        for name, tensor in engine.tensors(recipe):
            self.tensors += 1
            yield name, tensor


def _open(
    reference: ModelReference,
    opened: dict[ModelReference, Checkpoint],
    trust_remote_code: bool,
) -> Checkpoint:
    if reference not in opened:
        opened[reference] = Checkpoint.open(reference, trust_remote_code=trust_remote_code)
    return opened[reference]


def _check_fit(checkpoints: Sequence[Checkpoint]) -> None:
    faults = compare(checkpoints) if len(checkpoints) > 1 else []
    if faults:
        raise CheckpointError(faults)


def _check_supported(recipe: Recipe) -> None:
    """Refuse what a recipe may say but this version does not do."""
    faults = []
    if recipe.tokenizer is not None:
        faults.append(
            "tokenizer: token by token settings are not supported; write tokenizer_source"
        )
    template = recipe.chat_template
    if template is not None and template != "auto" and "{" not in template:
        faults.append(f"chat_template: {template!r} is no template's text; names are not supported")
    name = recipe.out_dtype or recipe.dtype
    if name is not None and name not in DTYPES:
        faults.append(f"dtype: {name!r} is not supported; allowed: {', '.join(DTYPES)}")
    if faults:
        raise RecipeError(Fault(recipe.place, fault) for fault in faults)


def _tokenizer_of(
    recipe: Recipe, engine: MergeEngine, opened: Mapping[ModelReference, Checkpoint]
) -> Checkpoint:
    """The model whose configuration and tokenizer the written one gets.

    All vocabularies are equal (``compare``), so that ``union`` and ``base`` mean the same.
    """
    source = recipe.tokenizer_source
    if isinstance(source, ModelReference) and source in opened:
        return opened[source]
    return engine.like


def _files(
    recipes: Sequence[Recipe], opened: Mapping[ModelReference, Checkpoint]
) -> dict[str, str]:
    text = "---\n".join(recipe.to_yaml().rstrip() + "\n" for recipe in recipes)
    files = {RECIPE_FILE: text, "README.md": model_card(text, recipes, opened)}
    template = recipes[-1].chat_template
    if template is not None and template != "auto":
        files["chat_template.jinja"] = template
    return files


def _refuse_taken(out: Path) -> None:
    """Before any work; ``write_model`` looks again before it renames."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(
            [Fault(str(out), "exists and is not an empty folder; not overwritten")]
        )
