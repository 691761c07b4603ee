"""Genes: names, bounds, order, layer groups."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.space import Gene, SearchSpace
from evomerge.space.genes import layer_blocks
from evomerge.space.methods import PARAMETERS

from .conftest import Load
from .spaces import spaces

THREE = "models: [models/math, models/code, models/chat]"


def names(space: SearchSpace, num_layers: int = 8) -> list[str]:
    return [gene.name for gene in space.genes(num_layers)]


def test_parts_that_do_not_vary_are_left_out(load: Load, small: str) -> None:
    global_ = load(small.replace(THREE, "models: [models/math, models/code]"))
    assert names(global_) == ["weight/math", "weight/code", "density/math", "density/code"]
    layered = small.replace("density: [0.1, 1.0]", "layers: {groups: 2}\n  density: 0.5")
    assert names(load(layered.replace(THREE, "models: [models/math]"))) == [
        "weight/math/0",
        "weight/math/1",
    ]
    filtered = small.replace("density: [0.1, 1.0]", "filters: [mlp]\n  density: 0.5")
    assert names(load(filtered.replace(THREE, "models: [models/math]"))) == [
        "weight/math/mlp",
        "weight/math/rest",
    ]


def test_full_names_and_order(load: Load, small: str) -> None:
    text = small.replace("dare_ties", "della").replace(
        "density: [0.1, 1.0]",
        """layers: {size: 4}
  filters: [self_attn, mlp]
  weight: {code: [-1, 1], default: 0.5}
  density: {math: [0.2, 0.8], default: 1}
  epsilon: {chat: [0, 0.1], default: 0.1}
  lambda: {low: 0.5, high: 1.5, initial: 1}""",
    )
    space = load(text)
    parts = [f"{part}/{group}" for part in ("self_attn", "mlp", "rest") for group in (0, 1)]
    assert names(space) == [
        *(f"weight/code/{part}" for part in parts),
        *(f"density/math/{part}" for part in parts),
        *(f"epsilon/chat/{part}" for part in parts),
        "lambda",
    ]
    genes = {gene.name: gene for gene in space.genes(8)}
    assert genes["weight/code/mlp/1"] == Gene("weight/code/mlp/1", -1.0, 1.0, None)
    assert genes["lambda"] == Gene("lambda", 0.5, 1.5, 1.0)
    assert space.group_count(8) == 2


def test_random_starts_are_seeded_and_within_the_bounds(load: Load, small: str) -> None:
    text = small.replace("density: [", "weight: {math: [2, 3], default: [-1, 2]}\n  density: [")
    space = load(text + "search: {random_init: true}\n")
    starts = {gene.name: gene.initial for gene in space.genes(8)}
    assert starts == {gene.name: gene.initial for gene in space.genes(8)}
    assert len(set(starts.values())) == len(starts)
    for gene in space.genes(8):
        assert gene.initial is not None
        assert gene.low <= gene.initial <= gene.high
        assert gene.name == "weight/math" or 0 <= gene.initial <= 1
    other = load(text + "search: {random_init: true, seed: 1}\n")
    assert starts != {gene.name: gene.initial for gene in other.genes(8)}


def test_layers_that_do_not_fit_are_refused_with_the_line(load: Load, small: str) -> None:
    many = load(small.replace("density:", "layers: {groups: 9}\n  density:"))
    with pytest.raises(SpaceError, match=r"space\.yaml:5: genome\.layers\.groups: 9 is refused"):
        many.genes(8)
    uneven = load(small.replace("density:", "layers: {size: 3}\n  density:"))
    with pytest.raises(SpaceError, match=r"space\.yaml:5: genome\.layers\.size: 3 .* 1, 2, 4, 8"):
        uneven.genes(8)
    unread = SearchSpace.model_validate_json(many.model_dump_json())
    with pytest.raises(SpaceError, match=r"space\.yaml: genome\.layers\.groups: 9 is refused"):
        unread.genes(8)


@given(st.integers(1, 100), st.data())
def test_blocks_cover_the_layers_in_order_and_evenly(num_layers: int, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, num_layers))
    blocks = layer_blocks(num_layers, groups)
    covered = [layer for start, stop in blocks for layer in range(start, stop)]
    assert covered == list(range(num_layers))
    sizes = Counter(stop - start for start, stop in blocks)
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None, max_examples=100)
@given(spaces(), st.integers(4, 9))
def test_names_are_unique_stable_and_readable(space: SearchSpace, num_layers: int) -> None:
    found = names(space, num_layers)
    assert len(set(found)) == len(found) > 0
    again = SearchSpace.model_validate_json(space.model_dump_json())
    assert space.genes(num_layers) == again.genes(num_layers)
    for gene in space.genes(num_layers):
        assert gene.name.split("/")[0] in (*PARAMETERS, "merge_method")
        assert gene.low < gene.high
        assert gene.name.isprintable()


def test_automatic_groups(load: Load, small: str) -> None:
    """As many as give 32 genes at most, at least one, at most one for each layer."""
    few = load(small.replace("density:", "layers: auto\n  density:"))
    assert few.genome.layers.groups == "auto"
    each = len(load(small).genes(100))
    assert few.group_count(100) == 32 // each
    assert len(few.genes(100)) == each * (32 // each)
    assert few.group_count(3) == 3
    assert few.genes(3) == load(small.replace("density:", "layers: {groups: 3}\n  density:")).genes(
        3
    )
    long = load(small.replace("density:", "layers: {groups: auto, smooth: true}\n  density:"))
    assert long.genes(100) == few.genes(100)
    assert long.genome.layers.smooth


def test_automatic_groups_need_slopes(load: Load, small: str) -> None:
    text = small.replace("density:", "layers: auto\n  density:") + "search: {sampler: tpe}\n"
    told = r"space\.yaml:\d+: genome\.layers: 'auto' needs slopes, and tpe takes none; write groups"
    with pytest.raises(SpaceError, match=told):
        load(text)
    with pytest.raises(SpaceError, match=r"groups: 'many' is refused: must be a whole"):
        load(small.replace("density:", "layers: {groups: many}\n  density:"))
