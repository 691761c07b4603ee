"""Whatever stands behind a key, a space is loaded or refused with its line."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.space import load_space

from .conftest import Write

Place = tuple[Any, ...]

VALUES: tuple[Any, ...] = (
    None, [], {}, "", 0, -1, float("nan"), "x", [None], {"a": None}, [[]], {"model": None}, True,
)  # fmt: skip

OWN: dict[str, Any] = {
    "name": "own",
    "base_model": "models/base",
    "models": ["models/math", {"model": {"path": "models/code", "revision": "v2"}}],
    "merge_method": "della",
    "genome": {
        "layers": {"groups": 2, "size": None, "smooth": True},
        "filters": ["self_attn"],
        "weight": {"math": [0.0, 1.0], "default": 0.5},
        "density": {"low": 0.1, "high": 1.0, "initial": 0.5},
        "lambda": [0.5, 2.0],
        "epsilon": 0.1,
        "normalize": True,
        "rescale": True,
    },
    "tasks": [
        {"task": "a", "metric": "acc", "weight": 1.0, "items": 5, "num_fewshot": 0,
         "holdout_task": "b", "order": "first", "split": "train"},
        "c",
        {"task": "d", "min": "base - 0.1"},
        {"task": "e", "weight": 0, "max": 0.5},
    ],
    "holdout": {"items": 3},
    "search": {"sampler": "cmaes", "seed": 1, "sigma": 0.3, "population": 4, "random_init": True,
               "rungs": [0.25, 0.5], "patience": 9},
    "resources": {"gpus": 0.5, "cpus": 1, "workers": 2},
    "dtype": "float32",
    "mask_seed": 1,
    "tokenizer_source": "base",
    "apply_chat_template": True,
    "fewshot_as_multiturn": True,
    "system_instruction": "Be brief.",
    "include_path": ["models"],
    "trust_remote_code": False,
    "confirm_unsafe": False,
    "plain_sum": False,
    "objective": "weighted",
}  # fmt: skip

EVOLVE: dict[str, Any] = {
    "genome": {
        "models": ["models/math", "models/code"],
        "merge_method": "dare_ties",
        "base_model": "models/base",
        "tokenizer_source": "base",
        "layer_granularity": 2,
        "normalize": True,
        "allow_negative_weights": False,
        "filters": ["self_attn"],
        "smooth": False,
    },
    "tasks": [{"name": "a", "weight": 1.0, "metric": "acc,none"}, "b"],
    "limit": 5,
    "num_fewshot": 0,
    "shuffle": False,
    "random_init": False,
    "apply_chat_template": True,
    "fewshot_as_multiturn": True,
}


def places(data: Any, above: Place = ()) -> Iterator[Place]:
    """Every key and every entry of a list."""
    parts = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in parts:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


def replaced(data: dict[str, Any], path: Place, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    there: Any = changed
    for key in path[:-1]:
        there = there[key]
    there[path[-1]] = value
    return changed


def faults(write: Write, data: dict[str, Any]) -> list[str]:
    """What is refused, each with its line; nothing if the space is loaded."""
    path: Path = write(yaml.safe_dump(data, sort_keys=False))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_space(path)
    except SpaceError as problem:
        found = [str(fault) for fault in problem.faults]
        assert found
        for fault in found:
            assert re.match(rf"{re.escape(str(path))}:\d+: [^:]+: .", fault), fault
        return [fault.removeprefix(f"{path}:") for fault in found]
    return []


@pytest.mark.parametrize("form", [OWN, EVOLVE], ids=["own", "evolve"])
def test_every_key_with_every_value(write: Write, form: dict[str, Any]) -> None:
    assert faults(write, form) == []
    for path in places(form):
        for value in VALUES:
            faults(write, replaced(form, path, value))


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_several_keys_at_once(write: Write, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([OWN, EVOLVE]))
    for _ in range(data.draw(st.integers(2, 4))):
        path = data.draw(st.sampled_from(list(places(form))))
        form = replaced(form, path, data.draw(st.sampled_from(VALUES)))
    faults(write, form)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("models",), "3: models: None is refused: must be a list"),
        (("merge_method",), "merge_method: None is refused: allowed: linear, task_arithmetic, "),
        (("tasks",), "tasks: None is refused: must be a list"),
        (("genome",), "genome: None is refused: must be a mapping"),
        (("genome", "filters"), "genome.filters: None is refused: must be a list"),
        (("genome", "layers"), "genome.layers: None is refused: must be a mapping"),
    ],
)
def test_a_key_without_a_value(write: Write, path: Place, message: str) -> None:
    found = faults(write, replaced(OWN, path, None))
    assert len(found) == 1, found
    assert message in found[0]
