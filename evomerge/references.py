"""Names of models: ``path[@revision][+lora[@revision]]``, as mergekit writes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, order=True)
class ModelReference:
    """A model: a folder or a hub name, a revision, and an adapter on top of it.

    Args:
        path: a local folder or ``owner/name`` on the hub.
        revision: a branch, tag or commit of the hub's repository.
        lora: a PEFT LoRA adapter (folder or hub name) to add to the model.
        lora_revision: the adapter's revision.
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def __hash__(self) -> int:
        # References are looked up several times for every tensor of a merge.
        return hash(self.path)

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | ModelReference) -> ModelReference:
        """Read mergekit's string form, or its mapping form (``model: {path, revision}, lora:``).

        Raises:
            ValueError: the value is neither, or names no path.
        """
        if isinstance(value, ModelReference):
            return value
        if isinstance(value, Mapping):
            return cls._from_mapping(value)
        if not isinstance(value, str) or not value.strip():
            raise ValueError("a model is named by path[@revision][+lora[@revision]]")
        model, plus, lora = value.strip().partition("+")
        path, revision = _split_revision(model)
        if not plus:
            return cls(path, revision)
        lora_path, lora_revision = _split_revision(lora)
        return cls(path, revision, lora_path, lora_revision)

    @classmethod
    def _from_mapping(cls, value: Mapping[str, Any]) -> ModelReference:
        unknown = set(value) - {"model", "lora", "override_architecture"}
        if unknown or "model" not in value:
            raise ValueError("a model's mapping has the keys model, lora (each path, revision)")
        if value.get("override_architecture"):
            raise ValueError("override_architecture is not supported")
        path, revision = _path_and_revision(value["model"])
        lora = value.get("lora")
        if lora is None:
            return cls(path, revision)
        return cls(path, revision, *_path_and_revision(lora))

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        if self.lora:
            text += f"+{self.lora}" + (f"@{self.lora_revision}" if self.lora_revision else "")
        return text

    def as_data(self) -> str | dict[str, Any]:
        """What a YAML file says: the string form, or the mapping where that would be misread.

        A path with ``@`` or ``+`` is, and one called ``union`` or ``base`` where a tokenizer's
        source is named.
        """
        text = str(self)
        chunks = text.split("+")
        plain = len(chunks) <= 2 and all(chunk.count("@") <= 1 for chunk in chunks)
        if plain and text not in ("union", "base") and _reads_as(text, self):
            return text
        data: dict[str, Any] = {"model": _path_data(self.path, self.revision)}
        if self.lora is not None:
            data["lora"] = _path_data(self.lora, self.lora_revision)
        return data

    def located(self, folder: Path) -> ModelReference:
        """The same model with relative local folders made absolute, seen from ``folder``.

        A name that is no folder below ``folder`` is left alone: it is the hub's.
        """
        lora = _locate(self.lora, folder) if self.lora else None
        return replace(self, path=_locate(self.path, folder), lora=lora)


def labels(references: Iterable[ModelReference]) -> dict[ModelReference, str]:
    """A short name for each model, distinct among them.

    The label is the last part of the path (``NousResearch/Hermes`` → ``Hermes``), with as many more
    parts as it takes to tell the models apart, plus revision and adapter where there are any. It
    names a model's genes and keys its masks, so that neither depends on where a checkout lies.

    Raises:
        ValueError: the same model stands twice.
    """
    distinct = list(references)
    if len(set(distinct)) != len(distinct):
        raise ValueError("the same model stands twice")
    depth = 1
    while True:
        names = [_label(reference, depth) for reference in distinct]
        if len(set(names)) == len(names):
            return dict(zip(distinct, names, strict=True))
        depth += 1
        if depth > max(len(Path(reference.path).parts) for reference in distinct):
            return {reference: str(reference) for reference in distinct}


def _label(reference: ModelReference, depth: int) -> str:
    name = _tail(reference.path, depth) + (f"@{reference.revision}" if reference.revision else "")
    if reference.lora:
        name += f"+{_tail(reference.lora, depth)}"
        name += f"@{reference.lora_revision}" if reference.lora_revision else ""
    return name


def _tail(path: str, depth: int) -> str:
    return "/".join(Path(path.rstrip("/")).parts[-depth:])


def _locate(path: str, folder: Path) -> str:
    candidate = folder / Path(path).expanduser()
    # Not resolve(): a link's own name is the model's label, wherever it leads.
    return os.path.abspath(candidate) if candidate.is_dir() else path


def _reads_as(text: str, reference: ModelReference) -> bool:
    try:
        return ModelReference.parse(text) == reference
    except ValueError:
        return False


def _path_data(path: str, revision: str | None) -> dict[str, str]:
    return {"path": path} if revision is None else {"path": path, "revision": revision}


def _split_revision(text: str) -> tuple[str, str | None]:
    path, at, revision = text.partition("@")
    if not path or (at and not revision):
        raise ValueError("a model is named by path[@revision][+lora[@revision]]")
    return path, revision or None


def _path_and_revision(value: Any) -> tuple[str, str | None]:
    if isinstance(value, str):
        return _split_revision(value)
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and value["path"]:
        revision = value.get("revision")
        if revision is None or (isinstance(revision, str) and revision):
            return value["path"], revision
    raise ValueError("a model's mapping has a path and, if wanted, a revision (both strings)")
