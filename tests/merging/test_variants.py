"""The papers' variants and DARE's ablations are their definitions, over whole models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evomerge.merging import merge, uniform
from evomerge.merging.masks import drawn_density
from evomerge.merging.trimming import measure
from evomerge.recipe import METHODS, Contribution, TensorMerge
from evomerge.references import ModelReference
from tests.merging import reference_variants as paper

BASE = ModelReference("base")
SHAPES = {"a": (40, 31), "b": (57,), "c": (3, 1), "d": (1,), "e": (16, 5)}
WEIGHTS, DENSITIES = (0.5, -0.75, 1.25), (0.3, 0.62, 0.9)

Model = dict[str, torch.Tensor]


def models(values: int = 2048) -> list[Model]:
    """A base and three models; with few ``values`` many sums of task vectors are 0."""
    random = torch.Generator().manual_seed(values)
    return [
        {
            name: torch.randint(-values, values + 1, shape, generator=random) / 1024
            for name, shape in SHAPES.items()
        }
        for _ in range(4)
    ]


def specs_of(method: str, variant: str = "paper", **changes: object) -> list[TensorMerge]:
    known = METHODS[method]
    epsilon = 0.08 if known.sparsifier == "magprune" else 0.0
    plain = known.consensus_of(variant) == "mean"
    found = []
    for name in SHAPES:
        parts = tuple(
            Contribution(
                ModelReference(f"m{i}"), f"m{i}", name, 1.0 if plain else weight, density, epsilon
            )
            for i, (weight, density) in enumerate(zip(WEIGHTS, DENSITIES, strict=True))
        )
        spec = TensorMerge(
            name, method, (BASE, name), parts, known.normalize, known.rescale, 0.75, 4, variant
        )
        found.append(replace(spec, **changes))  # type: ignore[arg-type]
    return found


def merged(specs: list[TensorMerge], base: Model, tuned: list[Model]) -> Model:
    def inputs(spec: TensorMerge) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return base[spec.name], [model[spec.name] for model in tuned]

    whole = measure(specs, inputs)
    return {spec.name: merge(spec, *inputs(spec), whole=whole) for spec in specs}


def masks_of(base: Model, tuned: list[Model], method: str = "dare_linear") -> list[Model]:
    """Which elements our numbers keep."""
    found = []
    for i, density in enumerate(DENSITIES):
        masks = {}
        for name, tensor in base.items():
            u = uniform(4, f"m{i}", name, tensor.numel()).reshape(tensor.shape)
            q = drawn_density(density)
            if method.startswith("della"):
                delta = tuned[i][name] - tensor
                if (delta.shape[-1] if delta.dim() else 1) > 1:
                    q = paper.keep_probabilities(delta, density, 0.08)
            masks[name] = u < q
        found.append(masks)
    return found


def agree(found: Model, expected: Model) -> None:
    for name in SHAPES:
        assert torch.allclose(found[name].double(), expected[name], rtol=2e-6, atol=2e-6), name


@pytest.mark.parametrize("values", [1, 3, 2048])
def test_ties_trims_and_elects_over_the_whole_model(values: int) -> None:
    base, *tuned = models(values)
    expected = paper.ties(base, tuned, DENSITIES, 0.75)
    agree(merged(specs_of("ties"), base, tuned), expected)


@pytest.mark.parametrize("rescale", [True, False])
def test_dare_divides_by_the_density(rescale: bool) -> None:
    base, *tuned = models()
    masks = masks_of(base, tuned)
    deltas = [
        paper.masked(paper.task_vector(base, m), mask, drawn_density(d), rescale=rescale)
        for m, mask, d in zip(tuned, masks, DENSITIES, strict=True)
    ]
    expected = paper.summed(base, deltas, WEIGHTS, 0.75)
    agree(merged(specs_of("dare_linear", rescale=rescale), base, tuned), expected)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_divides_by_each_elements_probability(method: str) -> None:
    base, *tuned = models()
    masks = masks_of(base, tuned, method)
    deltas = [
        paper.della_masked(paper.task_vector(base, m), mask, d, 0.08)
        for m, mask, d in zip(tuned, masks, DENSITIES, strict=True)
    ]
    if method == "della":
        expected = paper.elected(base, deltas, WEIGHTS, 0.75, normalize=True)
    else:
        expected = paper.summed(base, deltas, WEIGHTS, 0.75)
    found = merged(specs_of(method), base, tuned)
    for name in SHAPES:
        # In a row of one element the density has eleven bits.
        assert torch.allclose(found[name].double(), expected[name], rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("trim", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_then_trim_then_elect_then_mean(trim: float, rescale: bool) -> None:
    base, *tuned = models()
    masks = masks_of(base, tuned)
    drawn = [drawn_density(d) for d in DENSITIES]
    expected = paper.dare_then_ties(base, tuned, masks, drawn, [trim] * 3, 0.75, rescale=rescale)
    specs = [
        replace(spec, contributions=tuple(replace(p, trim=trim) for p in spec.contributions))
        for spec in specs_of("dare_ties", rescale=rescale)
    ]
    agree(merged(specs, base, tuned), expected)


@pytest.mark.parametrize("rescale", [True, False])
def test_masks_by_magnitude(rescale: bool) -> None:
    base, *tuned = models()
    deltas = []
    for model, density in zip(tuned, DENSITIES, strict=True):
        task = paper.task_vector(base, model)
        masks = {}
        for name, delta in task.items():
            masks[name] = paper.largest(delta, max(density, 1 / delta.numel()))
        deltas.append(paper.masked(task, masks, density, rescale=rescale))
    expected = paper.summed(base, deltas, WEIGHTS, 0.75)
    specs = specs_of("dare_linear", rescale=rescale, mask_by="magnitude")
    agree(merged(specs, base, tuned), expected)


@pytest.mark.parametrize("rescale", [True, False])
def test_masks_of_the_weights_themselves(rescale: bool) -> None:
    base, *tuned = models()
    masked = [
        paper.masked_weights(m, mask, drawn_density(d), rescale=rescale)
        for m, mask, d in zip(tuned, masks_of(base, tuned), DENSITIES, strict=True)
    ]
    deltas = [paper.task_vector(base, model) for model in masked]
    expected = paper.summed(base, deltas, WEIGHTS, 0.75)
    specs = specs_of("dare_linear", rescale=rescale, mask_of="weights")
    agree(merged(specs, base, tuned), expected)


def test_mergekits_factor_with_masks_of_the_weights() -> None:
    """The L1 norm that is restored is that of what is masked."""
    base, *tuned = models()
    masks = masks_of(base, tuned)
    expected = {}
    for name, start in base.items():
        change = torch.zeros_like(start, dtype=torch.float64)
        for model, mask, weight in zip(tuned, masks, WEIGHTS, strict=True):
            theta = model[name].double()
            left = torch.where(mask[name], theta, 0.0)
            before, after = theta.abs().sum(), left.abs().sum()
            factor = before / after if before >= 1e-7 and after >= 1e-7 else 1.0
            change += weight * (left * factor - start)
        expected[name] = start + 0.75 * change
    specs = specs_of("dare_linear", "mergekit", mask_of="weights")
    agree(merged(specs, base, tuned), expected)


def test_a_variant_that_looks_at_whole_models_needs_them() -> None:
    base, *tuned = models()
    with pytest.raises(ValueError, match="whole models"):
        merge(specs_of("ties")[0], base["a"], [model["a"] for model in tuned])
