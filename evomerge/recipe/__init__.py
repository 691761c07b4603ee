"""The explicit merge: mergekit's YAML read, written, resolved to coefficients per tensor."""

from __future__ import annotations

from evomerge.recipe.layout import Contribution, Layout, TensorMerge
from evomerge.recipe.ledger import RecipeWarning
from evomerge.recipe.loading import load_recipe, load_recipes, read_recipes, write_recipes
from evomerge.recipe.methods import METHODS, MethodSpec
from evomerge.recipe.model import Module, Recipe, Slice, Source
from evomerge.recipe.resolving import output_layers, resolve
from evomerge.recipe.settings import Case, Parameters
from evomerge.recipe.tokenizer import TokenEmbedding, Tokenizer

__all__ = [
    "METHODS",
    "Case",
    "Contribution",
    "Layout",
    "MethodSpec",
    "Module",
    "Parameters",
    "Recipe",
    "RecipeWarning",
    "Slice",
    "Source",
    "TensorMerge",
    "TokenEmbedding",
    "Tokenizer",
    "load_recipe",
    "load_recipes",
    "output_layers",
    "read_recipes",
    "resolve",
    "write_recipes",
]
