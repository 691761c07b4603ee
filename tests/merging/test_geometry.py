"""slerp, nuslerp, model_stock, sce: against float64, where one answer is right, and mergekit's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evomerge.merging import merge, selection, taskvectors
from evomerge.merging.methods import merge_bounded
from evomerge.merging.products import Fibres, products
from evomerge.merging.taskvectors import Memory
from evomerge.recipe import Contribution, TensorMerge
from evomerge.references import ModelReference
from tests.merging.reference_geometry import expected
from tests.merging.worlds import Family, bits, run_mergekit, stored

METHODS = ("slerp", "nuslerp", "model_stock", "sce")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
BASE = (ModelReference("base"), "w")
SHAPES = st.one_of(
    st.just(()),
    st.integers(0, 70).map(lambda n: (n,)),
    st.tuples(st.integers(0, 9), st.integers(0, 33)),
    st.tuples(st.integers(1, 40), st.just(1)),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7)),
)


def spec_of(
    method: str, weights: Sequence[float] = (1.0,), *, base: bool = True, **changes: Any
) -> TensorMerge:
    parts = tuple(
        Contribution(ModelReference(f"m{i}"), f"m{i}", "w", weight, 1.0, 0.0)
        for i, weight in enumerate(weights)
    )
    made = TensorMerge("w", method, BASE if base else None, parts, False, False, 1.0, 0)
    return replace(made, **changes)


def every_spec() -> list[TensorMerge]:
    """Each method in each of its ways."""
    switches = ({"flatten": True}, {"flatten": False}, {"flatten": False, "row_wise": True})
    return [
        *(spec_of("slerp", t=t) for t in (0.3, 0.8)),
        *(spec_of("nuslerp", (0.4, 0.7), base=b, **way) for b in (True, False) for way in switches),
        *(spec_of("model_stock", (1.0,) * 3, filter_wise=way) for way in (True, False)),
        *(spec_of("sce", (1.0,) * 3, select_topk=share) for share in (0.1, 0.6, 1.0)),
    ]


EVERY = every_spec()
NAMES = [f"{s.method}-{i}" for i, s in enumerate(EVERY)]


def models(
    shape: tuple[int, ...],
    count: int,
    seed: int,
    *,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """A base and ``count`` models that differ from it by normal numbers of this spread."""
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=random)
    changes = [torch.randn(shape, generator=random) * spread for _ in range(count)]
    return [tensor.to(dtype) for tensor in (base, *(base + change for change in changes))]


def inputs(spec: TensorMerge, drawn: list[torch.Tensor]) -> tuple[torch.Tensor | None, Any]:
    return (drawn[0] if spec.base else None), drawn[1 : len(spec.contributions) + 1]


@st.composite
def specs(draw: st.DrawFn) -> TensorMerge:
    method = draw(st.sampled_from(METHODS))
    if method == "slerp":
        return spec_of(method, t=draw(st.floats(-0.5, 1.5)))
    if method == "nuslerp":
        weights = draw(st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
        ways = {name: draw(st.booleans()) for name in ("flatten", "row_wise")}
        assume(abs(sum(weights)) > 0.01 or sum(weights) == 0)
        return spec_of(method, weights, base=draw(st.booleans()), **ways)
    ones = (1.0,) * draw(st.integers(2 if method == "model_stock" else 1, 5))
    if method == "model_stock":
        return spec_of(method, ones, filter_wise=draw(st.booleans()))
    return spec_of(method, ones, select_topk=draw(st.sampled_from([0.05, 0.3, 0.5, 0.99, 1.0])))


@settings(max_examples=600, deadline=None)
@given(
    spec=specs(),
    shape=SHAPES,
    dtype=st.sampled_from(TYPES),
    spread=st.sampled_from([1.0, 0.02, 1e-3]),
    seed=st.integers(0, 10**6),
)
def test_every_method_is_its_definition(
    spec: TensorMerge, shape: tuple[int, ...], dtype: torch.dtype, spread: float, seed: int
) -> None:
    drawn = models(shape, len(spec.contributions), seed, spread=spread, dtype=dtype)
    held = [tensor.clone() for tensor in drawn]
    base, tensors = inputs(spec, drawn)
    right = expected(spec, base, tensors)
    assume(not right.brittle)
    merged = merge(spec, base, tensors)
    assert merged.dtype == torch.float32
    assert merged.shape == drawn[0].shape
    right.check(merged)
    for tensor, before in zip(drawn, held, strict=True):
        assert torch.equal(tensor, before), "inputs are not written to"


@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
@pytest.mark.parametrize("shape", [(300, 929), (280001,), (3, 70000)])
def test_larger_tensors_too(spec: TensorMerge, shape: tuple[int, ...]) -> None:
    base, tensors = inputs(spec, models(shape, 3, 0, spread=0.1))
    right = expected(spec, base, tensors)
    right.check(merge(spec, base, tensors))
    assert int(right.undecided.sum()) < 10


@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
def test_neither_tiles_nor_threads_nor_a_memory_change_a_bit(spec: TensorMerge) -> None:
    base, tensors = inputs(spec, models((430, 701), 3, 1, spread=0.1, dtype=torch.bfloat16))
    plain = merge(spec, base, tensors)
    memory = Memory()
    torch.set_num_threads(2)
    try:
        made = [merge(spec, base, tensors, memory=memory) for _ in range(2)]
    finally:
        torch.set_num_threads(1)
    for tile in (1, 5000, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(taskvectors.TILES, "cpu", tile)
            if tile > 1:
                made.append(merge(spec, base, tensors))
            else:
                small = [x[:9, :11] for x in tensors]
                first = None if base is None else base[:9, :11]
                cut = merge(spec, first, small)
    assert torch.equal(bits(cut), bits(merge(spec, first, small)))
    for other in made:
        assert torch.equal(bits(other), bits(plain))


def test_a_memory_keeps_candidates_apart() -> None:
    memory = Memory()
    base, *tensors = models((33, 70), 3, 2, dtype=torch.bfloat16)
    for spec in [*EVERY, *reversed(EVERY), spec_of("sce", (1.0,) * 2, select_topk=0.6), *EVERY]:
        start, given_tensors = inputs(spec, [base, *tensors])
        kept = merge(spec, start, given_tensors, memory=memory)
        assert torch.equal(bits(kept), bits(merge(spec, start, given_tensors)))


@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
def test_float16_sums_do_not_overflow(spec: TensorMerge) -> None:
    drawn = [x * 20000 for x in models((50, 60), 3, 3, spread=0.5, dtype=torch.float32)]
    base, tensors = inputs(spec, [x.clamp(-65000, 65000).half() for x in drawn])
    merged = merge(spec, base, tensors)
    assert torch.isfinite(merged).all()
    expected(spec, base, tensors).check(merged)


# Where only one answer is right, bit for bit.


@pytest.mark.parametrize("dtype", TYPES)
def test_the_ends_of_the_way_are_the_models(dtype: torch.dtype) -> None:
    base, one, other = models((20, 30), 2, 4, dtype=dtype)
    base[0], one[0], other[0] = -0.0, -0.0, -0.0
    for spec, models_, right in (
        (spec_of("slerp", t=0.0), [one], base),
        (spec_of("slerp", t=1.0), [one], one),
        (spec_of("slerp", ()), [], base),
        (spec_of("model_stock", ()), [], base),
        (spec_of("sce", ()), [], base),
        (spec_of("sce", select_topk=1.0), [one], one),
        (spec_of("sce", (1.0, 1.0), select_topk=0.0), [one, other], base),
        (spec_of("sce", (1.0,), select_topk=0.5), [one], base),
        *((spec_of("nuslerp", (0.3, 0.0), flatten=f), [one, other], one) for f in (True, False)),
        *((spec_of("nuslerp", (0.0, 0.3), flatten=f), [one, other], other) for f in (True, False)),
    ):
        merged = merge(spec, base if spec.base else None, models_, dtype=dtype)
        assert torch.equal(bits(merged), bits(right)), spec


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("spec", [s for s in EVERY if s.select_topk == 1], ids=lambda s: s.method)
def test_models_that_are_all_the_same_give_that_model(
    spec: TensorMerge, dtype: torch.dtype
) -> None:
    base, one = models((20, 30), 1, 5, dtype=dtype)
    if spec.method == "slerp":
        base = one
    start, tensors = inputs(spec, [base, one, one.clone(), one.clone()])
    merged = merge(spec, start, tensors, dtype=dtype)
    assert torch.equal(merged, one)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
def test_models_that_are_the_base_give_the_base(spec: TensorMerge, dtype: torch.dtype) -> None:
    (base,) = models((20, 30), 0, 6, dtype=dtype)
    start, tensors = inputs(spec, [base] * 4)
    assert torch.equal(merge(spec, start, tensors, dtype=dtype), base)


@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (0, 4), (4, 0), (1, 1), (5, 1), (1, 5), (2, 1, 3)]
)
def test_shapes_at_the_edge(spec: TensorMerge, shape: tuple[int, ...]) -> None:
    base, tensors = inputs(spec, models(shape, 3, 7))
    merged = merge(spec, base, tensors)
    assert merged.shape == shape
    expected(spec, base, tensors).check(merged)


@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
def test_zeros_are_zeros(spec: TensorMerge) -> None:
    zero = torch.zeros(4, 5)
    start, tensors = inputs(spec, [zero] * 4)
    assert torch.equal(merge(spec, start, tensors), zero)


def test_known_arcs() -> None:
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 5.0])
    half = math.sqrt(0.5)
    made = merge(spec_of("slerp", t=0.5), x, [y])
    assert made.tolist() == pytest.approx([3 * half, 5 * half])
    # 30 of 90 degrees.
    made = merge(spec_of("nuslerp", (2.0, 1.0), base=False), None, [x, y])
    assert made.tolist() == pytest.approx([3 * math.sqrt(3) / 2, 2.5])
    base = torch.tensor([10.0, 20.0])
    made = merge(spec_of("nuslerp", (2.0, 1.0)), base, [base + x, base + y])
    assert made.tolist() == pytest.approx([10 + 3 * math.sqrt(3) / 2, 22.5])
    # Weights that cancel: the middle.
    made = merge(spec_of("nuslerp", (1.0, -1.0), base=False), None, [x, y])
    assert made.tolist() == pytest.approx([3 * half, 5 * half])


@pytest.mark.parametrize("factor", [3.0, -3.0, -1.0, 0.1])
def test_vectors_on_a_line_are_interpolated_linearly(factor: float) -> None:
    (x,) = models((6, 50), 0, 8)
    y, t = x * factor, 0.25
    straight = 0.75 * x.double() + 0.25 * y.double()
    made = [merge(spec_of("slerp", t=t), x, [y])]
    for way in ({"flatten": True}, {"flatten": False}, {"flatten": False, "row_wise": True}):
        made.append(merge(spec_of("nuslerp", (0.75, 0.25), base=False, **way), None, [x, y]))
        made.append(merge(spec_of("nuslerp", (0.75, 0.25), **way), torch.zeros_like(x), [x, y]))
    for merged in made:
        assert torch.allclose(merged.double(), straight, rtol=1e-6, atol=1e-6)


def test_a_zero_vector_stands_at_a_right_angle() -> None:
    x, zero = torch.tensor([1.0, 2.0]), torch.zeros(2)
    for merged in (
        merge(spec_of("slerp", t=1 / 3), zero, [x]),
        merge(spec_of("nuslerp", (2.0, 1.0), base=False), None, [zero, x]),
        merge(spec_of("nuslerp", (2.0, 1.0)), zero, [zero, x]),
    ):
        assert merged.tolist() == pytest.approx([0.5, 1.0])


def test_tiny_vectors_have_no_direction() -> None:
    """mergekit divides by norms of at least 1e-7 (nuslerp) or, up to 1e-8, by 1 (slerp)."""
    pytest.importorskip("mergekit")
    x, y = torch.tensor([6e-9, 0.0]), torch.tensor([3e-9, 3e-9])
    for scale, spec in (
        (1.0, spec_of("slerp", t=0.25)),
        (10.0, spec_of("nuslerp", (0.75, 0.25), base=False)),
        (10.0, spec_of("nuslerp", (0.75, 0.25))),
    ):
        start = x * scale if spec.method == "slerp" else torch.zeros(2)
        tensors = [y * scale] if spec.method == "slerp" else [x * scale, y * scale]
        base = start if spec.base else None
        merged = merge(spec, base, tensors)
        right = expected(spec, base, tensors)
        right.check(merged)
        replace(right, value=mergekit_of(spec, base, tensors, torch.float64)).check(merged)


def test_nearly_opposite_models_leave_the_base() -> None:
    base, one, other = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.4e-4])
    assert torch.equal(merge(spec_of("model_stock", (1.0, 1.0)), base, [one, other]), base)


@pytest.mark.parametrize("fibres", [Fibres.whole, Fibres.last, Fibres.first])
@pytest.mark.parametrize("shape", [(1 << 18,), (4, 200_000), (700, 801), (200_000, 3)])
def test_sums_do_not_depend_on_threads(
    fibres: Callable[[Sequence[int]], Fibres], shape: tuple[int, ...]
) -> None:
    x, y = (tensor.reshape(-1) for tensor in models(shape, 1, 13))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            seen = fibres(shape)
            found.append(products(lambda a, b: [x[a:b], y[a:b]], [(0, 1), (0, 0)], seen))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(bits(found[0]), bits(found[1]))
    whole = (x.double() * y.double()).sum()
    assert float(found[0][0].sum()) == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("filter_wise", [True, False])
def test_models_that_pull_apart_leave_the_base(filter_wise: bool) -> None:
    base, change = models((4, 8), 1, 9)
    change = (change * 64).round() / 64  # exact sums
    base = (base * 64).round() / 64
    spec = spec_of("model_stock", (1.0, 1.0), filter_wise=filter_wise)
    merged = merge(spec, base, [base + change, base - change])
    assert torch.equal(bits(merged), bits(base))
    other = torch.zeros_like(base)
    other[:, ::2], change[:, ::2] = change[:, ::2], 0.0  # at a right angle
    assert torch.equal(merge(spec, base, [base + change, base + other]), base)
    # Also where the models are so much larger that float32 loses the base in the difference.
    small, large = torch.full((3, 2), 1e-3), torch.full((3, 2), 1e-3)
    small[:2, 0], large[:2, 1] = 1e6, 1e6
    base = torch.full((3, 2), 1e-3)
    assert torch.equal(merge(spec, base, [small, large]), base)


def test_model_stock_is_between_base_and_mean() -> None:
    base = torch.zeros(2)
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.5, math.sqrt(0.75)])
    # cos 60° = 0.5: t = 2·0.5 / 1.5 = 2/3.
    merged = merge(spec_of("model_stock", (1.0, 1.0)), base, [one, other])
    assert merged.tolist() == pytest.approx([0.5, math.sqrt(0.75) / 3])


def test_sce_selects_weighs_and_erases() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    one = base + torch.tensor([4.0, 1.0, -2.0, 0.0])
    other = base + torch.tensor([2.0, 1.0, 1.0, 0.0])
    # Variances 1, 0, 2.25, 0: of the two that vary one is selected, then both.
    for share, right in ((0.5, [1, 1, -1, 1]), (0.99, [1, 1, -1, 1])):
        merged = merge(spec_of("sce", (1.0, 1.0), select_topk=share), base, [one, other])
        assert merged.tolist() == right
    # All selected: Σδ² 21 and 6.
    merged = merge(spec_of("sce", (1.0, 1.0)), base, [one, other])
    assert merged.tolist() == pytest.approx([1 + (21 * 4 + 6 * 2) / 27, 2, -1, 1])


def test_sce_of_equal_variances_takes_the_first() -> None:
    base, one = torch.zeros(8), torch.tensor([1.0, -2.0, 2.0, 0.0, 2.0, 0.0, 2.0, 1.0])
    merged = merge(spec_of("sce", (1.0, 1.0), select_topk=0.5), base, [one, base])
    assert merged.tolist() == [0, -2, 2, 0, 2, 0, 0, 0]


def test_sce_divides_by_no_less_than_a_millionth() -> None:
    one, other = torch.tensor([1e4, 0.0]), torch.tensor([0.0, 0.1])
    merged = merge(spec_of("sce", (1.0, 1.0)), torch.zeros(2), [one, other])
    assert merged.tolist() == pytest.approx([1e4, 1e-10 * 0.1 / 1e-6])


def test_sce_weighs_small_changes_alike() -> None:
    base = torch.zeros(2)
    one, other = torch.tensor([4e-4, 0.0]), torch.tensor([2e-4, 0.0])
    merged = merge(spec_of("sce", (1.0, 1.0)), base, [one, other])
    assert merged.tolist() == pytest.approx([3e-4, 0.0])


@pytest.mark.parametrize("far", [1.0, 100.0, 1e4, 1e12])
@pytest.mark.parametrize("size", [1.0, 0.01])
def test_sce_weighs_by_what_is_selected_however_large_the_rest_is(far: float, size: float) -> None:
    """Where the models agree nothing varies and nothing is selected, be it as large as it may."""
    base = torch.zeros(2000)
    tensors = [x * size for x in models((2000,), 2, 14)[1:]]
    for tensor, factor in zip(tensors, (1.0, 3.0), strict=True):
        tensor *= factor
        tensor[1000:] = far
    spec = spec_of("sce", (1.0, 1.0), select_topk=0.9)
    merged = merge(spec, base, tensors)
    right = expected(spec, base, tensors)
    assert int((merged[:1000] != 0).sum()) == 900
    assert not torch.allclose(merged, merge(replace(spec, select_topk=1.0), base, tensors))
    assert not merged[1000:].any()
    right.check(merged)


def test_sce_weighs_small_changes_beside_an_outlier() -> None:
    """10⁸ times as large a square, in one model, takes nothing from the other models' weights."""
    base, *tensors = models((1 << 18,), 3, 15, spread=0.0)
    tensors = [base + x for x in models((1 << 18,), 3, 16)[1:]]
    tensors[2] = base + (tensors[2] - base) * 0.1
    tensors[0][1000:] = base[1000:]
    tensors[0][7] = base[7] + 1e4
    spec = spec_of("sce", (1.0,) * 3, select_topk=0.9)
    expected(spec, base, tensors).check(merge(spec, base, tensors))


