"""A CUDA device draws the same masks and makes the same merges as the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.checkpoints import Checkpoint, spread
from evomerge.merging import MergeEngine, devices_of, uniform
from evomerge.recipe import METHODS
from tests.merging.worlds import RANDOM, Family, recipe_of

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


@pytest.mark.parametrize("method", sorted(METHODS))
def test_streamed_from_the_host_is_held_on_the_device(quickstart: Family, method: str) -> None:
    """Tensors that arrive beside the work are whole before they are read, time after time."""
    names = str(quickstart.base), [str(path) for path in quickstart.tuned]
    held = MergeEngine(*names, device="cuda", residency="device")
    streamed = MergeEngine(*names, device="cuda", residency="host")
    assert streamed.residency is not None
    assert "streamed" in streamed.residency.message
    first = Checkpoint.open(names[0]).load_model(device="cuda")
    second = Checkpoint.open(names[0]).load_model(device="cuda")
    for weights in ((0.5, 0.3, 0.4), (0.1, 0.9, 0.2), (0.5, 0.3, 0.4)):
        recipe = recipe_of(quickstart, method, weights)
        held.merge_into(first, recipe)
        streamed.merge_into(second, recipe)
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("residency", ["device", "host"])
def test_each_tensor_is_merged_where_the_live_one_lies(quickstart: Family, residency: Any) -> None:
    names = str(quickstart.base), [str(path) for path in quickstart.tuned]
    live = spread(Checkpoint.open(names[0]).load_model(), "the base")
    devices = devices_of(live)
    assert len(set(devices.values())) > 1
    recipe = recipe_of(quickstart, "dare_ties")
    engine = MergeEngine(*names, device=devices, residency=residency)
    engine.merge_into(live, recipe)
    alone = MergeEngine(*names, device="cuda", residency="device")
    for name, tensor in alone.tensors(recipe):
        assert live.state_dict()[name].device == devices[name]
        assert torch.equal(live.state_dict()[name].cpu(), tensor.cpu())
