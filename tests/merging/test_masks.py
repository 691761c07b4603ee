"""Masks depend on (seed, model, tensor, element) alone, and behave like chance."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from evomerge.merging import MergeEngine, merge, uniform
from evomerge.merging.entries import I
from evomerge.merging.masks import drawn_density, rank_limits
from evomerge.recipe import Contribution, TensorMerge
from evomerge.references import ModelReference
from tests.merging.worlds import Family, recipe_of, same_bits, stored

BLOCK = 2**32


def plain(seed: int, label: str, tensor: str, index: int) -> int:
    """One element's 32 bits, with Python's integers."""
    block, counter = divmod(index, BLOCK)

    def keys(*words: str | int) -> list[int]:
        text = json.dumps([*words, block]).encode()
        digest = hashlib.blake2b(text, digest_size=8, person=b"evomerge-mask").digest()
        return [int.from_bytes(part, "little") for part in (digest[:4], digest[4:])]

    first, second = keys("tensor", seed, tensor)
    key, multiplier = keys("model", seed, label, tensor)
    x = (counter * 0x9E3779B1 + first) % BLOCK
    x ^= x >> 16
    x = x * 0x7FEB352D % BLOCK ^ second
    x ^= x >> 15
    # The drawn integer is signed; as a number in [0, 1) it is counted from the lowest.
    return ((x ^ key) * (multiplier | 1) + BLOCK // 2) % BLOCK


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70),
    label=st.text(max_size=8),
    start=st.one_of(
        st.integers(0, 2**20),
        st.integers(2**31 - 9, 2**31 + 9),
        st.integers(BLOCK - 9, BLOCK + 9),
        st.integers(0, 2**45),
    ),
)
def test_every_element_is_its_hash(seed: int, label: str, start: int) -> None:
    found = uniform(seed, label, "t", 11, start=start)
    assert found.dtype == torch.float64
    assert (found * 2**32).tolist() == [plain(seed, label, "t", start + i) for i in range(11)]


@pytest.mark.parametrize("border", [2**14, 2**18, 2**19])
def test_long_and_short_runs_agree_across_borders(border: int) -> None:
    whole = uniform(3, "code", "w", border + 50)
    assert torch.equal(uniform(3, "code", "w", 50, start=border), whole[border:])
    assert torch.equal(uniform(3, "code", "w", border + 1), whole[: border + 1])
    assert torch.equal(uniform(3, "code", "w", 100, start=border - 50), whole[border - 50 :])
    assert round(float(whole[border]) * 2**32) == plain(3, "code", "w", border)


def test_no_elements_are_no_numbers() -> None:
    assert uniform(0, "code", "w", 0).shape == (0,)


def test_neither_threads_nor_order_nor_global_state_matter() -> None:
    before = [uniform(1, label, "w", 70000) for label in ("code", "maths")]
    torch.manual_seed(123)
    torch.set_num_threads(2)
    try:
        after = [uniform(1, label, "w", 70000) for label in ("maths", "code")]
    finally:
        torch.set_num_threads(1)
    assert torch.equal(before[0], after[1])
    assert torch.equal(before[1], after[0])


def chi_square(numbers: torch.Tensor, bins: int) -> float:
    """Σ (found − expected)² / expected, less its mean, in units of its spread."""
    counts = torch.bincount((numbers * bins).long(), minlength=bins).to(torch.float64)
    mean = numbers.numel() / bins
    value = float(((counts - mean) ** 2 / mean).sum())
    return (value - (bins - 1)) / math.sqrt(2 * (bins - 1))


def test_numbers_are_uniform_over_many_seeds() -> None:
    scores = torch.tensor([chi_square(uniform(s, "code", "w", 4096), 64) for s in range(300)])
    # Neither too uneven nor, as a plain counter would be, too even.
    assert abs(float(scores.mean())) < 4 / math.sqrt(300)
    assert 0.8 < float(scores.std()) < 1.2
    assert float(scores.abs().max()) < 6


def test_a_numbers_low_digits_are_uniform_too() -> None:
    low = torch.cat(
        [(uniform(seed, "code", "w", 4096) * 2**24).to(torch.int64) % 64 for seed in range(100)]
    )
    assert abs(chi_square(low / 64, 64)) < 4


def test_the_first_number_is_uniform_over_seeds() -> None:
    numbers = torch.cat([uniform(seed, "code", "w", 1) for seed in range(6000)])
    assert abs(chi_square(numbers, 50)) < 4


def kolmogorov(numbers: torch.Tensor) -> float:
    """√n times the largest distance of the numbers' distribution from the uniform one."""
    ordered, count = numbers.to(torch.float64).sort().values, numbers.numel()
    above = torch.arange(1, count + 1, dtype=torch.float64) / count - ordered
    return float(torch.maximum(above, 1 / count - above).max()) * math.sqrt(count)


def test_no_stretch_of_the_numbers_is_too_full_over_many_seeds() -> None:
    scores = torch.tensor([kolmogorov(uniform(s, "code", "w", 4096)) for s in range(300)])
    # Kolmogorov's distribution: mean √(π/2) ln 2, variance π²/12 less its square; beyond 2.9 lies
    # 2·exp(−2·2.9²), one in ten million.
    mean = math.sqrt(math.pi / 2) * math.log(2)
    spread = math.sqrt(math.pi**2 / 12 - mean**2)
    assert abs(float(scores.mean()) - mean) < 4 * spread / math.sqrt(300)
    assert float(scores.std()) == pytest.approx(spread, rel=0.2)
    assert float(scores.max()) < 2.9


