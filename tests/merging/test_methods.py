"""One tensor's merge: against float64, and where nothing but one answer is right."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import merge
from evomerge.merging.methods import merge_bounded
from evomerge.merging.taskvectors import Memory
from evomerge.recipe import Contribution, TensorMerge
from evomerge.references import ModelReference
from tests.merging.reference import expected
from tests.merging.worlds import METHODS, RANDOM, bits

BASED = tuple(name for name, spec in METHODS.items() if spec.needs_base)
SPARSE = tuple(name for name, spec in METHODS.items() if spec.sparsifies)
BASE = ModelReference("base")
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def spec_of(
    method: str,
    weights: tuple[float, ...] = (1.0,),
    *,
    density: float | tuple[float, ...] = 1.0,
    epsilon: float = 0.0,
    **changes: object,
) -> TensorMerge:
    densities = density if isinstance(density, tuple) else (density,) * len(weights)
    parts = tuple(
        Contribution(ModelReference(f"m{i}"), f"m{i}", "w", weight, share, epsilon)
        for i, (weight, share) in enumerate(zip(weights, densities, strict=True))
    )
    known = METHODS[method]
    base = (BASE, "w") if known.needs_base else None
    spec = TensorMerge("w", method, base, parts, known.normalize, known.rescale, 1.0, 0)
    return replace(spec, **changes)  # type: ignore[arg-type]


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Multiples of 2⁻¹⁰ within ±2: float32 holds their differences exactly."""
    random = torch.Generator().manual_seed(seed)
    whole = torch.randint(-(2**11), 2**11 + 1, shape, generator=random)
    return (whole.to(torch.float32) / 2**10).to(dtype)


SHAPES = st.one_of(
    st.just(()),
    st.integers(0, 70).map(lambda n: (n,)),
    st.tuples(st.integers(0, 9), st.integers(0, 33)),
    st.tuples(st.integers(1, 40), st.just(1)),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7)),
)
WEIGHTS = st.integers(-32, 32).map(lambda n: n / 16)


@st.composite
def specs(draw: st.DrawFn) -> TensorMerge:
    method = draw(st.sampled_from(sorted(METHODS)))
    weights = tuple(draw(st.lists(WEIGHTS, min_size=1, max_size=4)))
    if METHODS[method].sparsifier == "magprune":
        epsilon = draw(st.sampled_from([0.0, 0.01, 0.15]))
        density = tuple(draw(st.floats(0.16, 0.84)) for _ in weights)
    else:
        epsilon = 0.0
        tiny = st.sampled_from([1.0, 0.999, 1e-3, 1e-9])
        density = tuple(draw(st.one_of(st.floats(0.01, 1), tiny)) for _ in weights)
    normalize = draw(st.booleans()) and (METHODS[method].needs_base or sum(weights) != 0)
    spec = spec_of(
        method,
        weights,
        density=density,
        epsilon=epsilon,
        normalize=normalize,
        rescale=METHODS[method].sparsifies and draw(st.booleans()),
        lambda_=draw(st.sampled_from([1.0, 0.0, 0.75, -1.5]))
        if METHODS[method].needs_base
        else 1.0,
        mask_seed=draw(st.integers(0, 5)),
    )
    if METHODS[method].sparsifier != "outliers":
        return spec
    gammas = [draw(st.sampled_from([0.0, 0.01, 0.2, 0.9])) for _ in weights]
    parts = (replace(part, gamma=g) for part, g in zip(spec.contributions, gammas, strict=True))
    return replace(spec, contributions=tuple(parts))


