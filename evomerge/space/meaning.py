"""What a space means for its study: what must not change while the study goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.documents import KeyPath, key_name
from evomerge.references import ModelReference

if TYPE_CHECKING:
    from evomerge.space.model import SearchSpace
    from evomerge.space.stage import Stage

_MERGE = {
    *("merge_method", "genome", "dtype", "mask_seed"),
    *("variant", "mask_by", "mask_of"),
}
_WHOLE = {
    *_MERGE,
    "tasks",
    "objective",
    "holdout",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "system_instruction",
    "plain_sum",
}
_ABSENT = object()


def meaning_of(space: SearchSpace) -> dict[str, Any]:
    """What makes the results of a study comparable; see ``SearchSpace.digest``.

    Defaults are left out, so that a key that a later version adds leaves old digests as they are.
    Local folders are named as seen from the space's file: a checkout may move.
    """
    folder = space.source.parent
    data = _merge(space, folder, _WHOLE)
    for task in data["tasks"]:
        # Which items these two come to is the items' own digest to tell: for many tasks the same,
        # and the same as before there was a choice.
        if task.get("split") == "evaluation":
            del task["split"]
    if space.search.seed:
        data["search"] = {"seed": space.search.seed}
    if space.stages:
        stages = [_merge(stage, folder, {*_MERGE, "name"}) for stage in space.stages]
        data["stages"] = stages
    return data


def _merge(stage: Stage, folder: Path, include: set[str]) -> dict[str, Any]:
    """What makes the results of one stage what they are."""
    data = stage.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=include)
    data["models"] = [_moved(model, folder) for model in stage.models]
    if stage.base_model is not None:
        data["base_model"] = _moved(stage.base_model, folder)
    if stage.tokenizer_source is not None:
        data["tokenizer_source"] = _relative(stage.tokenizer_source, folder)
    return data


def digest_of(space: SearchSpace) -> str:
    """A hash of a space's meaning; see ``SearchSpace.digest``."""
    text = json.dumps(meaning_of(space), sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def changes_between(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """What differs between two meanings, one line per key."""
    return [
        f"{key_name(path)} is {_shown(new)}, was {_shown(old)}"
        for path, new, old in _differences((), now, before)
    ]


def _differences(path: KeyPath, now: Any, before: Any) -> Iterator[tuple[KeyPath, Any, Any]]:
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        for key in dict.fromkeys([*now, *before]):
            yield from _differences((*path, key), now.get(key, _ABSENT), before.get(key, _ABSENT))
    elif _are_rows(now) and _are_rows(before) and len(now) == len(before):
        for index, (new, old) in enumerate(zip(now, before, strict=True)):
            yield from _differences((*path, index), new, old)
    elif now != before:
        yield path, now, before


def _are_rows(value: Any) -> bool:
    """Lists of mappings or models are compared entry by entry; a range [low, high] is not."""
    return isinstance(value, list) and not all(isinstance(item, float | int) for item in value)


def _shown(value: Any) -> str:
    return "not given" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _moved(reference: ModelReference, folder: Path) -> Any:
    lora = _relative(reference.lora, folder) if reference.lora else None
    return replace(reference, path=_relative(reference.path, folder), lora=lora).as_data()


def _relative(path: str, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix() if os.path.isabs(path) else path
