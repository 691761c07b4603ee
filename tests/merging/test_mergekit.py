"""The same recipes give the same tensors as mergekit 0.1.5's own command, to rounding."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.merging import MergeEngine, merge
from evomerge.recipe import Contribution, Recipe, TensorMerge, resolve
from evomerge.references import ModelReference
from tests.merging.worlds import EXACT, METHODS, RANDOM, Family, recipe_text, run_mergekit

pytest.importorskip("mergekit")

from mergekit.sparsify import RescaleNorm, SparsificationMethod, sparsify

Tensors = dict[str, torch.Tensor]


def engine_of(family: Family) -> MergeEngine:
    return MergeEngine(str(family.base), [str(path) for path in family.tuned])


def tied_at_threshold(engine: MergeEngine, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Elements as large as the smallest kept one, if it is one of several: mergekit takes any."""
    held = {model: dict(_tensors(model)) for model in recipe.models_named}
    found = {}
    for spec in resolve(recipe, engine.layout):
        if spec.base is None:
            continue
        base = held[spec.base[0]][spec.base[1]].float()
        found[spec.name] = torch.zeros(base.shape, dtype=torch.bool)
        for part in spec.contributions:
            size = (held[part.model][part.tensor].float() - base).abs()
            count = max(1, int(part.density * size.numel()))
            ends = [count]
            if METHODS[recipe.merge_method].sparsifier == "outliers":
                first = min(int(part.gamma * size.numel()), size.numel() - count)
                ends = [first, first + count] if first else [count]
            for end in ends:
                limit = size.reshape(-1).sort(descending=True).values[end - 1]
                if part.density < 1 and int((size == limit).sum()) > 1:
                    found[spec.name] |= size == limit
    return found


def _tensors(model: ModelReference) -> Iterable[tuple[str, torch.Tensor]]:
    from tests.merging.worlds import stored

    return stored(Path(model.path)).items()


def agree(family: Family, text: str, out: Path, *, roundings: float = 8.0) -> Tensors:
    """Merge with both and compare; gives mergekit's."""
    engine, recipe = engine_of(family), Recipe.from_yaml(text)
    ours = dict(engine.tensors(recipe))
    theirs = run_mergekit(text, out)
    assert set(ours) == set(theirs)
    tied = tied_at_threshold(engine, recipe)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        unit = torch.finfo(tensor.dtype).eps
        largest = float(theirs[name].float().abs().max())
        wrong = (tensor.float() - theirs[name].float()).abs() > roundings * unit * largest
        if METHODS[recipe.merge_method].sparsifier in ("magnitude", "outliers"):
            wrong &= ~tied[name]
        assert not wrong.any(), f"{name}: {int(wrong.sum())} of {wrong.numel()}"
    return theirs


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("normalize", [None, True, False])
def test_the_deterministic_methods(
    family: Family, tmp_path: Path, method: str, normalize: bool | None
) -> None:
    parameters: dict[str, Any] = {} if normalize is None else {"normalize": normalize}
    if METHODS[method].needs_base:
        parameters["lambda"] = 0.7
    agree(family, recipe_text(family, method, parameters=parameters), tmp_path / "out")


@pytest.mark.parametrize("method", EXACT)
def test_negative_weights(family: Family, tmp_path: Path, method: str) -> None:
    agree(family, recipe_text(family, method, (0.9, -0.4, 0.3)), tmp_path / "out")


@pytest.mark.parametrize("method", EXACT)
def test_bfloat16_models_in_float32_arithmetic(
    half_family: Family, tmp_path: Path, method: str
) -> None:
    text = recipe_text(half_family, method, dtype="float32", out_dtype="bfloat16")
    agree(half_family, text, tmp_path / "out", roundings=1.0)


@pytest.mark.parametrize("method", EXACT)
def test_bfloat16_arithmetic_differs_by_its_rounding(
    half_family: Family, tmp_path: Path, method: str
) -> None:
    # Density 1: bfloat16 task vectors have ties everywhere, and mergekit breaks them arbitrarily.
    text = recipe_text(half_family, method, density=1.0, dtype="bfloat16")
    ours = dict(engine_of(half_family).tensors(Recipe.from_yaml(text)))
    theirs = run_mergekit(text, tmp_path / "out")
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.bfloat16
        off = (tensor.float() - theirs[name].float()).abs()
        largest = float(theirs[name].float().abs().max())
        # A sum near 0 elects the other sign once it is rounded.
        assert float((off > 4 * 2.0**-8 * largest).float().mean()) < 0.02, name


@pytest.mark.parametrize("method", EXACT)
def test_gradients_and_filters(family: Family, tmp_path: Path, method: str) -> None:
    by_part = [
        {"filter": "self_attn", "value": [0.2, 0.9]},
        {"filter": "mlp", "value": 0.6},
        {"value": 0.4},
    ]
    agree(
        family,
        recipe_text(
            family,
            method,
            ([0.1, 0.5, 1.0], by_part, 0.3),
            density=[{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}],
        ),
        tmp_path / "out",
    )


