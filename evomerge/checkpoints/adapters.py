"""PEFT LoRA adapters: W + s·B·A, added when a tensor is read.

LoRA: Hu et al., arXiv 2106.09685, section 4.1. The factor s is alpha/r, or alpha/√r for rank
stabilised adapters (arXiv 2312.03732). DoRA (arXiv 2402.09353, eq. 5) rescales the rows of the sum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.files import adapter_file, read_json
from evomerge.checkpoints.folders import ADAPTER_CONFIG
from evomerge.checkpoints.joined import Loaded, Stack, unwrapped, wrapped
from evomerge.checkpoints.weights import Entry, WeightFiles
from evomerge.errors import CheckpointError, Fault

_PREFIX = "base_model.model."
_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?P<end>\.weight|\.bias)?$"
)
# What we lack, and the value under which a configuration does without it.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "lora_ga_config": (None,),
    "arrow_config": (None,),
}
_ADVICE = "merge the adapter into the model (merge_and_unload) and save that"
_CUT = "which is stored in another cut, in several tensors or as a part of one"
# The others start by changing the base model's weights, so that W is not what the base stores.
_INITS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass
class _Target:
    """What an adapter holds for one tensor: names of its own tensors by part.

    ``trained`` is what it was trained on, by the adapter's own name: a layer, or a parameter, of
    which the tensor may be a part (``stack``).
    """

    trained: str
    parts: dict[str, str] = field(default_factory=dict)
    embedding: bool = False
    replacement: str | None = None
    stack: Stack | None = None
    scale: float = 0.0


class Adapter:
    """The changes that an adapter makes to a stored model.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``).
        base: the tensors of the model that it is for.
        shared: gives the stored tensor that one which is not stored shares its values with.
        loaded: gives the model as transformers loads it, None where that is not known; asked only
            for an adapter with names of its own.

    Raises:
        CheckpointError: it is no LoRA adapter, or does not fit the model, or needs what is not
            supported.
    """

    def __init__(
        self,
        folder: Path,
        base: Mapping[str, Entry],
        shared: Callable[[str], str | None],
        loaded: Callable[[], Loaded | None],
    ) -> None:
        self.folder = folder
        self.config = read_json(folder / ADAPTER_CONFIG)
        _check_config(self.config, folder)
        self.weights = WeightFiles([adapter_file(folder)])
        self._fan_in_fan_out = bool(self.config.get("fan_in_fan_out"))
        self._loaded = cache(loaded)
        self._targets = self._read_targets(base, shared)
        self._check_shapes(base)

    @property
    def names(self) -> tuple[str, ...]:
        """The model's tensors that it changes."""
        return tuple(sorted(self._targets))

    @property
    def files(self) -> tuple[Path, ...]:
        """What it is read from."""
        return (*self.weights.files, self.folder / ADAPTER_CONFIG)

    def entry(self, name: str, entry: Entry) -> Entry:
        """A tensor's shape and type after the adapter: it may bring an embedding of its own."""
        target = self._targets.get(name)
        if target is None or target.replacement is None:
            return entry
        return entry._replace(shape=self.weights.entries[target.replacement].shape)

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with the adapter's change, in the tensor's own type; new memory.

        The sum is done in float32 (float64 for float64 weights) and cast once.
        """
        target = self._targets[name]
        dtype = tensor.dtype
        work = torch.promote_types(dtype, torch.float32)
        if target.replacement is not None:
            tensor = self.weights.view(target.replacement)
        result = tensor.to(work, copy=True)
        if target.stack is not None:
            a, b = (self.weights.view(target.parts[part]) for part in "AB")
            target.stack.add(result, a, b, target.scale)
            return result.to(dtype)
        parts = {part: self.weights.view(own).to(work) for part, own in target.parts.items()}
        if "bias" in parts:
            result += parts["bias"] * target.scale
        if "B" not in parts:
            return result.to(dtype)
        # The product is out × in; embeddings and Conv1D store in × out.
        rows = result.T if self._flipped(target) else result
        rows += parts["B"] @ parts["A"] * target.scale
        if "magnitude" in parts:
            rows *= (parts["magnitude"].flatten() / rows.norm(dim=1)).unsqueeze(1)
        return result.to(dtype)

    def _flipped(self, target: _Target) -> bool:
        return target.embedding or self._fan_in_fan_out

    def _read_targets(
        self, base: Mapping[str, Entry], shared: Callable[[str], str | None]
    ) -> dict[str, _Target]:
        stacks, stackless = self._stacks()
        targets = {name: target for several in stacks.values() for name, target in several.items()}
        faults = [
            Fault(f"{self.folder}: {own}", f"belongs to {parameter}, {_CUT}; {_ADVICE}")
            for own, parameter in stackless.items()
        ]
        for own in self.weights.entries:
            if own in stacks or own in stackless:
                continue
            wanted, part = _meaning(own.removeprefix(_PREFIX))
            name = self._stored_name(wanted, base)
            if name is None:
                faults.append(self._stray(own, wanted, shared(wanted)))
                continue
            target = targets.setdefault(name, _Target(wanted.rpartition(".")[0]))
            if part is None:
                target.replacement = own
                continue
            target.embedding |= "lora_embedding_" in own
            target.parts[part] = own
        if faults:
            raise CheckpointError(faults[:10])
        for name, target in targets.items():
            target.scale = self._scale(name, target, targets)
        return targets

    def _stacks(self) -> tuple[dict[str, dict[str, _Target]], dict[str, str]]:
        """By factor of a parameter what it changes, and those whose parameters have no places."""
        chosen = self.config.get("target_parameters")
        if not chosen:
            return {}, {}
        loaded = self._loaded()
        if loaded is None:
            place = f"{self.folder / ADAPTER_CONFIG}: target_parameters"
            problem = f"{chosen!r} of a model that cannot be built here; {_ADVICE}"
            raise CheckpointError([Fault(place, problem)])
        factors = {own: _PART.match(own.removeprefix(_PREFIX)) for own in self.weights.entries}
        modules = {
            own: one["module"]
            for own, one in factors.items()
            if one is not None and one["part"] in ("lora_A", "lora_B") and one["end"] != ".bias"
        }
        found: dict[str, dict[str, _Target]] = {}
        changed: dict[str, dict[str, _Target]] = {}
        stackless: dict[str, str] = {}
        for own, parameter in wrapped(modules, chosen, list(loaded.shapes)).items():
            if parameter not in changed:
                stacks = loaded.parts(parameter)
                changed[parameter] = {n: _Target(parameter, stack=s) for n, s in stacks.items()}
            if not changed[parameter]:
                stackless[own] = parameter
                continue
            found[own] = changed[parameter]
            for target in changed[parameter].values():
                target.parts["A" if ".lora_A" in own else "B"] = own
        return found, stackless

    def _stray(self, own: str, wanted: str, shared: str | None) -> Fault:
        place = f"{self.folder}: {own}"
        if shared is not None:
            why = "changes the output head alone, which the model shares with its embeddings"
            return Fault(place, f"{why}; such an adapter is not supported")
        loaded = self._loaded()
        if loaded is not None and wanted in loaded.stored:
            return Fault(place, f"belongs to {wanted}, {_CUT}; {_ADVICE}")
        return Fault(place, f"belongs to {wanted}, which the model does not have")

    def _stored_name(self, wanted: str, base: Mapping[str, Entry]) -> str | None:
        """The stored name of a parameter that the adapter was trained on."""
        if wanted in base:
            return wanted
        loaded = self._loaded()
        stored = {} if loaded is None else loaded.stored
        return stored[wanted] if wanted in stored else _counterpart(wanted, base)

    def _scale(self, name: str, target: _Target, targets: Mapping[str, _Target]) -> float:
        weight = f"{name.rpartition('.')[0]}.weight"
        lower = target.parts.get("A") or targets.get(weight, target).parts.get("A")
        if lower is None:
            return 0.0
        # The rank is A's own height; the configuration's r and rank_pattern only repeat it.
        rank = self.weights.entries[lower].shape[0]
        rank //= 1 if target.stack is None else target.stack.experts
        alpha = float(self.config.get("lora_alpha", 8))
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", target.trained):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _check_shapes(self, base: Mapping[str, Entry]) -> None:
        faults = []
        for name, target in self._targets.items():
            entry = self.entry(name, base[name])
            problem = self._misfit(entry, target)
            if problem is None and entry.shape[1:] != base[name].shape[1:]:
                problem = f"brings shape {list(entry.shape)}; it has {list(base[name].shape)}"
            if problem:
                faults.append(Fault(f"{self.folder}: {name}", problem))
        if faults:
            raise CheckpointError(faults[:10])

    def _misfit(self, entry: Entry, target: _Target) -> str | None:
        shapes = {part: self.weights.entries[own].shape for part, own in target.parts.items()}
        if "bias" in shapes:
            return None if shapes["bias"] == entry.shape else "the bias has another length"
        if not shapes:
            return None
        if not {"A", "B"} <= set(shapes):
            return f"has {', '.join(sorted(shapes))} but not both A and B"
        if target.stack is not None:
            return target.stack.misfit(shapes["A"], shapes["B"])
        if any(len(shape) != 2 for shape in (shapes["A"], shapes["B"], entry.shape)):
            return "is no matrix; adapters of convolutions are not supported"
        if "magnitude" in shapes and target.embedding:
            return "DoRA on embeddings is not supported"
        product = (shapes["B"][0], shapes["A"][1])
        if self._flipped(target):
            product = product[::-1]
        if shapes["B"][1] != shapes["A"][0] or product != entry.shape:
            found = f"B {list(shapes['B'])} times A {list(shapes['A'])}"
            return f"{found} does not fit the model's {list(entry.shape)}"
        return None


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    place = str(folder / ADAPTER_CONFIG)
    faults = []
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        faults.append(Fault(f"{place}: peft_type", f"{kind!r} is not supported; LORA is"))
    for key, plain in _UNSUPPORTED.items():
        if config.get(key) not in plain:
            problem = f"{config[key]!r} is not supported; {_ADVICE}"
            faults.append(Fault(f"{place}: {key}", problem))
    init = config.get("init_lora_weights", True)
    if init not in _INITS:
        problem = f"{init!r} changes the base model's weights; save it converted to a plain LoRA"
        faults.append(Fault(f"{place}: init_lora_weights", problem))
    if faults:
        raise CheckpointError(faults)


def _meaning(own: str) -> tuple[str, str | None]:
    """The model's tensor that an adapter's tensor is about, and its part; None is the whole."""
    found = _PART.match(own)
    if found is None:
        return unwrapped(re.sub(r"\.modules_to_save(\.default)?\.", ".", own)), None
    module, part, end = unwrapped(found["module"]), found["part"], found["end"]
    if part == "lora_B" and end == ".bias":
        return f"{module}.bias", "bias"
    if part == "lora_magnitude_vector":
        return f"{module}.weight", "magnitude"
    return f"{module}.weight", part[-1]


def _counterpart(wanted: str, base: Mapping[str, Entry]) -> str | None:
    """The stored name of a live model's tensor: a prefix may have come or gone."""
    found = [name for name in base if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
    return found[0] if len(found) == 1 else None
