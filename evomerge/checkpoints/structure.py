"""Where a model's repeated layers stand, found from the model itself.

A model is built without values from its configuration; its layers are the list of repeated blocks
that stands nearest to the input embeddings of its tokens (a vision tower's stands farther away).
Where a model cannot be built (it brings code of its own that is not trusted), names have to tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

import torch

from evomerge.checkpoints.placing import Placements

# What comes before the first layer: input embeddings of tokens, positions and types, their norm.
_FIRST = re.compile(
    r"(embed|wte|wpe|word_embeddings|position_embeddings|token_type)", re.IGNORECASE
)
_HEADS = re.compile(r"(embed_out|lm_head|cls\.|score|classifier)")
# Some models list what follows the layers before them.
_FINAL = re.compile(r"(norm|ln_f|final|project_out)", re.IGNORECASE)
# Other stacks than the text's, where only names tell.
_SENSES = re.compile(r"(vision|visual|image|audio|speech)", re.IGNORECASE)


@dataclass(frozen=True)
class Structure:
    """Which tensors belong to which layer.

    Args:
        stems: what stands before the layer's number in the names of the layers' tensors, with its
            dot (``model.layers.``).
        num_layers: how many layers there are.
        last: the tensors outside the layers that come after them (final norm, output head).
    """

    stems: frozenset[str]
    num_layers: int
    last: frozenset[str]

    def layer(self, name: str) -> int | None:
        """The layer that a tensor belongs to; None outside of them."""
        for stem in self.stems:
            if name.startswith(stem):
                number = name[len(stem) :].partition(".")[0]
                if number.isdecimal() and number == str(int(number)):
                    return int(number)
        return None


def find_structure(model: torch.nn.Module, placed: Placements) -> Structure | None:
    """The layers of a model, in the names of its stored tensors.

    Args:
        model: built from the configuration, without values.
        placed: where the stored tensors belong in it.

    Returns:
        None where the model has no list of blocks, or the stored names do not number them as it
        does.
    """
    stacks = _stacks(model)
    if not stacks:
        return None
    stems, found, outside = set(), set(), {}
    for name in (*placed.places, *(n for c in placed.conversions for n in c.group.sources)):
        parameters = placed.parameters(name)
        layers = {_number(one, stacks) for one in parameters}
        layer = layers.pop() if len(layers) == 1 else None
        if layer is None:
            outside[name] = parameters[0]
            continue
        before, numbered, _ = f".{name}.".partition(f".{layer}.")
        if not numbered:
            return None
        stems.add(f"{before}."[1:])
        found.add(layer)
    count = len(stacks[0][1])
    if found != set(range(count)):
        return None
    order = {name: n for n, name in enumerate(model.state_dict())}
    start = min(order[name] for name in order if _number(name, stacks) is not None)
    last = (n for n, one in outside.items() if _is_last(one, stacks[0][0], order, start))
    return Structure(frozenset(stems), count, frozenset(last))


def structure_by_names(names: Iterable[str], num_layers: int) -> Structure:
    """The same, guessed from the tensors' names alone: a layer's number is the first in its name.

    Args:
        names: of the stored tensors.
        num_layers: how many layers there are.
    """
    stems, outside = set(), []
    for name in names:
        numbered = re.search(r"(?:^|\.)(0|[1-9]\d*)(?:\.|$)", name)
        stem = name[: numbered.start(1)] if numbered else ""
        if numbered and int(numbered[1]) < num_layers and not _SENSES.search(stem):
            stems.add(stem)
        else:
            outside.append(name)
    last = (n for n in outside if _HEADS.search(n) or not (_FIRST.search(n) or _SENSES.search(n)))
    return Structure(frozenset(stems), num_layers, frozenset(last))


def told_by_names(names: Iterable[str], num_layers: int) -> Structure | None:
    """The same where names leave no doubt; None where the model has to be asked.

    They leave none where there is one series of blocks, of the configuration's length, and all
    else is plainly embeddings, a final norm or a head. Asking costs seconds of imports.

    Args:
        names: of the stored tensors.
        num_layers: by the configuration.
    """
    found = structure_by_names(names, num_layers)
    (stem, *others) = found.stems or ("",)
    rest = [name for name in names if not stem or not name.startswith(stem)]
    layers = {found.layer(name) for name in names} - {None}
    plain = all(p.search(name) is None for name in names for p in (_SENSES,)) and all(
        _FIRST.search(name) or _HEADS.search(name) or _FINAL.search(name) for name in rest
    )
    whole = layers == set(range(num_layers)) and num_layers > 0
    return found if plain and whole and not others and stem else None


def _stacks(model: torch.nn.Module) -> list[tuple[str, torch.nn.ModuleList]]:
    """The lists of the text's layers with their names, the largest first; usually one.

    Several where a model has an encoder and a decoder of equally many layers.
    """
    embedding = _embedding(model)
    ranked = []
    for name, blocks in _lists(model, ""):
        pairs = zip(name.split("."), embedding.split("."), strict=False)
        near = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        size = sum(parameter.numel() for parameter in blocks.parameters())
        ranked.append((near, size, name, blocks))
    ranked.sort(key=lambda one: one[:2], reverse=True)
    return [
        (name, blocks)
        for near, size, name, blocks in ranked
        if size and near == ranked[0][0] and len(blocks) == len(ranked[0][3])
    ]


def _lists(module: torch.nn.Module, name: str) -> Iterator[tuple[str, torch.nn.ModuleList]]:
    """Lists of modules that are in no other such list."""
    if isinstance(module, torch.nn.ModuleList):
        if len(module):
            yield name, module
        return
    for own, child in module.named_children():
        yield from _lists(child, f"{name}.{own}" if name else own)


def _embedding(model: torch.nn.Module) -> str:
    """The name of the module that embeds tokens; an empty one where the model does not say."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return ""
    return next((name for name, one in model.named_modules() if one is embedding), "")


def _number(parameter: str, stacks: Iterable[tuple[str, torch.nn.ModuleList]]) -> int | None:
    for name, _ in stacks:
        if parameter.startswith(f"{name}."):
            return int(parameter[len(name) + 1 :].partition(".")[0])
    return None


def _is_last(parameter: str, stack: str, order: dict[str, int], start: int) -> bool:
    if _HEADS.search(parameter):
        return True
    if _FIRST.search(parameter):
        return False
    if order.get(parameter, 0) > start:
        return True
    parent = stack.rpartition(".")[0]
    own = parameter.removeprefix(f"{parent}.") if parent else parameter
    return own.count(".") == 1 and bool(_FINAL.search(own))
