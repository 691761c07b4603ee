"""Search spaces: YAML read and checked, genes, and the recipe that a genome stands for."""

from __future__ import annotations

from evomerge.space.decoding import recipe_types
from evomerge.space.genes import Gene
from evomerge.space.loading import SpaceWarning, load_space
from evomerge.space.model import SearchSpace
from evomerge.space.settings import PerModel, Range
from evomerge.space.specs import (
    GenomeSpec,
    HoldoutSpec,
    LayerSpec,
    ResourceSpec,
    SearchSettings,
    TaskSpec,
)

__all__ = [
    "Gene",
    "GenomeSpec",
    "HoldoutSpec",
    "LayerSpec",
    "PerModel",
    "Range",
    "ResourceSpec",
    "SearchSettings",
    "SearchSpace",
    "SpaceWarning",
    "TaskSpec",
    "load_space",
    "recipe_types",
]
