"""The model card of a merged model: what it was made of, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import yaml

from evomerge.checkpoints import Checkpoint, Fingerprints
from evomerge.recipe import METHODS, Recipe
from evomerge.references import ModelReference

_PACKAGES = ("torch", "transformers", "safetensors")


def model_card(
    text: str,
    recipes: Sequence[Recipe],
    opened: Mapping[ModelReference, Checkpoint],
    fingerprints: Fingerprints,
) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        text: the recipes' YAML.
        recipes: the stages.
        opened: the stored models that they name.
        fingerprints: gives the sums of their files.
    """
    methods = list(dict.fromkeys(recipe.merge_method for recipe in recipes))
    papers = [f"- `{method}`: {METHODS[method].paper}" for method in methods]
    models = [
        f"- `{reference}`, SHA-256 of its weights `{fingerprints.of(checkpoint.weight_files)}`"
        for reference, checkpoint in opened.items()
    ]
    return "\n".join(
        [
            _front_matter(opened),
            "# A merged model",
            "",
            f"Made by evomerge {version('evomerge')} from the models below, without training "
            f"({', '.join(f'{package} {version(package)}' for package in _PACKAGES)}).",
            "",
            "## Models",
            "",
            *models,
            "",
            "## Methods",
            "",
            *papers,
            "",
            "## Recipe",
            "",
            "```yaml",
            text.rstrip(),
            "```",
            "",
            "`evomerge merge` makes the same tensors from it again, bit for bit on the same kind "
            "of device.",
            "",
        ]
    )


def _front_matter(opened: Mapping[ModelReference, Checkpoint]) -> str:
    # The hub refuses base models that are no hub names, such as local folders.
    named = [reference.path for reference in opened if not Path(reference.path).exists()]
    data: dict[str, object] = {"library_name": "transformers", "tags": ["merge", "evomerge"]}
    if named:
        data["base_model"] = named
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n"
