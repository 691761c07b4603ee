"""Tensors are merged in pieces, in place, with a memory: none of it changes a bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints import Checkpoint
from evomerge.merging import MergeEngine, merge, taskvectors
from evomerge.merging.taskvectors import Memory
from evomerge.recipe import Contribution, TensorMerge
from evomerge.references import ModelReference
from tests.merging.reference import expected
from tests.merging.worlds import METHODS, Family, bits, recipe_of, same_bits

WEIGHTS = (0.5, -0.25, 1.0)


def spec_of(method: str, density: float = 0.4, epsilon: float = 0.125) -> TensorMerge:
    known = METHODS[method]
    gamma = 0.1 if known.sparsifier == "outliers" else 0.0
    parts = tuple(
        Contribution(ModelReference(f"m{i}"), f"m{i}", "w", weight, density, epsilon, gamma)
        for i, weight in enumerate(WEIGHTS)
    )
    base = (ModelReference("base"), "w") if known.needs_base else None
    return TensorMerge("w", method, base, parts, known.normalize, known.rescale, 0.75, 0)


def drawn(shape: tuple[int, ...], values: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """A base and three models; with few ``values`` most magnitudes are equal."""
    random = torch.Generator().manual_seed(values)
    return [
        (torch.randint(-values, values + 1, shape, generator=random) / 64).to(dtype)
        for _ in range(4)
    ]


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(sorted(METHODS)),
    shape=st.sampled_from([(37, 29), (1073,), (1000, 1), (1, 999), (3, 7, 41)]),
    tile=st.sampled_from([1, 64, 100, 1024]),
    values=st.sampled_from([1, 3, 1000]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    density=st.floats(0.15, 0.85),
)
def test_pieces_of_any_size_give_the_definition(
    method: str,
    shape: tuple[int, ...],
    tile: int,
    values: int,
    dtype: torch.dtype,
    density: float,
) -> None:
    spec = spec_of(method, density)
    base, *tensors = drawn(shape, values, dtype)
    given_base = base if spec.base else None
    whole = merge(spec, given_base, tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(taskvectors.TILES, "cpu", tile)
        cut = merge(spec, given_base, tensors)
    expected(spec, given_base, tensors).check(cut)
    assert torch.equal(bits(cut), bits(whole))


@pytest.mark.parametrize("budget", [0, 20_000, 1 << 20])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_memory_of_any_size_changes_no_bit(method: str, budget: int) -> None:
    memory = Memory(budget)
    base, *tensors = drawn((33, 70), 5, torch.bfloat16)
    for density in (0.3, 0.7, 0.3):
        spec = spec_of(method, density)
        given_base = base if spec.base else None
        plain = merge(spec, given_base, tensors)
        assert torch.equal(bits(merge(spec, given_base, tensors, memory=memory)), bits(plain))
    assert memory.nbytes <= budget
    if METHODS[method].sparsifier == "magprune" and budget > 20_000:
        assert memory.nbytes >= 3 * base.numel()


def test_a_memory_keeps_seeds_apart() -> None:
    memory = Memory()
    base, *tensors = drawn((33, 70), 5, torch.float32)
    for seed in (0, 1, 0):
        spec = TensorMerge(**{**spec_of("della").__dict__, "mask_seed": seed})
        plain = merge(spec, base, tensors)
        assert torch.equal(merge(spec, base, tensors, memory=memory), plain)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_is_made_where_it_goes(method: str, dtype: torch.dtype) -> None:
    spec = spec_of(method)
    base, *tensors = drawn((40, 50), 1000, torch.bfloat16)
    given_base = base if spec.base else None
    out = torch.full((40, 50), torch.nan)
    made = merge(spec, given_base, tensors, dtype=dtype, out=out)
    assert made is out
    assert torch.equal(out, merge(spec, given_base, tensors).to(dtype).float())


def test_a_live_models_storage_stays_its_own(family: Family) -> None:
    engine = MergeEngine(str(family.base), [str(path) for path in family.tuned])
    live = Checkpoint.open(str(family.base)).load_model()
    turned = torch.empty(30, 16).t().contiguous().t()
    live.lm_head.weight.data = turned
    places = {name: tensor.data_ptr() for name, tensor in live.named_parameters()}
    recipe = recipe_of(family, "dare_ties")
    for _ in range(2):
        engine.merge_into(live, recipe)
        assert places == {name: tensor.data_ptr() for name, tensor in live.named_parameters()}
        same_bits(dict(live.named_parameters()), dict(engine.tensors(recipe)))
    assert not live.lm_head.weight.is_contiguous()


def test_a_huge_weight_is_infinite_not_an_exception() -> None:
    base, *tensors = drawn((4, 4), 1000, torch.float32)
    for method in ("task_arithmetic", "ties", "linear"):
        spec = spec_of(method)
        parts = tuple(
            Contribution(p.model, p.label, "w", 1e300, 1.0, 0.0) for p in spec.contributions
        )
        spec = TensorMerge(**{**spec.__dict__, "contributions": parts, "normalize": False})
        merged = merge(spec, base if spec.base else None, tensors)
        assert not torch.isfinite(merged).all()
