"""Search spaces: YAML read and checked, genes, and the recipe that a genome stands for."""

from __future__ import annotations

from evomerge.space.decoding import method_keys, recipe_types
from evomerge.space.encoding import equal_weights
from evomerge.space.genes import Gene
from evomerge.space.loading import SpaceWarning, load_space
from evomerge.space.model import SearchSpace
from evomerge.space.resources import ResourceSpec
from evomerge.space.settings import Common, PerModel, Range
from evomerge.space.specs import (
    GenomeSpec,
    HoldoutSpec,
    LayerSpec,
    SearchSettings,
    TaskSpec,
)
from evomerge.space.stage import Stage

__all__ = [
    "Common",
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
    "Stage",
    "TaskSpec",
    "equal_weights",
    "load_space",
    "method_keys",
    "recipe_types",
]
