"""What a space asks for, before anything is loaded: workers, devices, tasks, baselines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, InputError, SpaceError
from evomerge.merging import MergeEngine
from evomerge.recipe import Recipe
from evomerge.references import labels
from evomerge.search.baselines import baselines
from evomerge.search.plans import with_resources, worker_resources
from evomerge.search.preparation import prepare
from evomerge.space import SearchSpace, load_space

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"


@pytest.fixture(scope="module")
def quickstart() -> SearchSpace:
    return load_space(SPACES / "quickstart.yaml")


def variant(space: SearchSpace, tmp_path: Path, **changes: object) -> SearchSpace:
    """The quickstart's space with some keys written otherwise; models stay where they are."""
    data = yaml.safe_load((SPACES / "quickstart.yaml").read_text(encoding="utf-8"))
    data["base_model"] = str(space.base_model)
    data["models"] = [str(model) for model in space.models]
    data["include_path"] = [str(folder) for folder in space.include_path]
    data.update(changes)
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return load_space(path)


def test_resources_follow_the_machine_then_the_space_then_the_caller(
    quickstart: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plain = worker_resources(quickstart)
    assert (plain.workers, plain.cpus, plain.gpus) == (None, 1.0, 0.0)
    assert worker_resources(quickstart, workers=2).cpus == 4.0, "the cores are shared out"
    own = variant(quickstart, tmp_path, resources={"gpus": 0.5, "cpus": 3, "workers": 4})
    share = worker_resources(own)
    assert (share.workers, share.cpus, share.gpus) == (4, 3.0, 0.5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker_resources(quickstart).gpus == 1.0


@pytest.mark.parametrize(
    ("gpus", "device", "spread"), [(0, "cpu", False), (0.25, "cuda", False), (2, "cuda", True)]
)
def test_a_workers_device(
    quickstart: SearchSpace, tmp_path: Path, gpus: float, device: str, spread: bool
) -> None:
    space = variant(quickstart, tmp_path, resources={"gpus": gpus})
    plan = with_resources(prepare(space, hold_out=False).plan, worker_resources(space))
    assert (plan.device, plan.spread) == (device, spread)


def test_one_and_a_half_gpus_are_refused(quickstart: SearchSpace, tmp_path: Path) -> None:
    space = variant(quickstart, tmp_path, resources={"gpus": 1.5})
    with pytest.raises(SpaceError, match=r"resources.gpus: 1.5 is refused: .* whole number"):
        worker_resources(space)


@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "ties", "dare_ties", "dare_linear", "della"]
)
def test_baselines_are_the_models_themselves(
    quickstart: SearchSpace, tmp_path: Path, method: str
) -> None:
    """Base and fine-tuned baselines give the models' own tensors, whatever the method is."""
    genome: dict[str, object] = {"weight": [0.0, 1.0]}
    if method not in ("linear", "task_arithmetic"):
        genome["density"] = [0.2, 0.9]
    space = variant(quickstart, tmp_path, merge_method=method, genome=genome)
    engine = MergeEngine(space.base_model, space.models)
    planned = {baseline.label: baseline for baseline in baselines(space, 6)}
    models = [f"only {name}" for name in labels(space.models).values()]
    # Most models alone are far behind the blend: as it comes before, they are stopped early.
    assert list(planned)[:2] == ["base", "uniform"]
    assert list(planned)[-len(models) :] == models
    wanted = {"base": space.base_model}
    wanted |= {f"only {name}": model for model, name in labels(space.models).items()}
    for label, reference in wanted.items():
        recipe = Recipe.from_yaml(planned[label].recipe)
        alone = MergeEngine(None, [reference]).tensors(
            Recipe.from_mapping(
                {
                    "merge_method": "linear",
                    "models": [{"model": str(reference), "parameters": {"weight": 1.0}}],
                }
            )
        )
        for (name, tensor), (_, own) in zip(engine.tensors(recipe), alone, strict=True):
            torch.testing.assert_close(tensor, own, rtol=1e-5, atol=1e-6, msg=f"{label}: {name}")
    assert planned["uniform"].genome is not None


@pytest.mark.parametrize(
    ("method", "models", "genome", "inside"),
    [
        ("slerp", 1, {"t": [0.0, 1.0], "layers": {"groups": 2}}, {"base", "only add", "uniform"}),
        ("nuslerp", 2, {"weight": [0.0, 1.0]}, {"only add", "only count", "uniform"}),
        ("sce", 3, {"select_topk": [0.1, 1.0]}, {"uniform"}),
        (["model_stock", "sce"], 2, {"select_topk": [0.1, 1.0]}, {"uniform model_stock"}),
        (["slerp", "task_arithmetic"], 1, {"t": [0.0, 1.0]}, {"base", "uniform slerp"}),
    ],
)
def test_baselines_of_methods_that_have_no_weights(
    quickstart: SearchSpace,
    tmp_path: Path,
    method: object,
    models: int,
    genome: dict[str, object],
    inside: set[str],
) -> None:
    names = [str(model) for model in quickstart.models[:models]]
    space = variant(quickstart, tmp_path, merge_method=method, models=names, genome=genome)
    engine = MergeEngine(space.base_model, space.models)
    planned = {baseline.label: baseline for baseline in baselines(space, 6)}
    assert inside <= {label for label, one in planned.items() if one.genome is not None}
    alone = {f"only {label}": model for model, label in labels(space.models).items()}
    for label, reference in {"base": space.base_model, **alone}.items():
        own = Checkpoint.open(str(reference))
        for name, tensor in engine.tensors(Recipe.from_yaml(planned[label].recipe)):
            torch.testing.assert_close(tensor, own.tensor(name), rtol=1e-5, atol=1e-6, msg=name)
    for label, one in planned.items():
        if label.startswith("uniform"):
            assert all(t.isfinite().all() for _, t in engine.tensors(Recipe.from_yaml(one.recipe)))