@settings(max_examples=1500, deadline=None)
@given(
    spec=specs(),
    shapes=st.lists(SHAPES, min_size=1, max_size=10),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 1000),
)
def test_every_method_is_its_definition(
    spec: TensorMerge, shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int
) -> None:
    for shape in shapes:
        base, *tensors = (drawn(shape, seed + i, dtype) for i in range(len(spec.contributions) + 1))
        held = [tensor.clone() for tensor in (base, *tensors)]
        given_base = base if spec.base else None
        merged = merge(spec, given_base, tensors)
        assert merged.dtype == torch.float32
        assert merged.shape == base.shape
        expected(spec, given_base, tensors).check(merged)
        for tensor, before in zip((base, *tensors), held, strict=True):
            assert torch.equal(tensor, before), "inputs are not written to"


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("shape", [(300, 129), (70001,)])
def test_larger_tensors_too(method: str, shape: tuple[int, ...]) -> None:
    spec = spec_of(method, (0.5, 0.25, 1.0), density=0.4, epsilon=0.125)
    base, *tensors = (drawn(shape, seed) for seed in range(4))
    expected(spec, base if spec.base else None, tensors).check(
        merge(spec, base if spec.base else None, tensors)
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("method", BASED)
def test_no_weight_or_no_lambda_gives_the_base_bit_for_bit(method: str, dtype: torch.dtype) -> None:
    base, one, other = drawn((20, 30), 0, dtype), drawn((20, 30), 1, dtype), drawn((20, 30), 2)
    base[0] = -0.0
    for spec in (
        spec_of(method, (0.0, -0.0), density=0.5),
        spec_of(method, (0.5, 0.7), density=0.5, lambda_=0.0),
        spec_of(method, ()),
    ):
        merged = merge(spec, base, [one, other][: len(spec.contributions)])
        assert torch.equal(bits(merged.to(dtype)), bits(base))
        assert merged.data_ptr() != base.data_ptr()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_one_whole_model_is_that_model_bit_for_bit(method: str, dtype: torch.dtype) -> None:
    base = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    tuned = torch.randn(50, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    tuned[0] = -0.0
    other = drawn((50, 40), 2, dtype)
    for weights, normalize in (((1.0, 0.0), False), ((0.3, 0.0), True)):
        spec = spec_of(method, weights, normalize=normalize)
        merged = merge(spec, base if spec.base else None, [tuned, other])
        assert torch.equal(bits(merged.to(dtype)), bits(tuned))
        assert merged.data_ptr() != tuned.data_ptr()


@pytest.mark.parametrize("method", SPARSE)
def test_density_1_is_no_sparsification(method: str) -> None:
    plain = "ties" if METHODS[method].elects else "task_arithmetic"
    base, *tensors = (drawn((33, 20), seed) for seed in range(4))
    weights = (0.5, -0.25, 0.75)
    whole = merge(spec_of(method, weights, epsilon=0.2, normalize=False), base, tensors)
    other = merge(spec_of(plain, weights, normalize=False), base, tensors)
    assert torch.equal(bits(whole), bits(other))


@pytest.mark.parametrize(
    ("della", "dare"), [("della", "dare_ties"), ("della_linear", "dare_linear")]
)
@pytest.mark.parametrize("shape", [(33, 20), (500,), (40, 1), ()])
def test_epsilon_0_is_dare_bit_for_bit(della: str, dare: str, shape: tuple[int, ...]) -> None:
    base, *tensors = (drawn(shape, seed) for seed in range(4))
    for density in (0.1, 0.37, 0.999):
        made = [
            merge(spec_of(m, (0.5, -0.25, 0.75), density=density, normalize=False), base, tensors)
            for m in (della, dare)
        ]
        assert torch.equal(bits(made[0]), bits(made[1]))


@pytest.mark.parametrize("method", SPARSE)
def test_an_empty_survivor_set_adds_nothing(method: str) -> None:
    base, tuned = drawn((3, 5), 0), drawn((3, 5), 1)
    density, epsilon = 1e-7, 0.0
    merged = merge(spec_of(method, density=density, epsilon=epsilon), base, [tuned])
    changed = int((merged != base).sum())
    assert changed == (1 if METHODS[method].sparsifier == "magnitude" else 0)


@pytest.mark.parametrize("method", SPARSE)
def test_zero_task_vectors_and_those_below_rescaling_stay_small(method: str) -> None:
    base = torch.zeros(40, 40)
    spec = spec_of(method, density=0.5, epsilon=0.1, rescale=True)
    assert not merge(spec, base, [base.clone()]).any()
    tiny = torch.full((40, 40), 1e-12)
    assert set(merge(spec, base, [tiny]).unique().tolist()) == {0.0, float(tiny[0, 0])}


@pytest.mark.parametrize("method", SPARSE)
def test_a_constant_task_vector_keeps_its_share(method: str) -> None:
    base = torch.zeros(100, 100)
    spec = spec_of(method, density=0.3, epsilon=0.1, rescale=True, normalize=False)
    merged = merge(spec, base, [torch.ones(100, 100)])
    count = int((merged != 0).sum())
    assert abs(count - 3000) <= (0 if method == "ties" else 4 * math.sqrt(3000 * 0.7))
    assert float(merged.sum()) == pytest.approx(10000, rel=1e-5)


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    tuned = torch.tensor([1.0, -2.0, 2.0, 2.0, 3.0, -1.0])
    merged = merge(spec_of("ties", density=0.5), torch.zeros(6), [tuned])
    assert merged.tolist() == [0.0, -2.0, 2.0, 0.0, 3.0, 0.0]


def test_magnitude_keeps_exactly_its_count_and_at_least_one() -> None:
    tuned = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for density, count in ((0.1, 100), (0.0015, 1), (1e-9, 1), (0.9999, 999)):
        merged = merge(spec_of("ties", density=density), torch.zeros(1000), [tuned])
        assert int((merged != 0).sum()) == count


def test_a_sum_of_zero_elects_plus() -> None:
    base = torch.zeros(4)
    one, other = torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([-1.0, 1.0, -3.0, -2.0])
    merged = merge(spec_of("ties", (0.5, 0.5)), base, [one, other])
    assert merged.tolist() == [1.0, 1.0, -3.0, 2.0]


def test_signs_are_elected_on_weighted_task_vectors() -> None:
    one, other = torch.tensor([1.0]), torch.tensor([-2.0])
    merged = merge(spec_of("ties", (0.9, 0.3)), torch.zeros(1), [one, other])
    assert merged.tolist() == [1.0]


def test_weights_that_cancel_divide_by_one() -> None:
    base, one, other = torch.zeros(3), torch.full((3,), 2.0), torch.full((3,), 1.0)
    merged = merge(spec_of("task_arithmetic", (0.5, -0.5), normalize=True), base, [one, other])
    assert merged.tolist() == [0.5] * 3


def test_a_blend_of_no_weights_is_zero() -> None:
    merged = merge(spec_of("linear", (0.0, 0.0), normalize=False), None, [torch.ones(3)] * 2)
    assert merged.tolist() == [0.0] * 3


@pytest.mark.parametrize("method", RANDOM)
def test_threads_change_no_bit(method: str) -> None:
    base, *tensors = (
        torch.randn(400, 500, generator=torch.Generator().manual_seed(seed)) for seed in range(4)
    )
    spec = spec_of(method, (0.5, 0.3, 0.4), density=0.6, epsilon=0.1)
    alone = merge(spec, base, tensors)
    torch.set_num_threads(2)
    try:
        together = merge(spec, base, tensors)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(bits(alone), bits(together))


@pytest.mark.parametrize(
    ("method", "weights", "scale", "changes"),
    [
        ("ties", (1e38, 1e38, 1e38), 1.0, {"normalize": True}),
        ("ties", (1e39, 1.0, 1.0), 1.0, {"normalize": True}),
        ("ties", (1e38, 1e38, 1e38), 100.0, {"normalize": False, "lambda_": 1e-30}),
        ("task_arithmetic", (1e39, 1.0), 0.0, {}),
    ],
)
def test_what_overflows_on_the_way_is_not_taken_for_finite(
    method: str, weights: tuple[float, ...], scale: float, changes: dict[str, object]
) -> None:
    base = drawn((64, 9), 0) * scale
    tensors = [drawn((64, 9), 1 + i) * scale for i in range(len(weights))]
    density = 0.5 if METHODS[method].sparsifies else 1.0
    spec = spec_of(method, weights, density=density, **changes)
    merged, certain = merge_bounded(spec, base, tensors, memory=Memory())
    assert not torch.isfinite(merged).all()
    assert not certain


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize("density", [0.001, 0.5])
def test_the_papers_della_divides_by_no_zero(method: str, density: float) -> None:
    spec = spec_of(method, (1.0, 1.0), density=density, epsilon=density - 1e-9, variant="paper")
    merged, _ = merge_bounded(spec, drawn((64, 512), 0), [drawn((64, 512), i) for i in (1, 2)])
    assert torch.isfinite(merged).all()


def test_dividing_by_small_probabilities_is_not_taken_for_finite() -> None:
    spec = spec_of("della_linear", (1.0,), density=0.02, epsilon=0.0199, variant="paper")
    base, tensor = torch.zeros(64, 512), drawn((64, 512), 1).abs() + 200
    merged, certain = merge_bounded(spec, base, [tensor], dtype=torch.float16, memory=Memory())
    assert not torch.isfinite(merged).all()
    assert not certain


def test_one_outlier_leaves_the_norm_what_it_is() -> None:
    random = torch.Generator().manual_seed(2)
    base = torch.randn(1 << 18, generator=random) * 0.02
    tensor = base + torch.randn(1 << 18, generator=random) * 1e-6
    base[7] = tensor[7] = 3e4
    spec = spec_of("ties", (1.0,), density=0.5, normalize=False, rescale=True)
    change = (merge(spec, base, [tensor]) - base).abs().double().sum()
    assert float(change / (tensor - base).abs().double().sum()) == pytest.approx(1, abs=0.01)


def test_more_models_than_there_are_bits_are_refused() -> None:
    base, tensors = drawn((4, 4), 0), [drawn((4, 4), 1 + i) for i in range(64)]
    spec = spec_of("della", (1.0,) * 64, density=0.5, epsilon=0.1)
    with pytest.raises(ValueError, match="64 models are too many"):
        merge(spec, base, tensors)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_weights_whose_sum_is_too_large_give_no_numbers(method: str) -> None:
    base, *tensors = (drawn((4, 4), i) for i in range(3))
    spec = spec_of(method, (1e308, 1e308), normalize=True)
    assert merge(spec, base if spec.base else None, tensors).isnan().all()


def test_a_model_masked_itself_has_the_same_sums_beside_any_base() -> None:
    tensor = drawn((300, 200), 5)
    memory = Memory(1 << 24)
    for other in (100.0, 1.0):
        base = drawn((300, 200), 6) * other
        spec = spec_of("dare_linear", (1.0,), density=0.4, mask_of="weights")
        spec = replace(spec, base=(ModelReference(f"base{other}"), "w"))
        kept = merge(spec, base, [tensor], memory=memory)
        assert torch.equal(bits(kept), bits(merge(spec, base, [tensor])))
