"""How transformers makes parameters of stored tensors: renamed, stacked, joined, turned.

transformers 5 loads through a list of renamings and conversions per kind of model, and says so in
no documented interface yet. All that is known here about its inside stands in this module:
``get_model_conversion_mapping`` (which PEFT relies on too) and the transforms it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@dataclass
class Group:
    """Stored tensors that become one or several parameters together.

    Args:
        sources: their names, in the order in which they are given to the conversion.
        key: the name of the first parameter.
        kind: equal for groups that are converted in the same way (each layer's experts).
    """

    sources: list[str]
    key: str
    kind: int
    _converter: Any
    _patterns: list[str] = field(default_factory=list)
    _between: list[str] = field(default_factory=list)

    def convert(
        self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The parameters by name, computed by transformers' own conversion.

        Args:
            model: what they belong to; its shapes and configuration are looked at.
            tensors: the sources by name.
        """
        converter = deepcopy(self._converter)
        for source, pattern in zip(self.sources, self._patterns, strict=True):
            converter.add_tensor(self.key, source, pattern, tensors[source])
        return _converted(converter, self.key, model)

    def views(
        self, model: torch.nn.Module, parameters: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The conversion undone: by source, its part of the parameters, as a view where it is one.

        Args:
            model: what they belong to.
            parameters: by name; all that :meth:`convert` gives.

        Raises:
            Exception: whatever transformers raises where a conversion cannot be undone.
        """
        reverse = self._converter.reverse_transform()
        found: dict[str, torch.Tensor] = {}
        pending: dict[str, Any] = {}
        for name, parameter in parameters.items():
            key, pattern = reverse.rename_source_key(name)
            pending.setdefault(key, deepcopy(reverse)).add_tensor(key, name, pattern, parameter)
        with _Views():
            for key, converter in pending.items():
                found |= _converted(converter, key, model)
        between = zip(self.sources, self._between, strict=True)
        return {source: found[name] for source, name in between if name in found}


class _Views(TorchFunctionMode):
    """Lets conversions give views where they would copy only to have neat memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.Tensor.contiguous, torch.Tensor.clone):
            return args[0]
        return func(*args, **(kwargs or {}))


def grouped(model: torch.nn.Module, names: Iterable[str]) -> tuple[dict[str, str], list[Group]]:
    """Where a model's loading puts stored tensors.

    Args:
        model: alive, or without values (on the meta device).
        names: of the stored tensors.

    Returns:
        For each tensor that is only renamed its name in the model (which need not have it), and
        the groups of those that are converted.
    """
    live = model.state_dict()
    transforms = _transforms(model)
    renamings = [one for one in transforms if not hasattr(one, "operations")]
    converters = [one for one in transforms if hasattr(one, "operations")]
    kinds = {pattern: n for n, one in enumerate(converters) for pattern in one.source_patterns}
    prefix = getattr(model, "base_model_prefix", None) if transforms else None
    renamed: dict[str, str] = {}
    groups: dict[str, Group] = {}
    for name in sorted(names, key=_natural):
        key, pattern = _target(name, renamings, converters, prefix, live)
        if pattern is None:
            renamed[name] = key
            continue
        kind = kinds[pattern]
        group = groups.setdefault(key, Group([], key, kind, converters[kind]))
        group.sources.append(name)
        group._patterns.append(pattern)
        group._between.append(_target(name, renamings, [], prefix, {})[0])
    return renamed, list(groups.values())


def is_ignored(model: torch.nn.Module, name: str) -> bool:
    """Whether a model knows a stored tensor as one that it does without (further tokens' heads)."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _transforms(model: torch.nn.Module) -> list[Any]:
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping

    return get_model_conversion_mapping(model) if isinstance(model, PreTrainedModel) else []


def _target(
    name: str,
    renamings: list[Any],
    converters: list[Any],
    prefix: str | None,
    live: Mapping[str, torch.Tensor],
) -> tuple[str, str | None]:
    """A tensor's name in the model and the pattern of its conversion; as the loader does it."""
    from transformers.core_model_loading import rename_source_key

    key, pattern = rename_source_key(name, renamings, converters, prefix, live)
    if key not in live and name in live:
        return rename_source_key(name, [], [], prefix, live)
    return key, pattern


def _converted(converter: Any, key: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    made = converter.convert(key, model=model, config=getattr(model, "config", None))
    return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


def _natural(name: str) -> list[Any]:
    from transformers.core_model_loading import dot_natural_key

    return dot_natural_key(name)
