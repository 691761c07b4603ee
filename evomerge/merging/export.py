"""Recipes → a model on disk: one stage or several, streamed, with its card and its recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.checkpoints import Checkpoint, Fingerprints, compare, write_model
from evomerge.errors import CheckpointError, EvomergeWarning, Fault, RecipeError
from evomerge.merging.card import model_card
from evomerge.merging.dtypes import DTYPES
from evomerge.merging.engine import MergeEngine
from evomerge.merging.sources import MergedModel
from evomerge.merging.templates import template_problem
from evomerge.recipe import Recipe, write_recipes
from evomerge.references import ModelReference

Text = str | Callable[[], str]

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
    fingerprints: Fingerprints | None = None,
) -> MergeSummary:
    """Merge and write the model; the results of earlier stages stay in memory.

    Args:
        recipes: the stages; each may name the ones before it. The last one is written.
        out: the model's folder; must not exist, or be empty.
        trust_remote_code: whether models may bring their own code.
        max_shard_bytes: size of a weight file at most.
        device: where the arithmetic is done.
        fingerprints: sums of the models' files that were begun before; what is missing is begun.

    Raises:
        RecipeError: a recipe does not fit its models, or asks for what cannot be done.
        CheckpointError: a model cannot be read, models do not fit, or ``out`` cannot be written.
        TrialError: a merged tensor holds NaN or infinity.
    """
    _refuse_taken(Path(out))
    if fingerprints is None:
        fingerprints = Fingerprints()
    with fingerprints:
        return _write_merge(
            recipes,
            out,
            fingerprints,
            trust_remote_code=trust_remote_code,
            max_shard_bytes=max_shard_bytes,
            device=device,
        )


def _write_merge(
    recipes: Sequence[Recipe],
    out: Path | str,
    fingerprints: Fingerprints,
    *,
    trust_remote_code: bool,
    max_shard_bytes: int,
    device: torch.device | str,
) -> MergeSummary:
    opened: dict[ModelReference, Checkpoint] = {}
    engine = staged_engine(recipes, opened, trust_remote_code=trust_remote_code, device=device)
    for checkpoint in opened.values():
        fingerprints.begin(checkpoint.weight_files)
    last = recipes[-1]
    outline = engine.outline(last)
    # Closed at once when the writing fails, and with it what reads ahead.
    with closing(engine.tensors(last)) as tensors:
        written = write_model(
            out,
            tensors,
            like=engine.like,
            torch_dtype=engine.dtype(last),
            layers=engine.layers(last),
            vocabulary=engine.target.vocabulary,
            files=_files(recipes, opened, fingerprints),
            max_shard_bytes=max_shard_bytes,
            total_bytes=sum(tensor.numel() * tensor.element_size() for tensor in outline.values()),
        )
    return MergeSummary(
        folder=Path(out),
        tensors=len(outline),
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

    Warns of what is left out of the vocabularies, added or remapped, before anything is merged.

    Args:
        recipes: the stages, in order.
        opened: the stored models, by reference; filled here.
        trust_remote_code: whether models may bring their own code.
        device: where the arithmetic is done.
        resident: see :class:`MergeEngine`.

    Raises:
        RecipeError, CheckpointError: whatever can be refused is, before the first stage is merged.
        TrialError: a tensor of an earlier stage holds NaN or infinity.
    """
    _check_recipes(recipes)
    _open_all(recipes, opened, trust_remote_code)
    _check_fit(recipes, opened)
    # Once without values, so that what is wrong with the last stage does not cost the first.
    _engine_of_last(recipes, opened, _outlined)
    return _engine_of_last(
        recipes,
        opened,
        lambda engine, recipe: dict(engine.tensors(recipe)),
        device=device,
        resident=resident,
    )


def _outlined(engine: MergeEngine, recipe: Recipe) -> Mapping[str, torch.Tensor]:
    for note in engine.target.notes:
        warnings.warn(f"{recipe.place}: {note}", EvomergeWarning, stacklevel=5)
    return engine.outline(recipe)


def _engine_of_last(
    recipes: Sequence[Recipe],
    opened: Mapping[ModelReference, Checkpoint],
    tensors: Callable[[MergeEngine, Recipe], Mapping[str, torch.Tensor]],
    *,
    device: torch.device | str = "cpu",
    resident: bool = False,
) -> MergeEngine:
    merged: dict[ModelReference, MergedModel] = {}
    for recipe in recipes[:-1]:
        engine = _engine(recipe, opened, merged, device, resident=False)
        reference = ModelReference(str(recipe.name))
        merged[reference] = MergedModel(
            reference,
            engine.like,
            tensors(engine, recipe),
            engine.layers(recipe),
            engine.target.vocabulary,
        )
    engine = _engine(recipes[-1], opened, merged, device, resident)
    if tensors is _outlined:
        tensors(engine, recipes[-1])
    return engine


