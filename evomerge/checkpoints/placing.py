"""Where in a live model the values of stored tensors stand.

A stored tensor is a whole parameter of another name, or a part of one (an expert's matrix in the
stack of all experts), or one of several that a conversion makes parameters of. Parts are found by
undoing transformers' conversion on tensors without values, and are believed only if the conversion
itself puts random values there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from evomerge.checkpoints.conversions import Group, grouped, is_ignored
from evomerge.errors import CheckpointError, Fault

Shapes = Mapping[str, tuple[int, ...]]
Part = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclass(frozen=True)
class Placement:
    """A parameter or buffer, or a part of one.

    Args:
        parameter: its name in the live model.
        part: sizes, strides and offset, in elements of a contiguous parameter; None is all of it.
    """

    parameter: str
    part: Part | None = None

    def view(self, parameter: torch.Tensor) -> torch.Tensor:
        """The place in the parameter's own memory, which has to be contiguous for a part."""
        if self.part is None:
            return parameter
        size, stride, offset = self.part
        return parameter.as_strided(size, stride, parameter.storage_offset() + offset)

    def shape(self, parameter: torch.Tensor) -> tuple[int, ...]:
        """Of the stored tensor."""
        return tuple(parameter.shape) if self.part is None else self.part[0]


@dataclass(frozen=True)
class Conversion:
    """Stored tensors whose values stand in a live model in another order, not in a place each.

    Args:
        group: the tensors and transformers' conversion of them.
        targets: the parameters that they become.
    """

    group: Group
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Placements:
    """Where stored tensors stand in a live model.

    Args:
        places: by stored name.
        conversions: those that have no place of their own.
        strangers: stored tensors that have no place in the model → why.
        ignored: those that the model is known to do without.
    """

    places: Mapping[str, Placement]
    conversions: tuple[Conversion, ...]
    strangers: Mapping[str, str]
    ignored: frozenset[str] = frozenset()

    def parameters(self, name: str) -> tuple[str, ...]:
        """The live parameters that a stored tensor's values stand in."""
        if name in self.places:
            return (self.places[name].parameter,)
        return self._converted.get(name, ())

    @cached_property
    def _converted(self) -> dict[str, tuple[str, ...]]:
        return {name: one.targets for one in self.conversions for name in one.group.sources}


_known: WeakKeyDictionary[torch.nn.Module, tuple[dict, dict, Placements]] = WeakKeyDictionary()


def placements(model: torch.nn.Module, shapes: Shapes) -> Placements:
    """Where in a live model stored tensors belong; worked out once for each model.

    Args:
        model: alive, or without values (on the meta device).
        shapes: of the stored tensors, by name.
    """
    # A parameter may have been replaced by one of another shape (resized embeddings).
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    known = _known.get(model)
    if known is None or known[:2] != (own, dict(shapes)):
        known = (own, dict(shapes), _work_out(model, shapes))
        _known[model] = known
    return known[2]


class _Readable(Protocol):
    @property
    def shapes(self) -> Shapes: ...

    def read(self, stored: str, *, keep: bool) -> torch.Tensor: ...


def check_loaded(model: torch.nn.Module, stored: _Readable, place: str) -> None:
    """Refuse a freshly loaded model in which stored values are not where they are expected.

    Tensors that are placed whole under their own names are not looked at.

    Args:
        model: with the values that were just loaded.
        stored: the tensors.
        place: names the model in messages.

    Raises:
        CheckpointError: a renamed or converted tensor's values are not where they are expected.
    """
    placed, live = placements(model, stored.shapes), model.state_dict()
    wrong = []
    for name, where in placed.places.items():
        if where.part is None and where.parameter == name:
            continue
        if not _same(stored.read(name, keep=False), where.view(live[where.parameter])):
            wrong.append(name)
    for conversion in placed.conversions:
        group = conversion.group
        made = group.convert(model, {n: stored.read(n, keep=False) for n in group.sources})
        if not all(_same(made[name], live[name]) for name in conversion.targets):
            wrong += group.sources
    if wrong:
        problem = (
            f"transformers puts {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''} elsewhere "
            "than its list of conversions says, so that it cannot be merged in place"
        )
        raise CheckpointError([Fault(place, problem)])