COUNT = 200_000
PAIRS: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
    "neighbours": lambda: (uniform(0, "a", "w", COUNT), uniform(0, "a", "w", COUNT, start=1)),
    "rows of 1024": lambda: (uniform(0, "a", "w", COUNT), uniform(0, "a", "w", COUNT, start=1024)),
    "blocks": lambda: (uniform(0, "a", "w", COUNT), uniform(0, "a", "w", COUNT, start=BLOCK)),
    "models": lambda: (uniform(0, "a", "w", COUNT), uniform(0, "b", "w", COUNT)),
    "seeds": lambda: (uniform(0, "a", "w", COUNT), uniform(1, "a", "w", COUNT)),
    "tensors": lambda: (uniform(0, "a", "l.0.w", COUNT), uniform(0, "a", "l.1.w", COUNT)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_streams_know_nothing_of_one_another(pair: str) -> None:
    one, other = PAIRS[pair]()
    correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
    assert abs(correlation) < 4 / math.sqrt(COUNT)
    together = torch.floor(one * 16) * 16 + torch.floor(other * 16)
    assert abs(chi_square(together / 256 + 1e-4, 256)) < 4.5


@pytest.mark.parametrize("pair", ["neighbours", "models", "tensors", "seeds"])
def test_one_elements_numbers_are_independent_over_many_seeds(pair: str) -> None:
    """As above, with the element fixed and the seed drawn: what one search's seed decides."""
    count = 6000
    one = torch.cat([uniform(seed, "a", "w", 1, start=7) for seed in range(count)])
    others = {
        "neighbours": lambda seed: uniform(seed, "a", "w", 1, start=8),
        "models": lambda seed: uniform(seed, "b", "w", 1, start=7),
        "tensors": lambda seed: uniform(seed, "a", "v", 1, start=7),
        "seeds": lambda seed: uniform(seed + 1, "a", "w", 1, start=7),
    }
    other = torch.cat([others[pair](seed) for seed in range(count)])
    correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
    assert abs(correlation) < 4 / math.sqrt(count)
    together = torch.floor(one * 8) * 8 + torch.floor(other * 8)
    assert abs(chi_square(together / 64 + 1e-4, 64)) < 4.5


@given(densities=st.tuples(st.floats(1e-9, 1), st.floats(1e-9, 1)))
def test_masks_are_drawn_at_the_density_to_eleven_bits(densities: tuple[float, float]) -> None:
    low, high = sorted(densities)
    drawn = drawn_density(low)
    assert 2.0**-24 <= drawn <= drawn_density(high) <= 1
    assert abs(drawn - low) <= max(low * 2.0**-11, 2.0**-24)
    assert drawn == drawn_density(drawn)
    assert drawn_density(0.5) == 0.5
    assert drawn_density(1.0) == 1


def kept(method: str, density: float, epsilon: float, delta: torch.Tensor) -> torch.Tensor:
    model = ModelReference("code")
    part = Contribution(model, "code", "w", 1.0, density, epsilon)
    base = (ModelReference("base"), "w")
    spec = TensorMerge("w", method, base, (part,), False, False, 1.0, 5)
    return merge(spec, torch.zeros_like(delta), [delta]) != 0


@settings(max_examples=40, deadline=None)
@given(
    densities=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    method=st.sampled_from(["dare_linear", "dare_ties", "della", "della_linear", "ties"]),
)
def test_a_mask_lies_in_the_mask_of_any_higher_density(
    densities: tuple[float, float], method: str
) -> None:
    low, high = sorted(densities)
    delta = torch.randn(30, 41, generator=torch.Generator().manual_seed(1))
    epsilon = min(0.1, *(0.9 * min(d, 1 - d) for d in densities if d < 1), 1.0)
    smaller, larger = kept(method, low, epsilon, delta), kept(method, high, epsilon, delta)
    assert not (smaller & ~larger).any()


@pytest.mark.parametrize("method", ["dare_ties", "della"])
def test_a_model_cut_into_files_otherwise_has_the_same_masks(
    family: Family, tmp_path: Path, method: str
) -> None:
    """One file, or several with the tensors of any layer in any of them, each model its own."""
    copies = []
    for path in family.all:
        copies.append(tmp_path / path.name)
        copies[-1].mkdir()
        shutil.copy(path / "config.json", copies[-1])
        names = sorted(tensors := stored(path))
        random.Random(path.name).shuffle(names)
        index = {name: f"part-{place % 3}.safetensors" for place, name in enumerate(names)}
        for file in set(index.values()):
            part = {name: tensors[name] for name in names if index[name] == file}
            save_file(part, copies[-1] / file, {"format": "pt"})
        content = json.dumps({"metadata": {}, "weight_map": index})
        (copies[-1] / "model.safetensors.index.json").write_text(content)
    cut = Family(copies[0], tuple(copies[1:]))
    one, other = (
        MergeEngine(str(models.base), [str(path) for path in models.tuned])
        for models in (family, cut)
    )
    whole = dict(one.tensors(recipe_of(family, method)))
    same_bits(whole, dict(other.tensors(recipe_of(cut, method))))


@pytest.mark.parametrize("length", [2, 3, 512, 4096, 4097])
@pytest.mark.parametrize("density", [0.001, 0.5, 0.85])
def test_an_epsilon_that_leaves_no_room_keeps_ranks_in_order(length: int, density: float) -> None:
    """The widest that a space draws: the highest rank's limit must not wrap around."""
    epsilon = min(density, 1 - density) - 1e-9
    rows = rank_limits(length, density, epsilon)
    step = rows[I.STEP] % BLOCK
    first = rows[I.LIMIT] + 1 + BLOCK // 2
    assert first >= 1
    assert first + step * (length - 1) <= BLOCK
    assert abs((first + step * (length - 1)) / BLOCK - (density + epsilon)) <= length * 2.0**-33