@pytest.mark.parametrize("kept", [0, 40, 500])
def test_sce_finds_the_last_of_many_equal_variances(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are more of them than are kept on the way, and in small pieces."""
    random = torch.Generator().manual_seed(17)
    base = torch.zeros(1500)
    tensors = [torch.randint(-2, 3, (1500,), generator=random).float() for _ in range(2)]
    monkeypatch.setattr(selection, "_KEPT", kept)
    monkeypatch.setitem(taskvectors.TILES, "cpu", 64)
    for share in (0.05, 0.3, 0.6, 0.95):
        spec = spec_of("sce", (1.0, 1.0), select_topk=share)
        expected(spec, base, tensors).check(merge(spec, base, tensors))


def test_sce_leaves_zeros_their_signs_where_nothing_is_selected() -> None:
    base, one = torch.tensor([-0.0, -0.0, 0.0, 1.0]), torch.tensor([0.0, -0.0, 0.0, 2.0])
    merged = merge(spec_of("sce", (1.0, 1.0), select_topk=0.9), base, [one, base])
    assert torch.equal(bits(merged), bits(base)), "one element varies, and 0.9 of one is none"
    spec = spec_of("sce", (1.0, 1.0), select_topk=0.9)
    base, one = (torch.cat([x, torch.arange(10.0)]) for x in (base, one))
    merged = merge(spec, base, [one * 2, base])
    assert torch.equal(bits(merged[:3]), bits(base[:3]))


@settings(max_examples=200, deadline=None)
@given(
    spec=specs(),
    dtype=st.sampled_from(TYPES),
    out=st.sampled_from(TYPES),
    size=st.sampled_from([1.0, 3e3, 2e4, 1e19, 1e38]),
    seed=st.integers(0, 10**6),
)
def test_what_is_certain_to_be_finite_is(
    spec: TensorMerge, dtype: torch.dtype, out: torch.dtype, size: float, seed: int
) -> None:
    most = torch.finfo(dtype).max
    drawn = [(x * size).clamp(-most, most).to(dtype) for x in models((9, 13), 5, seed)]
    base, tensors = inputs(spec, drawn)
    merged, certain = merge_bounded(spec, base, tensors, dtype=out, memory=Memory())
    assert torch.isfinite(merged).all() or not certain
    if size == 1:
        assert certain or merge_is_a_copy(merged, drawn)


@pytest.mark.parametrize("large", [0, 1])
@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_any_input_may_be_the_one_that_is_large(method: str, large: int) -> None:
    """Far beyond the ends of a line; and a memory that knows one's size knows no other's by it."""
    (line,) = models((40, 50), 0, 18)
    pair = [line, line.clone()]
    pair[large] *= 6e3
    if method == "slerp":
        spec, base, tensors = spec_of(method, t=30.0), pair[0], pair[1:]
    else:
        spec, base, tensors = spec_of(method, (1.0, -0.97), base=False), None, pair
    merged, certain = merge_bounded(spec, base, tensors, dtype=torch.float16, memory=Memory())
    assert not torch.isfinite(merged).all()
    assert not certain


@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
@pytest.mark.parametrize("size", [1e40, 1e180])
def test_float64_models_may_be_too_large_for_the_arithmetic(spec: TensorMerge, size: float) -> None:
    base, tensors = inputs(spec, [x.double() * size for x in models((9, 7), 3, 19)])
    merged, certain = merge_bounded(spec, base, tensors, dtype=torch.float64, memory=Memory())
    assert not torch.isfinite(merged).all()
    assert not certain


def test_a_factor_may_be_too_large_for_the_arithmetic() -> None:
    base = models((9, 7), 0, 20)[0] * 1e-3
    spec = spec_of("slerp", t=4e38)
    merged, certain = merge_bounded(spec, base, [base * 2], memory=Memory())
    assert not torch.isfinite(merged).all()
    assert not certain


def merge_is_a_copy(merged: torch.Tensor, drawn: Sequence[torch.Tensor]) -> bool:
    return any(torch.equal(merged, x.to(merged.dtype)) for x in drawn)


def test_what_cannot_be_merged_is_said() -> None:
    base, *tensors = models((3,), 3, 10)
    for spec, start, given_tensors, words in (
        (spec_of("slerp", (1.0,) * 2), base, tensors[:2], "w: slerp merges 1 model .* not 2"),
        (spec_of("slerp", base=False), None, tensors[:1], "w: slerp needs a base model"),
        (spec_of("nuslerp"), base, tensors[:1], "w: nuslerp merges 2 models, not 1"),
        (spec_of("model_stock"), base, tensors[:1], "w: model_stock merges at least 2 .* not 1"),
        (spec_of("model_stock", base=False), None, tensors[:1], "w: model_stock needs a base"),
        (spec_of("sce", base=False), None, tensors[:1], "w: sce needs a base model"),
    ):
        with pytest.raises(ValueError, match=words):
            merge(spec, start, given_tensors)


# What Model Breadcrumbs keeps.


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("density", [0.01, 0.5, 0.95, 1.0])
def test_breadcrumbs_keep_what_mergekit_keeps(density: float, gamma: float) -> None:
    sparsify = pytest.importorskip("mergekit.sparsify")
    (delta,) = models((70, 90), 0, 11)
    method = sparsify.SparsificationMethod.magnitude_outliers
    theirs = sparsify.sparsify(delta, density, method, gamma=gamma) != 0
    part = Contribution(ModelReference("m"), "m", "w", 1.0, density, 0.0, gamma)
    spec = TensorMerge(
        "w", "breadcrumbs", (ModelReference("base"), "w"), (part,), False, False, 1.0, 0
    )
    assert torch.equal(merge(spec, torch.zeros_like(delta), [delta]) != 0, theirs)


# mergekit 0.1.5: its methods' own code, in float64 and in float32, and its executor.


def mergekit_of(
    spec: TensorMerge,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> torch.Tensor:
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import TensorGroup

    group = TensorGroup.from_tensors(
        [*([] if base is None else [base]), *tensors], base_index=None if base is None else 0
    )
    (made,) = get(spec.method)([group], parameters=parameters_of(spec), dtype=dtype)
    return made


def parameters_of(spec: TensorMerge) -> dict[str, Any]:
    return {
        "slerp": {"t": spec.t},
        "nuslerp": {
            "weight": [part.weight for part in spec.contributions],
            "nuslerp_flatten": spec.flatten,
            "nuslerp_row_wise": spec.row_wise,
        },
        "model_stock": {"filter_wise": spec.filter_wise},
        "sce": {"select_topk": spec.select_topk},
    }[spec.method]


@settings(max_examples=300, deadline=None)
@given(
    spec=specs(),
    shape=SHAPES.filter(lambda shape: math.prod(shape) > 0),
    dtype=st.sampled_from(TYPES),
    spread=st.sampled_from([1.0, 0.02]),
    seed=st.integers(0, 10**6),
)
def test_mergekits_own_code_in_float64(
    spec: TensorMerge, shape: tuple[int, ...], dtype: torch.dtype, spread: float, seed: int
) -> None:
    pytest.importorskip("mergekit")
    base, tensors = inputs(
        spec, models(shape, len(spec.contributions), seed, spread=spread, dtype=dtype)
    )
    right = expected(spec, base, tensors)
    assume(not right.brittle)
    # Vectors of one element point the same way or against each other but for a rounding.
    assume(spec.method != "nuslerp" or min((*shape, 9)) > 1)
    theirs = mergekit_of(spec, base, tensors, torch.float64)
    replace(right, value=theirs).check(merge(spec, base, tensors))


@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
@pytest.mark.parametrize("shape", [(60, 80), (500,), (6, 7, 8)])
def test_mergekits_own_code_in_float32(spec: TensorMerge, shape: tuple[int, ...]) -> None:
    pytest.importorskip("mergekit")
    base, tensors = inputs(spec, models(shape, 3, 12, spread=0.1))
    theirs = mergekit_of(spec, base, tensors, torch.float32).double()
    replace(expected(spec, base, tensors), value=theirs).check(merge(spec, base, tensors), 2.0**-22)


@pytest.mark.parametrize("spec", EVERY, ids=NAMES)
def test_mergekits_executor(spec: TensorMerge, family: Family, tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    models_ = list(family.tuned[: len(spec.contributions)])
    settings_ = parameters_of(spec)
    weights = settings_.pop("weight", [None] * len(models_))
    listed = [
        {"model": str(path), **({} if w is None else {"parameters": {"weight": w}})}
        for path, w in zip(models_, weights, strict=True)
    ]
    data: dict[str, Any] = {"merge_method": spec.method, "models": listed, "dtype": "float32"}
    data["parameters"] = settings_
    if spec.base:
        data["base_model"] = str(family.base)
    theirs = run_mergekit(yaml.safe_dump(data), tmp_path / "out")
    held = [stored(path) for path in (family.base, *models_)]
    for name, tensor in theirs.items():
        base, tensors = inputs(spec, [one[name] for one in held])
        right = expected(spec, base, tensors)
        assert not right.brittle, name
        replace(right, value=tensor.double()).check(merge(spec, base, tensors), 2.0**-22)
