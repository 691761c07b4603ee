"""A space of two stages from ``check`` to ``merge``, and a method that is searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.worlds import SPACE, World, run, same_bits, strict_json, table, tensors, told

FIRST: dict[str, Any] = {
    "name": "adder",
    "base_model": "quickstart/models/base",
    "models": ["quickstart/models/add"],
    "merge_method": "dare_ties",
    "genome": {"weight": 1.0, "density": [0.2, 0.9]},
    "mask_seed": 4,
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two studies: of two stages, and of three methods."""
    from tests.cli.worlds import LocalWorkers

    world = World.make(tmp_path_factory.mktemp("staged"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(world.root)
        patch.setattr("evomerge.search.workers.RayPool", LocalWorkers)
        last = {**SPACE, "models": ["adder", "quickstart/models/most"]}
        last["genome"] = {"weight": [0.0, 1.2]}
        world.write("staged.yaml", yaml.safe_dump_all([FIRST, last], sort_keys=False))
        methods = {"merge_method": ["ties", "dare_ties", "linear"], "dtype": "bfloat16"}
        genome = {"weight": [0.0, 1.0], "density": [0.3, 0.9]}
        world.space("choice", **methods, genome=genome, search={"sampler": "tpe", "seed": 1})
        for name, trials in (("staged", 8), ("choice", 12)):
            result = run("search", f"{name}.yaml", "--trials", trials)
            assert result.exit_code == 0, result.stderr
            assert "failed" not in result.stderr
    return world


@pytest.fixture
def world(there: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(there.root)
    return there


def test_a_staged_space_is_checked(world: World) -> None:
    found = strict_json(run("check", "staged.yaml", "--json").stdout)
    assert [gene["name"] for gene in found["genes"]] == [
        *("adder/density/add", "weight/adder", "weight/most")
    ]
    assert [Path(one["model"]).name for one in found["models"]] == ["base", "add", "most"]
    assert found["baselines"] == ["base", "uniform", "only add", "only most"]
    assert found["merge_method"] == "dare_ties, then task_arithmetic"


def test_the_exported_stages_make_the_trials_tensors(world: World, tmp_path: Path) -> None:
    from evomerge import api
    from evomerge.checkpoints import Checkpoint
    from evomerge.search.pool import Job

    assert run("export", "staged", "--trial", 7, "-o", tmp_path / "best.yaml").exit_code == 0
    documents = list(yaml.safe_load_all((tmp_path / "best.yaml").read_text()))
    assert [document.get("name") for document in documents] == ["adder", None]
    result = run("merge", tmp_path / "best.yaml", tmp_path / "model")
    assert result.exit_code == 0, result.stderr
    written = tensors(tmp_path / "model")

    live: list[Any] = []
    load = Checkpoint.load_model
    with pytest.MonkeyPatch.context() as patch:

        def remembered(self: Checkpoint, **options: Any) -> Any:
            live.append(load(self, **options))
            return live[-1]

        patch.setattr(Checkpoint, "load_model", remembered)
        evaluator = api.check("staged.yaml").plan()
        study = api.load_study("staged")
        for trial in (study.trials[4], study.trials[0], study.trials[7]):
            outcome = evaluator.run(Job(trial.number, trial.recipe or ""))
    assert outcome.scores is not None
    same_bits(live[0].state_dict(), written, sorted(written))
    exported = api.export("staged", trial=7)
    assert isinstance(exported, tuple)
    assert exported == study.recipes(7)


def test_a_staged_study_is_told_and_goes_on(world: World) -> None:
    rows = table(world.study("staged"))
    assert list(rows.label[:4]) == ["base", "uniform", "only add", "only most"]
    assert rows["adder/density/add"][4:].between(0.2, 0.9).all()
    # The base and the blend are points of the space; models inside a stage are not.
    assert rows["weight/adder"].notna().tolist() == [True, True, False, True, *[True] * 4]
    best = run("export", "staged").stdout
    assert best.rstrip() == (
        (world.study("staged") / "best.yaml").read_text().partition("\n")[2].rstrip()
    )
    again = run("search", "staged.yaml", "--trials", 8)
    assert again.exit_code == 0, again.stderr
    assert len(table(world.study("staged"))) == 8


def test_the_method_is_searched(world: World) -> None:
    rows = table(world.study("choice"))
    assert list(rows.label[:6]) == [
        *("base", "uniform ties", "uniform dare_ties", "uniform linear", "only add", "only most")
    ]
    methods = ("ties", "dare_ties", "linear")
    assert rows["merge_method"][1:4].tolist() == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    from evomerge.api import load_study

    study = load_study("choice")
    for number in range(6, 12):
        gene = study.trials[number].genome["merge_method"]
        assert study.recipe(number).merge_method == methods[min(int(gene * 3), 2)]


def test_what_mergekit_would_not_do_is_told(world: World, tmp_path: Path) -> None:
    keys = {"variant": "paper", "mask_by": "magnitude"}
    space = world.space("paper", merge_method="dare_linear", **keys, genome={"density": [0.2, 1]})
    from evomerge.search.baselines import decode
    from evomerge.space import load_space

    loaded = load_space(space)
    text = decode(loaded, {gene.name: gene.high for gene in loaded.genes(6)}, 6)
    world.write("paper_recipe.yaml", text)
    assert text.startswith("# Not in mergekit, which ignores it: variant: paper")
    (tmp_path / "taken").write_text("")
    result = run("merge", "paper_recipe.yaml", tmp_path / "taken")
    assert result.exit_code == 1, "nothing is merged over what is there"
    assert "mergekit would make another model of this recipe: it ignores variant: paper" in told(
        result
    )
    assert "it ignores mask_by: magnitude" in told(result)
