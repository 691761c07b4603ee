"""Recipes from files: one document, or several that use one another's results by name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from evomerge.documents import Document, read_documents, read_text
from evomerge.errors import Fault, RecipeError
from evomerge.recipe.ledger import Ledger, RecipeWarning
from evomerge.recipe.model import Recipe
from evomerge.recipe.reading import read_into
from evomerge.recipe.tokenizer import Rename
from evomerge.references import ModelReference


def load_recipe(path: str | Path) -> Recipe:
    """Read a file that holds exactly one recipe.

    Raises:
        RecipeError: the file cannot be read, holds several recipes, or a wrong one.
    """
    recipes = load_recipes(path)
    if len(recipes) != 1:
        raise RecipeError([Fault(str(path), f"holds {len(recipes)} recipes; 1 is expected")])
    return recipes[0]


def load_recipes(path: str | Path) -> tuple[Recipe, ...]:
    """Read a file of one or more recipes, each after those whose results it uses.

    A recipe's ``name`` stands for its result wherever another recipe names a model; a model's path
    that equals a name is left as it is. Other relative folders are located against the current
    directory, as mergekit does, else against the file's own folder. The last recipe is the final
    one: the one without a name, or else the last that no other depends on.

    Raises:
        RecipeError: the file cannot be read, recipes depend on one another in a circle, two have
            the same name or none, or a recipe is wrong: everything at once.
    """
    path = Path(path)

    def locate(reference: ModelReference) -> ModelReference:
        return reference.located(Path.cwd()).located(path.parent)

    return _read(read_text(path, RecipeError), str(path), locate)


def read_recipes(text: str, source: str = "recipe") -> tuple[Recipe, ...]:
    """Read the YAML of one or more recipes, their models' paths as they stand.

    Args:
        text: one document or several.
        source: a name to use in messages.

    Raises:
        RecipeError: as ``load_recipes``.
    """
    return _read(text, source, lambda reference: reference)


def write_recipes(recipes: Sequence[Recipe]) -> str:
    """The YAML of one or more recipes, which ``read_recipes`` and mergekit read."""
    return "---\n".join(recipe.to_yaml().rstrip() + "\n" for recipe in recipes)


def _read(text: str, source: str, locate: Rename) -> tuple[Recipe, ...]:
    documents = read_documents(text, source, RecipeError)
    if not documents:
        raise RecipeError([Fault(source, "holds no recipe")])
    names = {name for name in map(_name, documents) if name is not None}
    ledgers = [Ledger(document) for document in documents]
    _check_names(documents, ledgers)

    def placed(reference: ModelReference) -> ModelReference:
        found = locate(reference)
        if reference.path not in names:
            return found
        return ModelReference(
            reference.path, reference.revision, found.lora, reference.lora_revision
        )

    recipes = [
        read_into(ledger, document.data, placed)
        for ledger, document in zip(ledgers, documents, strict=True)
    ]
    faults = [fault for ledger in ledgers for fault in ledger.faults]
    if faults:
        raise RecipeError(faults)
    ordered = _in_order(recipes)
    for ledger in ledgers:
        ledger.finish()
    _warn_of_unused(ordered)
    return ordered


def _name(document: Document) -> str | None:
    name = document.data.get("name") if isinstance(document.data, dict) else None
    return name if isinstance(name, str) else None


def _check_names(documents: list[Document], ledgers: list[Ledger]) -> None:
    seen: dict[str | None, Document] = {}
    for document, ledger in zip(documents, ledgers, strict=True):
        name = _name(document)
        if name in seen:
            what = "no name" if name is None else f"the name {name!r}"
            ledger.fault(
                ("name",), f"two recipes have {what}; the other stands at {seen[name].place(())}"
            )
        seen[name] = document


def _needs(recipe: Recipe, stages: dict[str | None, Recipe]) -> list[Recipe]:
    return [stages[model.path] for model in recipe.models_named if model.path in stages]


def _in_order(recipes: list[Recipe]) -> tuple[Recipe, ...]:
    """Every recipe after those it needs; otherwise as in the file, the one without a name last."""
    stages = {recipe.name: recipe for recipe in recipes}
    ordered: list[Recipe] = []

    def visit(recipe: Recipe, trail: tuple[Recipe, ...]) -> None:
        if any(recipe is one for one in ordered):
            return
        start = next((i for i, one in enumerate(trail) if one is recipe), None)
        if start is not None:
            circle = " → ".join(str(one.name) for one in (*trail[start:], recipe))
            raise RecipeError([Fault(recipe.place, f"recipes need one another: {circle}")])
        for needed in _needs(recipe, stages):
            visit(needed, (*trail, recipe))
        ordered.append(recipe)

    for recipe in sorted(recipes, key=lambda one: one.name is None):
        visit(recipe, ())
    return tuple(ordered)


def _warn_of_unused(ordered: tuple[Recipe, ...]) -> None:
    used = {model.path for recipe in ordered for model in recipe.models_named}
    for recipe in ordered[:-1]:
        if recipe.name not in used:
            warnings.warn(
                f"{recipe.place}: no other recipe uses {recipe.name!r}; only the last, "
                f"{ordered[-1].name or 'without a name'}, is written",
                RecipeWarning,
                stacklevel=4,
            )
