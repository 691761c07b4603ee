"""A CUDA device draws the same masks and makes the same merges as the CPU."""

from __future__ import annotations

import pytest
import torch

from evomerge.checkpoints import Checkpoint
from evomerge.merging import MergeEngine, uniform
from tests.merging.worlds import METHODS, RANDOM, Family, recipe_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("start", [0, 2**31 - 7, 2**32 - 7, 2**40])
def test_the_same_numbers(start: int) -> None:
    here = uniform(1, "code", "w", 2**18 + 100, start=start)
    there = uniform(1, "code", "w", 2**18 + 100, start=start, device="cuda")
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_same_merges(quickstart: Family, method: str) -> None:
    names = str(quickstart.base), [str(path) for path in quickstart.tuned]
    recipe = recipe_of(quickstart, method)
    here = dict(MergeEngine(*names).tensors(recipe))
    base = dict(MergeEngine(*names).tensors(recipe_of(quickstart, "ties", (0.0, 0.0, 0.0))))
    engine = MergeEngine(*names, device="cuda")
    live = Checkpoint.open(names[0]).load_model(device="cuda")
    engine.merge_into(live, recipe)
    for name, tensor in engine.tensors(recipe):
        assert torch.equal(tensor, live.state_dict()[name])
        back = tensor.cpu()
        if method in RANDOM:
            assert torch.equal(back == base[name], here[name] == base[name]), "the same masks"
        assert torch.allclose(back, here[name], rtol=1e-5, atol=1e-6)
