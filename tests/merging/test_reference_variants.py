"""The variants' references themselves, on what can be done by hand: kernels are held to them."""

from __future__ import annotations

import pytest
import torch

from tests.merging import reference_variants as variants

ZERO = {"a": torch.zeros(4), "b": torch.zeros(2)}


def model(a: list[float], b: list[float]) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(a), "b": torch.tensor(b)}


def values(tensors: variants.Model) -> list[float]:
    return torch.cat([tensors["a"], tensors["b"]]).tolist()


def test_trim_is_global_and_keeps_what_equals_the_threshold() -> None:
    deltas = model([1.0, -2.0, 2.0, 0.5], [9.0, -2.0])
    # n = 6, d = 1/3: the fourth smallest is 2, and there are three of it.
    assert values(variants.trim(deltas, 1 / 3)) == [0, -2, 2, 0, 9, -2]
    assert values(variants.trim(deltas, 1.0)) == [1, -2, 2, 0.5, 9, -2]


def test_ties_elects_without_weights_and_averages() -> None:
    one, other = model([3.0, 1.0, -1.0, 2.0], [4.0, 0.0]), model([1.0, -3.0, 1.0, 0.0], [2.0, 0.0])
    # Signs + − 0 + + 0: most are +. 1 and −1 sum to 0, so the + stays.
    assert values(variants.ties(ZERO, [one, other], (1.0, 1.0), 0.5)) == [1, -1.5, 0.5, 1, 1.5, 0]


def test_no_dominant_sign_elects_nothing() -> None:
    one, other = model([1.0, 2.0, -2.0, 0.0], [0.0] * 2), model([-1.0, 0.0, 0.0, 0.0], [0.0] * 2)
    assert values(variants.ties(ZERO, [one, other], (1.0, 1.0))) == [0, 2, -2, 0, 0, 0]


def test_dare_divides_by_the_density_and_drop_only_does_not() -> None:
    deltas, masks = model([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]), model([1, 0, 1, 0], [0, 1])
    assert values(variants.masked(deltas, masks, 0.5)) == [2, 0, 6, 0, 0, 12]
    assert values(variants.masked(deltas, masks, 0.5, rescale=False)) == [1, 0, 3, 0, 0, 6]


def test_dare_comes_before_the_trim() -> None:
    one, masks = model([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]), model([1, 1, 0, 0], [0, 1])
    # n = 6, trim 1/3: the fourth smallest of 0 0 0 2 4 12.
    merged = variants.dare_then_ties(ZERO, [one], [masks], [0.5], [1 / 3])
    assert values(merged) == [2, 4, 0, 0, 0, 12]
    merged = variants.dare_then_ties(ZERO, [one], [masks], [0.5], [0.2])
    assert values(merged) == [0, 4, 0, 0, 0, 12]


def test_della_is_unbiased() -> None:
    deltas = {"a": torch.tensor([[1.0, -3.0, 2.0], [4.0, 4.0, 0.5]])}
    q = variants.keep_probabilities(deltas["a"], 0.5, 0.3)
    assert q[0].tolist() == pytest.approx([0.2, 0.8, 0.5])
    assert q[1].tolist() == pytest.approx([0.5, 0.8, 0.2])
    kept = variants.della_masked(deltas, {"a": torch.ones(2, 3, dtype=torch.bool)}, 0.5, 0.3)
    assert torch.allclose(kept["a"] * q, deltas["a"].double())


def test_masked_weights_are_merged_as_a_model() -> None:
    base = model([1.0] * 4, [1.0] * 2)
    whole = variants.masked_weights(model([2.0] * 4, [2.0] * 2), model([1, 0, 1, 0], [1, 0]), 0.5)
    merged = variants.summed(base, [variants.task_vector(base, whole)], [1.0], 0.5)
    assert values(merged) == [2.5, 0.5, 2.5, 0.5, 2.5, 0.5]


def test_weighted_election() -> None:
    one, other = model([1.0, 1.0, 1.0, 0.0], [1.0, 2.0]), model([-2.0, 1.0, -1.0, 3.0], [0.0, 0.0])
    merged = variants.elected(ZERO, [one, other], (0.9, 0.3), normalize=True)
    assert values(merged) == pytest.approx([1, 1, 1, 3, 1, 2])
    merged = variants.elected(ZERO, [one, other], (0.5, 0.5))
    assert values(merged) == pytest.approx([-1, 1, 0.5, 1.5, 0.5, 1])
