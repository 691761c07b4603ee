"""mergekit-evolve's configuration, read as a search space that means the same.

Its genome is unbounded and folded: |weight| unless negative weights are allowed, |density| cut at
1. Here the same values are genes with bounds: weight in [0, 2] or [-2, 2], density in [0.001, 1]
(a density of 0, which drops a task vector whole, is what a weight of 0 is for). A search begins
where theirs does: weight 1/number of models, density 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evomerge.documents import KeyPath, unknown_key
from evomerge.space.draft import Draft, as_mapping
from evomerge.space.methods import METHODS

DENSITY_FLOOR = 0.001
"""The lowest density; theirs is 0."""

WEIGHT_BOUND = 2.0
"""The largest weight; theirs is unbounded."""

SIGMA = 1 / 12
"""Their first standard deviation, 1/6, as a share of the weights' range [0, 2]."""

_GENOME = (
    "models",
    "merge_method",
    "base_model",
    "tokenizer_source",
    "layer_granularity",
    "normalize",
    "allow_negative_weights",
    "filters",
    "smooth",
)
_TOP = (
    "genome",
    "tasks",
    "limit",
    "num_fewshot",
    "shuffle",
    "random_init",
    "apply_chat_template",
    "fewshot_as_multiturn",
)
_TASK = ("name", "weight", "metric")
_NORMALIZED = ("ties", "dare_ties", "linear")
_THEIRS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")


def is_evolve(data: Mapping[str, Any]) -> bool:
    """Whether a file is mergekit-evolve's: its models stand in ``genome``."""
    genome = as_mapping(data.get("genome"))
    mine = "models" in data or "merge_method" in data
    return "models" in genome or ("merge_method" in genome and not mine)


def translate(data: Mapping[str, Any]) -> Draft:
    """The space that a configuration stands for.

    What mergekit-evolve would turn into another type (``"100"`` into a number) is turned here too;
    keys that it ignores are noted.
    """
    genome = as_mapping(data["genome"])
    draft = Draft({"dtype": "bfloat16", "plain_sum": True})
    for key in ("models", "merge_method", "base_model", "tokenizer_source"):
        draft.renamed[(key,)] = ("genome", key)
        if key in genome and (genome[key] is not None or key in ("models", "merge_method")):
            draft.data[key] = genome[key]
    draft.data["genome"] = _genome(genome, draft)
    draft.data["tasks"] = _tasks(data, draft)
    draft.data["search"] = _search(data, genome, draft)
    for key in ("apply_chat_template", "fewshot_as_multiturn"):
        draft.data[key] = _lax(bool, data.get(key, True))
    _note_ignored(data, _TOP, (), draft)
    _note_ignored(genome, _GENOME, ("genome",), draft)
    if "tasks" not in data:
        draft.data.pop("tasks")
    return draft


def _genome(theirs: Mapping[str, Any], draft: Draft) -> dict[str, Any]:
    granularity = _lax(int, theirs.get("layer_granularity", 0))
    layers: dict[str, Any] = {"smooth": _lax(bool, theirs.get("smooth", False))}
    if not isinstance(granularity, int) or granularity > 0:
        layers["size"] = granularity
    method, models = theirs.get("merge_method"), theirs.get("models")
    count = len(models) if isinstance(models, list) and models else 1
    genome: dict[str, Any] = {
        "layers": layers,
        "filters": _filters(theirs.get("filters"), draft),
        "weight": _weight(theirs, count, draft),
        "normalize": _normalize(theirs, method),
    }
    known = METHODS.get(method) if isinstance(method, str) else None
    if method == "slerp":
        problem = (
            "'slerp' is refused: mergekit-evolve picks two of the models for each layer group, "
            "which a space does not; write a space with merge_method: slerp and a genome of t"
        )
        draft.faults.append((("genome", "merge_method"), problem))
    if known is not None and known.sparsifies:
        genome["density"] = {"low": DENSITY_FLOOR, "high": 1.0, "initial": 1.0}
    draft.renamed[("genome", "layers")] = ("genome", "layer_granularity")
    draft.renamed[("genome", "layers", "size")] = ("genome", "layer_granularity")
    draft.renamed[("genome", "layers", "smooth")] = ("genome", "smooth")
    return genome


