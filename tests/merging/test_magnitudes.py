"""The largest elements: counted and kept, or found at once, they are those of a sorted list."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import magnitudes
from evomerge.merging.magnitudes import ALL, NONE, Largest, Magnitudes, select
from evomerge.merging.ranks import rank_rows
from evomerge.merging.taskvectors import TaskVector
from tests.merging.reference import unsigned


def kept(found: Largest, numbers: torch.Tensor) -> torch.Tensor:
    index = torch.arange(len(numbers))
    limits = torch.tensor([found.limit, found.later])
    return numbers >= torch.where(index <= found.last, limits[0], limits[1])


def plain(numbers: torch.Tensor, wanted: int) -> torch.Tensor:
    values = numbers.tolist()
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    keep = torch.zeros(len(values), dtype=torch.bool)
    keep[order[:wanted]] = True
    return keep


@settings(max_examples=300, deadline=None)
@given(
    numel=st.integers(1, 400),
    values=st.sampled_from([1, 2, 5, 10_000]),
    share=st.floats(0, 1),
    stretches=st.sampled_from([1, 7, 64]),
    seed=st.integers(0, 99),
)
def test_the_largest_are_those_of_a_sorted_list(
    numel: int, values: int, share: float, stretches: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    tensor = torch.randint(-values, values + 1, (numel,), generator=random) / 64
    sizes = TaskVector(None, tensor).sizes
    wanted = max(1, round(share * numel))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(magnitudes, "_STRETCHES", stretches)
        patch.setattr(magnitudes, "_SHORTEST", 1)
        patch.setattr(magnitudes, "_SPARSE", 2)
        counted = Magnitudes(sizes, numel)
    expected = plain(tensor.abs(), wanted)
    assert torch.equal(kept(counted.largest(wanted, sizes), tensor.abs()), expected)
    assert torch.equal(kept(select(sizes, numel, wanted), tensor.abs()), expected)


def test_few_magnitudes_are_kept_in_little_memory_and_many_not_at_all() -> None:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(1 << 20, generator=random) * 0.02
    tuned = (base + torch.randn(1 << 20, generator=random) * 0.001).bfloat16()
    few = TaskVector(base.bfloat16(), tuned).sizes
    counted = Magnitudes(few, 1 << 20)
    assert counted.sparse
    assert 0 < counted.nbytes < (1 << 20) / 2
    for wanted in (1, 300_000, 999_999, 1 << 20):
        one, other = counted.largest(wanted, few), select(few, 1 << 20, wanted)
        assert int(kept(one, few(0, 1 << 20)).sum()) == wanted
        assert torch.equal(kept(one, few(0, 1 << 20)), kept(other, few(0, 1 << 20)))
    many = TaskVector(None, base).sizes
    assert not Magnitudes(many, 1 << 20).sparse


def test_all_and_none() -> None:
    numbers = torch.tensor([0.0, 3.0])
    assert kept(ALL, numbers).all()
    assert not kept(NONE, numbers).any()


@pytest.mark.parametrize("row", [1, 2, 200, 256, 257, 5000, 1 << 16, 70_000])
def test_ranks_are_those_of_a_stable_sort(row: int) -> None:
    random = torch.Generator().manual_seed(row)
    tensor = torch.randint(-40, 41, (3, row), generator=random) / 64
    found = unsigned(rank_rows(TaskVector(None, tensor).sizes, 3 * row, row, tensor.device))
    order = tensor.abs().argsort(dim=1, stable=True)
    expected = torch.empty_like(order)
    expected.scatter_(1, order, torch.arange(row).expand(3, row))
    assert torch.equal(found.view(3, row), expected)
