"""A space's data on the way from a file to a ``SearchSpace``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.documents import KeyPath, shown
from evomerge.references import ModelReference
from evomerge.space.methods import METHODS
from evomerge.space.origin import trace
from evomerge.space.strict import Conflict


@dataclass
class Draft:
    """Plain data in the shape of a ``SearchSpace``, and what there is to say about it.

    Args:
        data: the space's keys and values, unchecked.
        renamed: what the document calls a key; see ``Origin``.
        faults: what is wrong and cannot be seen in the data alone. Paths are the document's.
        notes: what has no effect. Paths are the document's.
    """

    data: dict[str, Any]
    renamed: dict[KeyPath, KeyPath] = field(default_factory=dict)
    faults: list[Conflict] = field(default_factory=list)
    notes: list[Conflict] = field(default_factory=list)

    def locate(self, folders: Sequence[Path], made: Collection[str] = ()) -> None:
        """Make relative folders absolute, the first of ``folders`` that has one winning.

        Args:
            folders: where folders are looked for.
            made: names of stages, which are no folders.
        """
        models = self.data.get("models")
        if isinstance(models, list):
            self.data["models"] = [
                self._model(("models", index), value, folders, made)
                for index, value in enumerate(models)
            ]
        for key in ("base_model", "tokenizer_source"):
            value = self.data.get(key)
            if value is not None and value not in ("union", "base"):
                self.data[key] = self._model((key,), value, folders, made)
        if isinstance(self.data.get("tokenizer_source"), ModelReference):
            self.data["tokenizer_source"] = str(self.data["tokenizer_source"])
        if self.data.get("include_path") is not None:
            self._tasks(self.data["include_path"], folders[-1])

    def drop_base(self) -> None:
        """Leave the base model out of the fine-tuned models, where it cannot contribute."""
        models, base = self.data.get("models"), self.data.get("base_model")
        names = self.data.get("merge_method")
        names = names if isinstance(names, list) else [names]
        methods = [METHODS[name] for name in names if isinstance(name, str) and name in METHODS]
        if not any(method.takes_base for method in methods) or not isinstance(models, list):
            return
        if not isinstance(base, ModelReference):
            return
        kept = [index for index, model in enumerate(models) if model != base]
        there = [trace(("models", index), self.renamed) for index in range(len(models))]
        for index in sorted(set(range(len(models))) - set(kept)):
            note = f"'{models[index]}' is the base model, whose task vector is 0; it is left out"
            self.notes.append((there[index], note))
        self.data["models"] = [models[index] for index in kept]
        self.renamed.update({("models", new): there[old] for new, old in enumerate(kept)})

    def _model(
        self, path: KeyPath, value: Any, folders: Sequence[Path], made: Collection[str]
    ) -> Any:
        """The model where it lies; what is no model is left as it is, to be refused later."""
        try:
            reference = ModelReference.parse(value)
        except ValueError:
            return value
        if reference.path in made:
            return reference
        for folder in folders:
            found = reference.located(folder)
            if found != reference:
                reference = found
                break
        for name in (reference.path, reference.lora):
            if name and _is_local(name) and not Path(name).is_dir():
                seen = " or ".join(str(folder) for folder in folders)
                problem = f"{shown(name)} is refused: there is no such folder, seen from {seen}"
                self.faults.append((trace(path, self.renamed), problem))
        return reference

    def _tasks(self, value: Any, folder: Path) -> None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.data.pop("include_path")
            problem = f"{shown(value)} is refused: must be a folder or a list of folders"
            self.faults.append((("include_path",), problem))
            return
        paths = [(folder / Path(name).expanduser()).resolve() for name in names]
        for index, (name, path) in enumerate(zip(names, paths, strict=True)):
            if not path.is_dir():
                problem = f"{shown(name)} is refused: there is no folder {path}"
                self.faults.append((("include_path", index), problem))
        self.data["include_path"] = paths


def _is_local(name: str) -> bool:
    """Whether a name cannot be the hub's (``owner/name``)."""
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..")


def as_mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
