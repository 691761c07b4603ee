"""Several stages merged in memory: the bits of one after the other, whatever was merged before."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from evomerge.errors import RecipeError, TrialError
from evomerge.merging import MergeEngine, StagedEngine, write_merge
from evomerge.merging.stages import StageResult
from evomerge.recipe import Recipe, read_recipes, write_recipes
from evomerge.references import ModelReference
from tests.merging.worlds import Family, llama, rewrite, run_mergekit, same_bits, stored


def staged(
    family: Family, *, weights: tuple[float, float] = (1.0, 0.5), **first: Any
) -> tuple[Recipe, ...]:
    """DARE of the first model onto the base, then that and the second by task arithmetic."""
    one = {"model": str(family.tuned[0]), "parameters": {"weight": 1.0, "density": 0.4}}
    sparse = {"name": "sparse", "merge_method": "dare_ties", "base_model": str(family.base)}
    models = [
        {"model": name, "parameters": {"weight": weight}}
        for name, weight in zip(("sparse", str(family.tuned[1])), weights, strict=True)
    ]
    last = {"merge_method": "task_arithmetic", "base_model": str(family.base), "models": models}
    documents = ({**sparse, "models": [one], **first}, last)
    return read_recipes(yaml.safe_dump_all(documents, sort_keys=False))


@pytest.fixture(scope="module")
def engine(family: Family) -> StagedEngine:
    return StagedEngine([str(path) for path in family.all])


def live_tensors(engine: StagedEngine, recipes: Sequence[Recipe]) -> dict[str, torch.Tensor]:
    model = llama()
    engine.merge_into(model, recipes)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_merged_in_memory_is_written_stage_by_stage(
    family: Family, engine: StagedEngine, tmp_path: Path
) -> None:
    recipes = staged(family, mask_seed=5)
    write_merge(recipes[:1], tmp_path / "sparse")
    one = str(tmp_path / "sparse")
    last = recipes[1].renamed(lambda model: type(model)(one) if model.path == "sparse" else model)
    write_merge([last], tmp_path / "by hand")
    write_merge(recipes, tmp_path / "at once")
    ours = live_tensors(engine, recipes)
    same_bits(stored(tmp_path / "at once"), ours)
    same_bits(stored(tmp_path / "by hand"), ours)


def test_threads_side_by_side_do_not_make_a_stage_merge_again(family: Family) -> None:
    """A merge from disk asks for several tensors at once, each twice: as base and as model."""
    made: list[str] = []

    def merged(name: str) -> torch.Tensor:
        made.append(name)
        return torch.tensor(int(name))

    engine = SimpleNamespace(
        like=None,
        layers=lambda recipe: None,
        target=SimpleNamespace(vocabulary=None),
        outline=lambda recipe: {},
        reader=lambda recipe: merged,
    )
    reference = ModelReference("stage")
    result = StageResult(reference, cast(MergeEngine, engine), staged(family)[0])
    with ThreadPoolExecutor(1) as other:
        assert int(result.tensor("1")) == 1
        assert int(other.submit(result.tensor, "2").result()) == 2
        assert int(result.tensor("1")) == 1
        assert int(other.submit(result.tensor, "2").result()) == 2
    assert made == ["1", "2"]


def test_a_merge_leaves_no_trace_in_the_next(family: Family, engine: StagedEngine) -> None:
    """The same names stand for other results: nothing of them may be remembered."""
    candidates = [
        staged(family, mask_seed=seed, weights=(1.0, w)) for seed, w in ((1, 0.5), (2, 1))
    ]
    candidates.append(staged(family, merge_method="ties"))
    single = Recipe.from_mapping(
        {
            "merge_method": "dare_ties",
            "base_model": str(family.base),
            "models": [
                {"model": str(one), "parameters": {"weight": 0.5, "density": 0.5}}
                for one in family.tuned
            ],
        }
    )
    candidates.append((single,))
    fresh = [
        live_tensors(StagedEngine([str(path) for path in family.all]), recipes)
        for recipes in candidates
    ]
    for _ in range(2):
        for recipes, wanted in zip(candidates, fresh, strict=True):
            same_bits(live_tensors(engine, recipes), wanted)
    names = list(fresh[0])
    assert any(not torch.equal(fresh[0][name], fresh[1][name]) for name in names)


def test_one_stage_is_the_engines_own_merge(family: Family, engine: StagedEngine) -> None:
    recipe = staged(family)[0]
    plain = MergeEngine(str(family.base), [str(path) for path in family.tuned])
    same_bits(live_tensors(engine, [recipe]), dict(plain.tensors(recipe)))


def test_a_stage_is_cast_to_its_own_type(family: Family, engine: StagedEngine) -> None:
    """What a later stage reads is what a file would hold."""
    found = {}
    for dtype in ("bfloat16", "float32"):
        types = {"dtype": "float32", "out_dtype": dtype}
        found[dtype] = live_tensors(engine, staged(family, **types))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(found["bfloat16"][name], found["float32"][name])
    torch.testing.assert_close(found["bfloat16"][name], found["float32"][name], rtol=0, atol=4e-3)


def test_a_stage_may_be_the_next_ones_base(
    family: Family, engine: StagedEngine, tmp_path: Path
) -> None:
    base, code, maths, _ = (str(path) for path in family.all)
    weight = {"parameters": {"weight": 0.75}}
    documents = [
        {
            "name": "halfway",
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": [{"model": code, **weight}],
        },
        {
            "merge_method": "task_arithmetic",
            "base_model": "halfway",
            "models": [{"model": maths, **weight}],
        },
    ]
    text = yaml.safe_dump_all(documents, sort_keys=False)
    ours = live_tensors(engine, read_recipes(text))
    run_mergekit(yaml.safe_dump(documents[0]), tmp_path / "halfway")
    config = yaml.safe_dump({**documents[1], "base_model": str(tmp_path / "halfway")})
    theirs = run_mergekit(config, tmp_path / "out")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_what_does_not_fit_is_refused_and_nothing_is_written(
    family: Family, engine: StagedEngine
) -> None:
    first, last = staged(family)
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stranger = first.renamed(lambda one: type(one)("org/stranger") if "code" in one.path else one)
    with pytest.raises(RecipeError, match="org/stranger is not among the models held"):
        engine.merge_into(model, [stranger, last])
    with pytest.raises(RecipeError, match="sparse is not among the models held"):
        engine.merge_into(model, [last])
    with pytest.raises(RecipeError, match="only the last stage may be without a name"):
        engine.merge_into(model, [last, last])
    narrow = llama(hidden_size=8)
    with pytest.raises(RecipeError, match="in the live LlamaForCausalLM"):
        engine.merge_into(narrow, [first, last])
    same_bits(dict(model.state_dict()), before)


def test_an_overflow_in_an_earlier_stage_is_told(own_family: Family) -> None:
    path = own_family.tuned[0]
    tensors = stored(path)
    rewrite(path, {name: tensor * 1e7 for name, tensor in tensors.items()})
    engine = StagedEngine([str(one) for one in own_family.all])
    recipes = staged(own_family, merge_method="task_arithmetic", out_dtype="float16")
    with pytest.raises(TrialError, match=r"the merged tensor holds NaN or infinity \(as torch.fl"):
        engine.merge_into(llama(), recipes)


def test_stages_survive_a_file(family: Family) -> None:
    recipes = staged(family, mask_seed=2)
    assert read_recipes(write_recipes(recipes)) == recipes
