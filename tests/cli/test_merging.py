"""``evomerge merge`` after ``evomerge export``: the trial's tensors, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.worlds import World, run, same_bits, tensors, told

METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"dtype": "float32"},
    "dare_ties": {
        "dtype": "bfloat16",
        "mask_seed": 11,
        "genome": {
            "layers": {"groups": 2, "smooth": True},
            "filters": ["mlp"],
            "weight": [0.1, 1.2],
            "density": [0.3, 0.9],
        },
    },
    "della": {
        "dtype": "float16",
        "genome": {"weight": [0.1, 1.2], "density": [0.4, 0.8], "epsilon": 0.1},
    },
}


@pytest.fixture(scope="module", params=METHODS)
def studied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A study of each method, with an exported recipe and the model that it makes."""
    from tests.cli.worlds import LocalWorkers

    world = World.make(tmp_path_factory.mktemp(request.param))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(world.root)
        patch.setattr("evomerge.search.workers.RayPool", LocalWorkers)
        space = world.space("study", merge_method=request.param, **METHODS[request.param])
        result = run("search", space, "--trials", 6)
        assert result.exit_code == 0, result.stderr
        assert "failed" not in result.stderr
        assert run("export", "study", "--trial", 5, "-o", "recipe.yaml").exit_code == 0
        assert run("merge", "recipe.yaml", "merged").exit_code == 0
    return world


@pytest.fixture
def there(studied: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(studied.root)
    return studied


def test_the_written_model_is_the_trials(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.api import check, load_study
    from evomerge.checkpoints import Checkpoint
    from evomerge.merging import MergeEngine
    from evomerge.recipe import Recipe
    from evomerge.search.pool import Job

    written = tensors(there.root / "merged")
    recipe = load_study("study").trials[5].recipe
    assert recipe is not None

    models = [there.models / name for name in ("add", "most")]
    engine = MergeEngine(str(there.models / "base"), [str(path) for path in models])
    same_bits(dict(engine.tensors(Recipe.from_yaml(recipe))), written)

    live: list[Any] = []
    load = Checkpoint.load_model

    def remembered(self: Checkpoint, **options: Any) -> Any:
        live.append(load(self, **options))
        return live[-1]

    monkeypatch.setattr(Checkpoint, "load_model", remembered)
    evaluator = check("study.yaml").plan()
    others = [trial.recipe for trial in load_study("study").trials[3:5]]
    for candidate in [*others, recipe]:  # what came before leaves no trace
        outcome = evaluator.run(Job(0, candidate or ""))
    assert outcome.scores is not None
    state = live[0].state_dict()
    assert set(written) <= set(state)
    same_bits(state, written, sorted(written))


def test_from_pretrained_reads_the_same_tensors(there: World) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(there.root / "merged", dtype="auto")
    written = tensors(there.root / "merged")
    same_bits(model.state_dict(), written, sorted(written))
    tokenizer = AutoTokenizer.from_pretrained(there.root / "merged")
    base = AutoTokenizer.from_pretrained(there.models / "base")
    assert tokenizer.get_vocab() == base.get_vocab()
    assert (there.root / "merged" / "generation_config.json").is_file()
    assert (there.root / "merged" / "README.md").is_file()


def test_the_place_of_the_models_does_not_matter(
    there: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are keyed by label: the same recipe elsewhere makes the same bits."""
    elsewhere = tmp_path / "another" / "disk"
    shutil.copytree(there.root / "quickstart", elsewhere / "quickstart")
    text = (there.root / "recipe.yaml").read_text()
    assert str(there.root) in text
    (elsewhere / "recipe.yaml").write_text(text.replace(str(there.root), str(elsewhere)))
    (elsewhere / "relative.yaml").write_text(text.replace(f"{there.root}/", ""))
    monkeypatch.chdir(elsewhere)
    written = tensors(there.root / "merged")
    for name in ("recipe", "relative"):
        result = run("merge", f"{name}.yaml", name)
        assert result.exit_code == 0, result.stderr
        same_bits(tensors(elsewhere / name), written)


def test_small_shards_hold_the_same_tensors(there: World) -> None:
    result = run("merge", "recipe.yaml", "sharded", "--max-shard-size", "200kB")
    assert result.exit_code == 0, result.stderr
    folder = there.root / "sharded"
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").is_file()
    same_bits(tensors(folder), tensors(there.root / "merged"))


def test_an_existing_model_is_not_overwritten(shared: World) -> None:
    assert run("export", "small", "-o", "taken.yaml").exit_code == 0
    (shared.root / "taken").mkdir()
    assert run("merge", "taken.yaml", "taken").exit_code == 0  # an empty folder is no model
    before = tensors(shared.root / "taken")
    result = run("merge", "taken.yaml", "taken")
    assert result.exit_code == 1
    assert "taken" in told(result)
    assert "overwritten" in told(result)
    same_bits(tensors(shared.root / "taken"), before)


@pytest.mark.parametrize("size", ["5", "many", "0MB", "-1GB", "0.0001KB"])
def test_a_size_that_is_none(shared: World, size: str) -> None:
    shared.write("fine.yaml", linear("quickstart/models/add"))
    result = run("merge", "fine.yaml", "sized", f"--max-shard-size={size}")
    assert result.exit_code == 1
    assert "--max-shard-size" in told(result)
    assert size in told(result)
    assert not (shared.root / "sized").exists()


def linear(*models: str) -> str:
    parts = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return yaml.safe_dump({"merge_method": "linear", "models": parts, "dtype": "float32"})


def test_a_recipe_with_unknown_models_names_them_all(shared: World) -> None:
    shared.write("unknown.yaml", linear("quickstart/models/ad", "quickstart/models/mots"))
    before = shared.listing()
    result = run("merge", "unknown.yaml", "unknown")
    assert result.exit_code == 1
    assert "quickstart/models/ad" in told(result)
    assert "quickstart/models/mots" in told(result)
    assert shared.listing() == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("merge_method: tise\nmodels: [{model: quickstart/models/add}]\n", "tise"),
        ("merge_method: linear\nmodles: []\n", "modles"),
        ("merge_method: linear\nmodels: [", "wrong.yaml"),
        ("", "wrong.yaml"),
    ],
)
def test_a_wrong_recipe(shared: World, text: str, expected: str) -> None:
    shared.write("wrong.yaml", text)
    result = run("merge", "wrong.yaml", "wrong")
    assert result.exit_code == 1
    assert expected in told(result)
    assert not (shared.root / "wrong").exists()


def test_a_recipe_that_is_not_there(shared: World) -> None:
    result = run("merge", "nowhere.yaml", "nowhere")
    assert result.exit_code == 1
    assert "nowhere.yaml" in told(result)


def test_a_device_that_is_none(shared: World) -> None:
    shared.write("fine.yaml", linear("quickstart/models/add"))
    result = run("merge", "fine.yaml", "elsewhere", "--device", "tpux")
    assert result.exit_code == 1
    assert "tpux" in told(result)
    assert not (shared.root / "elsewhere").exists()
