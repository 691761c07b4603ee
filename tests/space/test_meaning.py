"""What a space means for its study."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evomerge.space import SearchSpace, load_space

from .conftest import Load, Write

REST = """holdout: {items: 10}
dtype: float16
"""


def test_a_digest_is_stable() -> None:
    space = SearchSpace.model_validate(
        {
            "base_model": "owner/base",
            "models": ["owner/math", "owner/code@v1"],
            "merge_method": "ties",
            "genome": {"weight": [-1, 1], "density": {"math": 0.5, "default": [0.1, 1]}},
            "tasks": [{"task": "arc_easy", "items": 10}],
        }
    )
    # A study that is to be resumed by a later version depends on this very value.
    assert space.digest() == "9845808e1adae15d646c41c58ca485a7ac0df4cec1e63dfa4d530c5482b84237"


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("[0.1, 1.0]", "[0.1, 0.9]", "genome.density is [0.1, 0.9], was [0.1, 1.0]"),
        ("[0.1, 1.0]", "{code: 1, default: [0.1, 1.0]}", "genome.density is {"),
        ("density:", "weight: [0, 2]\n  density:", "genome.weight is [0.0, 2.0], was not given"),
        ("density:", "lambda: [0, 2]\n  density:", "genome.lambda is [0.0, 2.0], was not given"),
        ("models/chat", "owner/chat", 'models[2] is "owner/chat", was "models/chat"'),
        ("models/base", "owner/base", 'base_model is "owner/base", was "models/base"'),
        (", models/chat", "", 'models is ["models/math", "models/code"], was ['),
        ("dare_ties", "dare_linear", 'merge_method is "dare_linear", was "dare_ties"'),
        ("arc_easy", "{task: arc_easy, items: 5}", "tasks[0].items is 5, was not given"),
        ("arc_easy", "arc_hard", 'tasks[0].task is "arc_hard", was "arc_easy"'),
        ("{items: 10}", "{items: 11}", "holdout.items is 11, was 10"),
        ("float16", "bfloat16", 'dtype is "bfloat16", was "float16"'),
        ("dtype:", "search: {seed: 1}\ndtype:", 'search is {"seed": 1}, was not given'),
        ("dtype:", "mask_seed: 2\ndtype:", "mask_seed is 2, was not given"),
        ("dtype:", "system_instruction: x\ndtype:", 'system_instruction is "x", was not given'),
    ],
)
def test_what_changes_the_meaning(load: Load, small: str, old: str, new: str, change: str) -> None:
    before = load(small + REST)
    after = load((small + REST).replace(old, new))
    assert before.digest() != after.digest()
    (found,) = after.describe_changes(before)
    assert found.startswith(change)


@pytest.mark.parametrize(
    "addition",
    [
        "resources: {workers: 2}",
        "search: {sampler: nsga2, population: 8, mutation_prob: 0.2, seed: 0}",
        "search: {rungs: auto}",
        "search: {rungs: [0.25, 0.5], patience: 40}",
        "name: other",
        "trust_remote_code: true",
        "confirm_unsafe: true",
        "mask_seed: 0",
        "apply_chat_template: false",
    ],
)
def test_what_does_not(load: Load, small: str, addition: str) -> None:
    before, after = load(small), load(small + addition + "\n")
    assert before.digest() == after.digest()
    assert after.describe_changes(before) == []


def test_a_checkout_may_move(write: Write, small: str, folder: Path) -> None:
    before = load_space(write(small))
    shutil.move(folder / "models", folder / "there" / "models")
    shutil.move(folder / "space.yaml", folder / "there" / "space.yaml")
    after = load_space(folder / "there" / "space.yaml")
    assert after != before
    assert after.digest() == before.digest()
