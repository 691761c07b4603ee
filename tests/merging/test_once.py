"""What is found out for a single merge: thresholds from a bracket, ranks from packed integers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from evomerge.merging.magnitudes import select
from evomerge.merging.once import made_ahead
from evomerge.merging.ranks import rank_rows
from evomerge.merging.taskvectors import TaskVector
from tests.merging.reference import unsigned


def _ranks(sizes: torch.Tensor) -> torch.Tensor:
    flat, row = sizes.reshape(-1), sizes.shape[1]
    ranks = rank_rows(lambda a, b: flat[a:b], flat.numel(), row, flat.device)
    return unsigned(ranks).view(sizes.shape)


@pytest.mark.parametrize("row", [1, 2, 3, 257, 1000, 4096, 5000])
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "wide", "close", "zeros"])
def test_ranks_are_those_of_a_stable_sort_whatever_the_bits(row: int, kind: str) -> None:
    chance = torch.Generator().manual_seed(row)
    sizes = torch.rand((9, row), generator=chance)
    if kind == "bfloat16":
        sizes = sizes.to(torch.bfloat16).float()
    elif kind == "wide":  # beyond the halvings that the packed bits reach down to
        sizes = sizes * 2.0 ** -torch.randint(0, 90, sizes.shape, generator=chance)
    elif kind == "close":  # differ in the bits that are left out alone
        sizes = 1 + torch.randint(0, 40, sizes.shape, generator=chance) * 2.0**-23
    elif kind == "zeros":
        sizes = torch.where(sizes < 0.5, 0.0, sizes * 1e-38)
    expected = sizes.argsort(dim=1, stable=True).argsort(dim=1)
    assert torch.equal(_ranks(sizes), expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("row", [200, 1000])
def test_ranks_are_the_same_however_many_threads_share_the_rows(row: int, threads: int) -> None:
    """Among them rows that the packed bits decide, and such as they leave open."""
    chance = torch.Generator().manual_seed(row)
    sizes = torch.rand((700, row), generator=chance).to(torch.bfloat16).float()
    close = 1 + torch.randint(0, 40, (70, row), generator=chance) * 2.0**-23
    sizes[::10] = close
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = _ranks(sizes)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, sizes.argsort(dim=1, stable=True).argsort(dim=1))


def test_threads_to_come_have_as_many_of_torchs_as_before() -> None:
    sizes = torch.rand((700, 1000))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        _ranks(sizes)
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_what_takes_more_than_half_of_the_room_has_all_threads() -> None:
    """It would else keep one core busy, and the rest idle."""
    seen = dict(
        made_ahead(
            [1, 9, 2, 4, 5], lambda _: torch.get_num_threads(), lambda x: x, room=8, threads=3
        )
    )
    assert seen == {1: 1, 9: 3, 2: 1, 4: 1, 5: 3}


@pytest.mark.parametrize("kind", ["bfloat16", "float32", "ascending", "lump", "equal"])
@pytest.mark.parametrize("numel", [1, 2, 4097, 300_001])
def test_a_selection_is_that_of_a_stable_sort_whatever_the_sample_says(
    numel: int, kind: str
) -> None:
    chance = torch.Generator().manual_seed(numel)
    tensor = torch.randn(numel, generator=chance)
    if kind == "bfloat16":
        tensor = tensor.to(torch.bfloat16)
    elif kind == "ascending":
        tensor = tensor.abs().sort().values
    elif kind == "lump":  # no sample sees the largest ones
        tensor[numel // 2 : numel // 2 + 3] = 100
    elif kind == "equal":
        tensor = torch.full((numel,), -0.5)
    sizes = tensor.float().abs()
    order = sizes.argsort(descending=True, stable=True)
    for wanted in {1, min(3, numel), max(1, numel // 3), numel}:
        found = select(TaskVector(None, tensor).sizes, numel, wanted)
        assert found.limit == sizes[order[wanted - 1]]
        last = (sizes[order[:wanted]] == found.limit).nonzero()[:, 0]
        assert found.last == int(order[:wanted][last].max())