def slices(family: Family, method: str, ranges: Iterable[tuple[int, int]]) -> str:
    base, code, maths, _ = map(str, family.all)
    blocks = []
    for number, (first, end) in enumerate(ranges):
        inner = {"weight": [0.3, 0.8], **({"density": 0.6} if method == "ties" else {})}
        sources: list[Any] = [
            {"model": code, "layer_range": [first, end], "parameters": inner},
            {"model": maths, "layer_range": [first, end], "parameters": {"weight": 0.4}},
        ]
        if METHODS[method].needs_base:
            sources.append({"model": base, "layer_range": [first, end]})
        blocks.append({"sources": sources, "parameters": {"normalize": number % 2 == 0}})
    data = {"slices": blocks, "merge_method": method}
    if METHODS[method].needs_base:
        data["base_model"] = base
    return yaml.safe_dump(data)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("ranges", [[(0, 1), (1, 4)], [(0, 3), (1, 4)], [(2, 3), (0, 2)]])
def test_slices(family: Family, tmp_path: Path, method: str, ranges: list[tuple[int, int]]) -> None:
    theirs = agree(family, slices(family, method, ranges), tmp_path / "out")
    layers = sum(end - first for first, end in ranges)
    assert f"model.layers.{layers - 1}.mlp.up_proj.weight" in theirs
    assert f"model.layers.{layers}.mlp.up_proj.weight" not in theirs


@pytest.mark.parametrize("method", EXACT)
def test_the_quickstarts_trained_models(quickstart: Family, tmp_path: Path, method: str) -> None:
    text = recipe_text(quickstart, method, ([0.2, 0.9], 0.5, 0.4), density=[0.3, 0.8])
    agree(quickstart, text, tmp_path / "out")


# Statistics of the random methods.

KINDS = {
    "dare_linear": SparsificationMethod.random,
    "della_linear": SparsificationMethod.della_magprune,
}
ROUNDS = 200


def ours_sparsified(
    method: str, delta: torch.Tensor, density: float, epsilon: float, seed: int, rescale: bool
) -> torch.Tensor:
    part = Contribution(ModelReference("code"), "code", "w", 1.0, density, epsilon)
    base = (ModelReference("base"), "w")
    spec = TensorMerge("w", method, base, (part,), False, rescale, 1.0, seed)
    return merge(spec, torch.zeros_like(delta), [delta])


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("density", [0.2, 0.8])
def test_masks_keep_the_same_shares_and_means(method: str, density: float) -> None:
    delta = torch.randn(20, 60, generator=torch.Generator().manual_seed(0))
    epsilon = 0.15
    kept, means, totals = {}, {}, {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for who in ("ours", "theirs"):
            made = [
                ours_sparsified(method, delta, density, epsilon, seed, True)
                if who == "ours"
                else sparsify(
                    delta, density, KINDS[method], epsilon=epsilon, rescale_norm=RescaleNorm.l1
                )
                for seed in range(ROUNDS)
            ]
            stack = torch.stack(made)
            kept[who] = (stack != 0).float().mean(0)
            means[who], totals[who] = stack.mean(0), stack.abs().sum((1, 2))
    noise = (density * (1 - density) / ROUNDS) ** 0.5
    for who, share in kept.items():
        assert abs(float(share.mean()) - density) < 4 * noise / delta.numel() ** 0.5, who
        assert torch.allclose(totals[who], delta.abs().sum().expand(ROUNDS), rtol=1e-4), who
    # Element by element, as frequencies and as merged values.
    gap = (kept["ours"] - kept["theirs"]).abs() / (noise * 2**0.5)
    assert float(gap.max()) < 5.5
    assert float(gap.square().mean()) < 1.15
    spread = delta.abs() / density * noise * 2**0.5
    assert float(((means["ours"] - means["theirs"]).abs() / spread.clamp(min=1e-3)).max()) < 5.5
    rank = delta.abs().argsort(1).argsort(1)
    for low in range(0, 60, 15):
        tenth = (rank >= low) & (rank < low + 15)
        shares = [float(kept[who][tenth].mean()) for who in ("ours", "theirs")]
        assert shares[0] == pytest.approx(shares[1], abs=5 * noise / 300**0.5)


@pytest.mark.parametrize("method", RANDOM)
def test_whole_merges_have_the_same_mean_over_seeds(
    family: Family, tmp_path: Path, method: str
) -> None:
    rounds, name = 10, "model.layers.2.mlp.up_proj.weight"
    engine = engine_of(family)
    texts = [recipe_text(family, method, density=0.6, mask_seed=s) for s in range(rounds)]
    ours = [dict(engine.tensors(Recipe.from_yaml(text)))[name] for text in texts]
    theirs = [run_mergekit(texts[0], tmp_path / str(s), seed=s)[name] for s in range(rounds)]
    base = dict(_tensors(ModelReference(str(family.base))))[name]
    one, other = (torch.stack(made) - base for made in (ours, theirs))
    spread = (one.var(0) + other.var(0)).div(rounds).sqrt()
    gap = (one.mean(0) - other.mean(0)) / spread.clamp(min=1e-6)
    assert abs(float(gap.mean())) < 5 / gap.numel() ** 0.5
    assert float(one.abs().mean()) == pytest.approx(float(other.abs().mean()), rel=0.03)
    assert float((one == 0).float().mean()) == pytest.approx(
        float((other == 0).float().mean()), abs=0.03
    )