@pytest.mark.parametrize(
    ("method", "genome", "inside"),
    [
        ("task_arithmetic", {"weight": [0.0, 1.0]}, True),
        ("task_arithmetic", {"weight": [0.2, 0.3]}, False),
        ("ties", {"weight": [0.0, 1.0], "lambda": [0.5, 2.0]}, True),
        ("ties", {"weight": [0.0, 1.0]}, False),
        ("ties", {"weight": [0.0, 1.0], "density": [0.1, 1.0], "lambda": [0.5, 2.0]}, True),
    ],
)
def test_uniform_blends_along_lambda(
    quickstart: SearchSpace, tmp_path: Path, method: str, genome: dict[str, object], inside: bool
) -> None:
    """`uniform × s` is base + s (uniform - base), however weights are bounded or normalized."""
    space = variant(quickstart, tmp_path, merge_method=method, genome=genome)
    engine = MergeEngine(space.base_model, space.models)
    planned = {baseline.label: baseline for baseline in baselines(space, 6)}
    scales = {"uniform × 0.5": 0.5, "uniform × 1.41": 2**0.5, "uniform × 2": 2.0}
    sparse = ["uniform density 0.5", "uniform density 0.2"] if method == "ties" else []
    assert list(planned)[2:-4] == [*scales, *sparse]
    base = Checkpoint.open(str(space.base_model))
    uniform = dict(engine.tensors(Recipe.from_yaml(planned["uniform"].recipe)))
    for label, scale in scales.items():
        assert (planned[label].genome is not None) == inside
        for name, tensor in engine.tensors(Recipe.from_yaml(planned[label].recipe)):
            own = base.tensor(name)
            wanted = own + scale * (uniform[name] - own)
            torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_uniform_blends_of_fewer_elements(quickstart: SearchSpace, tmp_path: Path) -> None:
    genome = {"weight": [0.0, 1.0], "density": [0.4, 1.0]}
    space = variant(quickstart, tmp_path, merge_method="dare_linear", genome=genome)
    planned = {baseline.label: baseline for baseline in baselines(space, 6)}
    names = labels(space.models).values()
    half = planned["uniform density 0.5"].genome
    assert half == {f"{p}/{n}": v for p, v in (("weight", 0.25), ("density", 0.5)) for n in names}
    fifth = planned["uniform density 0.2"]
    assert fifth.genome is None
    entries = Recipe.from_yaml(fifth.recipe).to_mapping()["models"]
    assert [entry["parameters"] for entry in entries] == 4 * [{"weight": 0.25, "density": 0.2}]


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"scan": False}},
        {"merge_method": "linear"},
        {"merge_method": ["task_arithmetic", "ties"]},
        {"merge_method": "sce", "genome": {"select_topk": [0.1, 1.0]}},
    ],
)
def test_no_scan_where_it_is_not_wanted_or_means_nothing(
    quickstart: SearchSpace, tmp_path: Path, changes: dict[str, object]
) -> None:
    space = variant(quickstart, tmp_path, **changes)
    assert not [b.label for b in baselines(space, 6) if "×" in b.label or "density" in b.label]


def test_baseline_outside_the_bounds_has_a_recipe_and_no_genome(
    quickstart: SearchSpace, tmp_path: Path
) -> None:
    space = variant(quickstart, tmp_path, genome={"weight": [0.1, 0.4]})
    planned = {baseline.label: baseline for baseline in baselines(space, 6)}
    assert planned["base"].genome is None
    assert planned["only add"].genome is None
    assert planned["uniform"].genome == {f"weight/{n}": 0.25 for n in labels(space.models).values()}


def test_faults_of_all_tasks_come_together(quickstart: SearchSpace, tmp_path: Path) -> None:
    tasks = [{"task": "quickstart_ad", "items": 20}, {"task": "quickstart_most", "items": 9999}]
    space = variant(quickstart, tmp_path, tasks=tasks, holdout={"items": 10})
    with pytest.raises(InputError) as caught:
        prepare(space)
    text = str(caught.value)
    assert "quickstart_ad" in text
    assert "9999 items" in text


def test_models_of_different_shapes_are_refused_before_the_tasks(
    quickstart: SearchSpace, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=72,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    models = [str(quickstart.models[0]), str(tmp_path / "narrow")]
    space = variant(quickstart, tmp_path, models=models)
    with pytest.raises(CheckpointError, match=r"embed_tokens.*64.*32|embed_tokens.*32.*64"):
        prepare(space)


def test_nothing_to_hold_out_is_a_note_and_no_fault(
    quickstart: SearchSpace, tmp_path: Path
) -> None:
    tasks = [{"task": "quickstart_most"}]
    prepared = prepare(variant(quickstart, tmp_path, tasks=tasks, holdout=None))
    assert prepared.holdout_items is None
    assert any("cannot be proved" in note for note in prepared.notes)


def test_where_every_gene_chooses_a_method_nothing_climbs(
    quickstart: SearchSpace, tmp_path: Path
) -> None:
    """Ten legs would score one recipe, as there is no slope along any gene."""
    methods = ["task_arithmetic", "ties"]
    genome = {"weight": 0.5, "density": 0.5}
    space = variant(quickstart, tmp_path, genome=genome, merge_method=methods)
    prepared = prepare(space)
    assert space.search.sampler == "ascent"
    assert prepared.plan.neighbourhood is None
    assert any("every gene chooses a method" in note for note in prepared.notes)