def _filters(theirs: Any, draft: Draft) -> Any:
    """The filters that can match anything; the first match wins."""
    if not isinstance(theirs, list) or not all(isinstance(name, str) for name in theirs):
        return [] if theirs is None else theirs
    live: list[str] = []
    for index, name in enumerate(theirs):
        if name in ("", "*"):
            note = f"{name!r} takes every tensor: filters from here on have no effect"
            draft.notes.append((("genome", "filters", index), note))
            break
        if any(earlier in name for earlier in live):
            note = f"{name!r} has no effect: a filter before it takes all its tensors"
            draft.notes.append((("genome", "filters", index), note))
            continue
        draft.renamed[("genome", "filters", len(live))] = ("genome", "filters", index)
        live.append(name)
    return live


def _weight(theirs: Mapping[str, Any], models: int, draft: Draft) -> dict[str, float]:
    negative = _lax(bool, theirs.get("allow_negative_weights", False))
    if not isinstance(negative, bool):
        problem = f"{negative!r} is refused: must be true or false"
        draft.faults.append((("genome", "allow_negative_weights"), problem))
    low = -WEIGHT_BOUND if negative else 0.0
    return {"low": low, "high": WEIGHT_BOUND, "initial": 1.0 / models}


def _normalize(theirs: Mapping[str, Any], method: Any) -> Any:
    value = theirs.get("normalize")
    if value is not None:
        return _lax(bool, value)
    return method in _NORMALIZED if method in _THEIRS else None


def _tasks(data: Mapping[str, Any], draft: Draft) -> Any:
    """Their tasks; one that stands twice with the same metric counts with both weights."""
    theirs = data.get("tasks")
    if not isinstance(theirs, list):
        return theirs
    common = {
        "items": _lax(int, data.get("limit")),
        "num_fewshot": _lax(int, data.get("num_fewshot")),
        "order": _order(data, draft),
        "split": "evaluation",
    }
    tasks: list[Any] = []
    for index, entry in enumerate(theirs):
        task = _task(entry, ("tasks", index), draft)
        if not isinstance(task, dict):
            tasks.append(task)
            continue
        here: KeyPath = ("tasks", len(tasks))
        if _add_to_earlier(tasks, task):
            continue
        draft.renamed[here] = ("tasks", index)
        draft.renamed[(*here, "task")] = ("tasks", index, "name")
        draft.renamed[(*here, "items")] = ("limit",)
        draft.renamed[(*here, "num_fewshot")] = ("num_fewshot",)
        tasks.append({**task, **common})
    return tasks


def _order(data: Mapping[str, Any], draft: Draft) -> str:
    shuffle = _lax(bool, data.get("shuffle", False))
    if not isinstance(shuffle, bool):
        draft.faults.append((("shuffle",), f"{shuffle!r} is refused: must be true or false"))
    return "random" if shuffle else "first"


def _task(entry: Any, path: KeyPath, draft: Draft) -> Any:
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping):
        return entry
    _note_ignored(entry, _TASK, path, draft)
    task = {
        "metric": entry.get("metric", "acc,none"),
        "weight": _lax(float, entry.get("weight", 1.0)),
    }
    return {"task": entry["name"], **task} if "name" in entry else task


def _add_to_earlier(tasks: list[Any], task: dict[str, Any]) -> bool:
    for other in tasks:
        same = isinstance(other, dict) and all(
            other.get(key) == task.get(key) for key in ("task", "metric")
        )
        if same and all(isinstance(one["weight"], float) for one in (other, task)):
            other["weight"] += task["weight"]
            return True
    return False


def _search(data: Mapping[str, Any], genome: Mapping[str, Any], draft: Draft) -> dict[str, Any]:
    negative = _lax(bool, genome.get("allow_negative_weights", False)) is True
    draft.renamed[("search", "random_init")] = ("random_init",)
    return {
        "sigma": SIGMA / 2 if negative else SIGMA,
        "random_init": _lax(bool, data.get("random_init", False)),
    }


def _note_ignored(
    data: Mapping[str, Any], known: tuple[str, ...], path: KeyPath, draft: Draft
) -> None:
    for key in data:
        if key not in known:
            text = f"{unknown_key(str(key), known)}; ignored, as mergekit-evolve does"
            draft.notes.append(((*path, str(key)), text))


def _lax(kind: type, value: Any) -> Any:
    """The value as the type that pydantic makes of it, or as it is where it cannot be."""
    try:
        return value if value is None else TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return value
