"""What a caller may say, turned into what the rooms take, or refused in plain words."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from evomerge.errors import CheckpointError, EvomergeWarning, Fault, InputError, StudyError
from evomerge.references import ModelReference

if TYPE_CHECKING:
    from evomerge.checkpoints import Fingerprints
    from evomerge.recipe import Recipe
    from evomerge.space import SearchSpace


Section = TypeVar("Section", bound=BaseModel)


def read_space(
    space: SearchSpace | str | Path,
    include_path: Sequence[Path] = (),
    seed: int | None = None,
    resources: Mapping[str, float | str | None] | None = None,
    backend: str | None = None,
) -> SearchSpace:
    """A space, read if it is a file, with what the caller says instead of it."""
    from evomerge.space import load_space

    if isinstance(space, (str, Path)):
        space = load_space(space)
    changes: dict[str, Any] = {}
    faults: list[Fault] = []
    if include_path:
        folders = tuple(Path(folder).resolve() for folder in include_path)
        changes["include_path"] = (*space.include_path, *folders)
    searched = {"seed": seed, "backend": backend}
    searched = {name: value for name, value in searched.items() if value is not None}
    if searched:
        changes["search"] = _updated(space.search, searched, faults)
    given = {name: value for name, value in (resources or {}).items() if value is not None}
    if given:
        changes["resources"] = _updated(space.resources, given, faults)
    if faults:
        raise InputError(faults)
    return space.model_copy(update=changes)


def _updated(section: Section, values: Mapping[str, Any], faults: list[Fault]) -> Section:
    """A section of a space with other values, checked as the file's are."""
    try:
        return type(section).model_validate({**section.model_dump(), **values})
    except ValidationError as problem:
        for detail in problem.errors():
            name = str(detail["loc"][0]) if detail["loc"] else "argument"
            faults.append(Fault(f"--{name}", f"{detail['input']!r}: {detail['msg'].lower()}"))
        return section


def model_or_stages(model: str | Path | Recipe) -> ModelReference | Sequence[Recipe]:
    """A model's name, or the stages of a recipe."""
    if not isinstance(model, (str, Path)) or _is_file(Path(model)):
        return read_recipes(model)
    try:
        return ModelReference.parse(str(model))
    except ValueError as problem:
        raise CheckpointError([Fault(repr(str(model)), str(problem))]) from problem


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def check_backend(backend: str) -> None:
    """Refuse what runs no models."""
    if backend not in ("hf", "vllm"):
        raise InputError([Fault("backend", f"{backend!r} is refused; allowed: hf, vllm")])


def check_patience(space: SearchSpace, patience: int | None) -> None:
    """Refuse a patience where there is no one fitness to gain."""
    if patience is not None and space.several_goals:
        problem = f"{patience} has no effect under objective: pareto; leave it out"
        raise InputError([Fault("--patience", problem)])


def check_device(device: str | None) -> None:
    """Refuse a device that torch does not know or this machine does not have."""
    import torch

    try:
        if device is not None:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        allowed = "cpu, cuda, cuda:1, …" if torch.cuda.is_available() else "cpu"
        message = f"{device!r} cannot be used; allowed on this machine: {allowed}"
        raise InputError([Fault("device", message)]) from problem


def read_recipes(recipe: str | Path | Recipe | Sequence[Recipe]) -> Sequence[Recipe]:
    """The stages of a recipe, read if it is a file."""
    from evomerge.recipe import Recipe, load_recipes

    if isinstance(recipe, Recipe):
        return [recipe]
    return load_recipes(Path(recipe)) if isinstance(recipe, (str, Path)) else recipe


def tell_beyond_mergekit(recipes: Sequence[Recipe]) -> None:
    """Warn of what in recipes mergekit's own command would not do."""
    reasons = dict.fromkeys(reason for recipe in recipes for reason in recipe.beyond_mergekit())
    for reason in reasons:
        warnings.warn(
            f"mergekit would make another model of this recipe: it ignores {reason}",
            EvomergeWarning,
            stacklevel=3,
        )


def begun_fingerprints(recipes: Sequence[Recipe]) -> Fingerprints:
    """The sums of the files of a recipe's local models, begun as early as can be."""
    from evomerge.checkpoints import Fingerprints
    from evomerge.checkpoints.files import local_files

    fingerprints = Fingerprints()
    for model in dict.fromkeys(model for recipe in recipes for model in recipe.models_named):
        files = local_files(model.path, model.lora)
        if files is not None:
            fingerprints.begin(files)
    return fingerprints


def write_new(path: Path, text: str) -> None:
    """Write a file that must not exist yet."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as problem:
        raise StudyError([Fault(str(path), "exists; it is not overwritten")]) from problem
    except OSError as problem:
        raise StudyError([Fault(str(path), f"cannot be written: {problem.strerror}")]) from problem
