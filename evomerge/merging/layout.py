"""Where each tensor of a model stands: in which layer, before the layers or after them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evomerge.checkpoints import Checkpoint, Structure, is_head, structure_by_names
from evomerge.recipe import Layout, Recipe


def layout_of(
    checkpoint: Checkpoint, names: Iterable[str] | None = None, num_layers: int | None = None
) -> Layout:
    """The layout of a stored model, or of one made of it.

    Args:
        checkpoint: any causal or encoder model. Of several stacks (a vision tower beside the
            text's) the text's layers count; the others' tensors come before the first layer.
        names: the tensors, where layers were moved or stacked; None: the stored ones.
        num_layers: how many layers there are then; None: as many as are stored.
    """
    count = checkpoint.num_layers if num_layers is None else num_layers
    return _layout(checkpoint.names if names is None else names, count, checkpoint.structure)


def make_layout(names: Iterable[str], num_layers: int) -> Layout:
    """The layout of tensors of these names in a model with so many layers, where only names tell.

    A layer's tensors have its number as the first integer component of their names.
    """
    names = tuple(names)
    return _layout(names, num_layers, structure_by_names(names, num_layers))


def stacked(recipe: Recipe, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers that a merged model's layers are made like.

    Args:
        recipe: may move and repeat layers.
        layers: for each layer of the recipe's first model the one that it is made like.
    """
    after: list[int] = []
    for block in recipe.blocks:
        base = recipe.base_of(block)
        lead = next((one for one in block.sources if one.model == base), block.sources[0])
        after += layers[slice(*lead.layers)] if lead.layers else layers
    return tuple(after)


def _layout(names: Iterable[str], num_layers: int, structure: Structure) -> Layout:
    tensors: dict[str, int | None] = {}
    for name in names:
        layer = structure.layer(name)
        # Stored beyond the last layer: heads that predict further tokens.
        tensors[name] = layer if layer is not None and layer < num_layers else None
    outside = {name for name, layer in tensors.items() if layer is None}
    # Also a head that the stored model does not have as a tensor of its own.
    beyond = {name for name in outside if structure.layer(name) is not None or is_head(name)}
    return Layout(tensors, frozenset((structure.last & outside) | beyond), num_layers)
