"""LoRA on parameters instead of layers (PEFT's ``target_parameters``): experts in one stack.

Each expert has factors of its own, all of them in one pair of matrices: A is [rank · experts, in],
expert after expert; B is [out, rank · experts], rank after rank. What is stored of the stack may be
an expert's matrix, a part of one, or all of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from evomerge.checkpoints.placing import Part, Placements

_WRAPPED = re.compile(r"\.base_layer(?=\.|$)")
_INNERMOST = re.compile(r"(\.base_layer)+$")


@dataclass(frozen=True)
class Loaded:
    """The model that an adapter is for, as transformers loads it.

    Args:
        placed: where the stored tensors stand in it.
        shapes: of its parameters, in its own order.
        turned: the parameters that hold experts as in × out, and not out × in.
    """

    placed: Placements
    shapes: Mapping[str, tuple[int, ...]]
    turned: frozenset[str]

    @classmethod
    def of(cls, model: torch.nn.Module, placed: Placements) -> Loaded:
        """What there is to know of a model (which may be on the meta device)."""
        shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
        turned = [
            name
            for name in shapes
            if getattr(model.get_submodule(name.rpartition(".")[0]), "is_transposed", False)
        ]
        return cls(placed, shapes, frozenset(turned))

    @cached_property
    def stored(self) -> dict[str, str | None]:
        """By parameter the stored tensor that it is; None if it is not just one."""
        found: dict[str, str | None] = {}
        for name, place in self.placed.places.items():
            found[place.parameter] = name if place.part is None else None
        return found | {name: None for one in self.placed.conversions for name in one.targets}

    def parts(self, parameter: str) -> dict[str, Stack]:
        """By stored tensor its part of a parameter; empty where the values have no places."""
        shape = self.shapes[parameter]
        # PEFT looks at several experts only: all else is out × in to it.
        turned = parameter in self.turned and len(shape) == 3 and shape[0] > 1
        return {
            name: Stack(shape, turned, place.part)
            for name, place in self.placed.places.items()
            if place.parameter == parameter
        }


@dataclass(frozen=True)
class Stack:
    """A stored tensor's part of a parameter, and what factors change there.

    Args:
        shape: of the parameter: [experts, out, in], [experts, in, out] or [out, in].
        turned: whether an expert is in × out.
        part: which values, as in a :class:`Placement`; None is all of them.
    """

    shape: tuple[int, ...]
    turned: bool
    part: Part | None

    @property
    def experts(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def out_and_in(self) -> tuple[int, int]:
        """Of an expert."""
        first, second = self.shape[-2:]
        return (second, first) if self.turned else (first, second)

    def misfit(self, a: Sequence[int], b: Sequence[int]) -> str | None:
        """Why factors of these shapes do not fit; None if they do."""
        if len(a) == len(b) == 2 and len(self.shape) in (2, 3):
            fits = (b[0], a[1]) == self.out_and_in and a[0] == b[1] and a[0] % self.experts == 0
            if fits:
                return None
        return f"B {list(b)} and A {list(a)} do not fit the parameter's {list(self.shape)}"

    def add(self, stored: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        """Add s·B·A of each expert to a stored tensor, in place.

        Args:
            stored: contiguous, in the type of the arithmetic.
            a, b: the factors, as they are stored.
            scale: s.
        """
        a = a.reshape(self.experts, -1, a.shape[1])
        b = b.reshape(b.shape[0], -1, self.experts).permute(2, 0, 1)
        if self.part is None:
            whole = stored.view(self.experts, *self.shape[-2:])
            self._add(whole, a, b, scale)
            return
        size, stride, offset = self.part
        each = self.shape[-2] * self.shape[-1]
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        first, end = offset // each, last // each + 1
        change = stored.new_zeros(end - first, *self.shape[-2:])
        self._add(change, a[first:end], b[first:end], scale)
        stored += change.as_strided(size, stride, offset - first * each)

    def _add(self, stack: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        # Expert by expert: all factors in the arithmetic's type would be another adapter.
        for mine, lower, upper in zip(stack, a, b, strict=True):
            straight = mine.T if self.turned else mine
            straight.addmm_(upper.to(stack.dtype), lower.to(stack.dtype), alpha=scale)


def unwrapped(name: str) -> str:
    """A name without what PEFT puts between a wrapper and what it wraps."""
    return _WRAPPED.sub("", name)


def wrapped(
    modules: Mapping[str, str], targets: Sequence[str], parameters: Sequence[str]
) -> dict[str, str]:
    """Which parameters the factors of an adapter belong to.

    PEFT wraps a module once for each of its parameters that is named, in the module's own order, so
    that the last one's factors have the module's name and each before it one ``base_layer`` more.

    Args:
        modules: by factor, the module that its name tells.
        targets: ``target_parameters``.
        parameters: of the model, in its own order.

    Returns:
        By factor, without those of layers.
    """
    named: dict[str, list[str]] = {}
    for parameter in parameters:
        if any(f".{parameter}".endswith(f".{target}") for target in targets):
            named.setdefault(parameter.rpartition(".")[0], []).append(parameter)
    found = {}
    owners = {parameter.rpartition(".")[0] for parameter in parameters}
    for factor, module in modules.items():
        several = named.get(_known(unwrapped(module), owners), [])
        depth = module[len(_INNERMOST.sub("", module)) :].count(".")
        if depth < len(several):
            found[factor] = several[-1 - depth]
    return found


def _known(module: str, known: Collection[str]) -> str:
    """A module's name in the model: a prefix may have come or gone."""
    if module in known:
        return module
    found = [one for one in known if one.endswith(f".{module}") or module.endswith(f".{one}")]
    return found[0] if len(found) == 1 else module