def _same(stored: torch.Tensor, live: torch.Tensor) -> bool:
    cast = stored.to(live.device, live.dtype)
    return bool(torch.equal(cast, live) or torch.equal(cast.nan_to_num(), live.nan_to_num()))


def _work_out(model: torch.nn.Module, shapes: Shapes) -> Placements:
    live = {**model.state_dict(), **dict(model.named_buffers())}
    renamed, groups = grouped(model, shapes)
    places = {name: Placement(key) for name, key in renamed.items() if key in live}
    strangers = {name: "" for name, key in renamed.items() if key not in live}
    conversions = []
    parts: dict[object, list[tuple[int, Part]] | None] = {}
    for group in groups:
        made, why = _outline(group, model, shapes, live)
        if not made:
            strangers |= dict.fromkeys(group.sources, why)
            continue
        # Each layer's experts are converted alike: what was found out about one holds for all.
        sizes = tuple(shapes[name] for name in group.sources)
        kind = (group.kind, sizes, tuple(made.values()))
        if kind not in parts:
            parts[kind] = _parts(group, model, shapes)
        relative = parts[kind]
        if relative is None:
            conversions.append(Conversion(group, tuple(made)))
            continue
        for name, (target, part) in zip(group.sources, relative, strict=True):
            parameter = tuple(made)[target]
            whole = part[0] == made[parameter]
            # Only where it is turned does a part of the parameter's shape differ from all of it.
            contiguous = part[1] == torch.empty(part[0], device="meta").stride()
            places[name] = Placement(parameter, None if whole and contiguous else part)
    ignored = frozenset(name for name in strangers if is_ignored(model, name))
    strangers = {name: why for name, why in strangers.items() if name not in ignored}
    return Placements(places, tuple(conversions), strangers, ignored)


def _outline(
    group: Group, model: torch.nn.Module, shapes: Shapes, live: Mapping[str, torch.Tensor]
) -> tuple[dict[str, tuple[int, ...]], str]:
    """Names and shapes of the parameters that a group becomes, or none and the reason."""
    empty = {name: torch.empty(shapes[name], device="meta") for name in group.sources}
    try:
        made = {name: tuple(one.shape) for name, one in group.convert(model, empty).items()}
    except Exception as problem:  # transformers' operations raise whatever torch raises
        return {}, f"cannot be made part of {group.key}: {problem}"
    for name, shape in made.items():
        if name not in live:
            return {}, f"would become {name}, which is not there"
        if tuple(live[name].shape) != shape:
            there = f"which is {list(live[name].shape)} there"
            return {}, f"would become part of {name} in the shape {list(shape)}, {there}"
    return made, ""


def _parts(group: Group, model: torch.nn.Module, shapes: Shapes) -> list[tuple[int, Part]] | None:
    """For each source the number of its parameter and its part of it; None: they have no places.

    Random bytes go through the conversion, which is then undone by views.
    """
    random = np.random.default_rng(0)
    drawn = {
        name: torch.from_numpy(random.integers(0, 256, shapes[name], dtype=np.uint8))
        for name in group.sources
    }
    try:
        made = {name: one.contiguous() for name, one in group.convert(model, dict(drawn)).items()}
        views = group.views(model, made)
    except Exception:  # not every conversion can be undone, and each says so in its own way
        return None
    if len(drawn) == len(made) == 1:
        # Some conversions turn a tensor only where its shape asks for it, and do not turn it back.
        views = {name: _turned_like(values, *made.values()) for name, values in drawn.items()} | {
            name: view for name, view in views.items() if _equal(view, drawn[name])
        }
    owners = {one.untyped_storage().data_ptr(): n for n, one in enumerate(made.values())}
    found: list[tuple[int, Part]] = []
    for name, values in drawn.items():
        view = views.get(name)
        owner = None if view is None else owners.get(view.untyped_storage().data_ptr())
        if view is None or owner is None or not _equal(view, values):
            return None
        offset = int(view.storage_offset() - list(made.values())[owner].storage_offset())
        found.append((owner, (tuple(view.shape), view.stride(), offset)))
    return found


def _turned_like(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The parameter with two dimensions exchanged such that it equals the values, or as it is."""
    dims = range(parameter.dim())
    turned = (parameter.transpose(i, j) for i in dims for j in dims[i + 1 :])
    return next((view for view in turned if _equal(view, values)), parameter)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