def _engine(
    recipe: Recipe,
    opened: Mapping[ModelReference, Checkpoint],
    merged: Mapping[ModelReference, MergedModel],
    device: torch.device | str,
    resident: bool,
) -> MergeEngine:
    models = [merged.get(one) or opened[one] for one in recipe.models_named]
    return MergeEngine(None, models, device=device, resident=resident, vocabulary_of=recipe)


def _open_all(
    recipes: Sequence[Recipe],
    opened: dict[ModelReference, Checkpoint],
    trust_remote_code: bool,
) -> None:
    """Open every stored model; those that cannot be are refused together."""
    stages = {ModelReference(str(recipe.name)) for recipe in recipes[:-1]}
    faults: list[Fault] = []
    for reference in dict.fromkeys(model for recipe in recipes for model in recipe.models_named):
        if reference not in stages and reference not in opened:
            try:
                opened[reference] = Checkpoint.open(reference, trust_remote_code=trust_remote_code)
            except CheckpointError as problem:
                faults += problem.faults
    if faults:
        raise CheckpointError(faults)
    lead = opened.get(_lead(recipes))
    if lead is not None:
        opened.update((reference, one.aligned(lead)) for reference, one in [*opened.items()])


def _lead(recipes: Sequence[Recipe]) -> ModelReference:
    """The stored model that the last stage's result is like; all tensors go by its names.

    As in a search, whose engine holds the models of all stages: masks depend on the names.
    """
    made = {ModelReference(str(recipe.name)): recipe for recipe in recipes[:-1]}
    model = recipes[-1].models_named[0]
    while model in made:
        model = made.pop(model).models_named[0]
    return model


def _check_fit(recipes: Sequence[Recipe], opened: Mapping[ModelReference, Checkpoint]) -> None:
    """Refuse models of one recipe that do not fit each other; a stage is like its first model.

    What rows stand for is not looked at here: a stage may have another vocabulary.
    """
    likes = dict(opened)
    faults: list[Fault] = []
    for recipe in recipes:
        models = list(dict.fromkeys(likes[m] for m in recipe.models_named if m in likes))
        faults += compare(models, vocabularies=False) if len(models) > 1 else []
        whole = all(s.layers is None for block in recipe.blocks for s in block.sources)
        if whole and models:
            likes.setdefault(ModelReference(str(recipe.name)), models[0])
    if faults:
        raise CheckpointError(dict.fromkeys(faults))


def _check_recipes(recipes: Sequence[Recipe]) -> None:
    if not recipes:
        raise RecipeError([Fault("recipe", "none given; at least one is needed")])
    faults = [Fault(one.place, problem) for one in recipes for problem in _unsupported(one)]
    names: set[str] = set()
    for number, recipe in enumerate(recipes):
        for model in recipe.models_named:
            if model.path in names and model != ModelReference(model.path):
                problem = f"{model} is the result of a stage, which has no revision and no adapter"
                faults.append(Fault(recipe.place, problem))
        if recipe.name is None and number < len(recipes) - 1:
            faults.append(Fault(recipe.place, "only the last recipe may be without a name"))
        names.add(str(recipe.name))
    if faults:
        raise RecipeError(faults)


def _unsupported(recipe: Recipe) -> list[str]:
    """What a recipe may say but this version does not do."""
    faults = []
    template = template_problem(recipe)
    if template is not None:
        faults.append(f"chat_template: {template}")
    name = recipe.out_dtype or recipe.dtype
    if name is not None and name not in DTYPES:
        faults.append(f"dtype: {name!r} is not supported; allowed: {', '.join(DTYPES)}")
    return faults


def _files(
    recipes: Sequence[Recipe],
    opened: Mapping[ModelReference, Checkpoint],
    fingerprints: Fingerprints,
) -> dict[str, Text]:
    text = write_recipes(recipes)
    return {
        RECIPE_FILE: text,
        "README.md": lambda: model_card(text, recipes, opened, fingerprints),
    }


def _refuse_taken(out: Path) -> None:
    """Before any work; ``write_model`` looks again before it renames."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(
            [Fault(str(out), "exists and is not an empty folder; not overwritten")]
        )
