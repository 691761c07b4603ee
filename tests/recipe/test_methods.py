"""The methods beyond task arithmetic, the variants and the ablations: read, refused, written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from evomerge.errors import RecipeError
from evomerge.recipe import METHODS, Layout, Recipe, RecipeWarning, TensorMerge, resolve

LAYOUT = Layout(
    {"embed": None, "layers.0.mlp": 0, "layers.0.norm": 0, "layers.1.mlp": 1, "head": None},
    frozenset({"head"}),
    2,
)
MODELS = ("org/code", "org/maths")


def text(method: str, *, base: str | None = "org/base", models: Any = MODELS, **top: Any) -> str:
    """A recipe; ``models`` are names, or names with their parameters."""
    entries = dict(models) if isinstance(models, Mapping) else dict.fromkeys(models)
    data: dict[str, Any] = {"merge_method": method}
    data["models"] = [
        {"model": name} if parameters is None else {"model": name, "parameters": parameters}
        for name, parameters in entries.items()
    ]
    if base:
        data["base_model"] = base
    return yaml.safe_dump({**data, **top}, sort_keys=False)


def merges(recipe: str) -> dict[str, TensorMerge]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecipeWarning)
        read = Recipe.from_yaml(recipe)
        found = resolve(read, LAYOUT)
        assert resolve(Recipe.from_yaml(read.to_yaml()), LAYOUT) == found, "written and read again"
    return {merge.name: merge for merge in found}


def faults(recipe: str) -> list[str]:
    with pytest.raises(RecipeError) as refused:
        resolve(Recipe.from_yaml(recipe, "r.yaml"), LAYOUT)
    return [str(fault) for fault in refused.value.faults]


def fault(recipe: str) -> str:
    found = faults(recipe)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_reads_a_gamma_for_each_model(method: str) -> None:
    own = {"weight": 0.5, "density": 0.9, "gamma": [{"filter": "mlp", "value": [0.02, 0.2]}]}
    found = merges(
        text(method, models={"org/code": own, "org/maths": {"weight": 1}}, parameters={"gamma": 0})
    )
    gammas = {name: merge.contributions[0].gamma for name, merge in found.items()}
    assert gammas == {
        **{"embed": 0.0, "layers.0.mlp": 0.02, "layers.0.norm": 0.0, "layers.1.mlp": 0.2},
        "head": 0.0,
    }
    assert all(not merge.rescale and not merge.normalize for merge in found.values())
    default = merges(text(method, models={"org/code": {"weight": 0.5, "density": 0.5}}))
    assert default["head"].contributions[0].gamma == 0.01
    wrong = text(method, models={"org/code": {"weight": 1, "density": 0.5, "gamma": 1}})
    assert fault(wrong) == (
        "r.yaml:7: models[0].parameters.gamma: gamma 1 is refused: the share removed as outliers "
        "lies in [0, 1)"
    )


def test_gamma_and_density_may_be_more_than_one() -> None:
    """gamma shrinks then, in the merge; the recipe says what it says, as in mergekit."""
    part = merges(
        text("breadcrumbs", models={"org/code": {"weight": 1, "density": 0.9, "gamma": 0.2}})
    )["head"].contributions[0]
    assert (part.density, part.gamma) == (0.9, 0.2)


def test_slerp_takes_a_gradient_and_filters_of_t() -> None:
    t = [{"filter": "mlp", "value": [0, 0.5]}, {"value": 0.25}]
    for models in (["org/code"], ["org/base", "org/code"], ["org/code", "org/base"]):
        found = merges(text("slerp", models=models, parameters={"t": t}))
        assert {name: merge.t for name, merge in found.items()} == {
            **{"embed": 0.25, "layers.0.mlp": 0.0, "layers.0.norm": 0.25, "layers.1.mlp": 0.5},
            "head": 0.25,
        }
        for merge in found.values():
            assert merge.base is not None
            assert str(merge.base[0]) == "org/base"
            assert [(str(c.model), c.weight) for c in merge.contributions] == [("org/code", 1.0)]


def test_slerp_needs_a_base_one_other_model_and_t() -> None:
    t = {"t": 0.5}
    assert (
        "base_model: is missing, and slerp requires it"
        in faults(text("slerp", base=None, parameters=t))[0]
    )
    assert fault(text("slerp", parameters=t)) == (
        "r.yaml:1: 2 models (org/code, org/maths) are refused: slerp merges exactly 1, the base "
        "model not counted"
    )
    alone = fault(text("slerp", models=["org/base"], parameters=t))
    assert "0 models (none) are refused: slerp merges exactly 1" in alone
    needs = "slerp needs t, how far from the base to the other model (parameters: {t: 0.5})"
    assert fault(text("slerp", models=["org/code"])) == f"r.yaml:1: {needs}"
    filtered = text("slerp", models=["org/code"], parameters={"t": [{"filter": "mlp", "value": 1}]})
    assert fault(filtered).endswith(
        "slerp has no t: no filter fits, and no entry is without one (tensor embed and 2 more)"
    )
    with pytest.warns(RecipeWarning, match="has no effect on a single model"):
        Recipe.from_yaml(text("slerp", models={"org/code": t}, parameters=t))
    with pytest.warns(RecipeWarning, match=r"has no effect: slerp reads t"):
        Recipe.from_yaml(text("slerp", models={"org/code": {"weight": 1}}, parameters=t))
    with pytest.warns(RecipeWarning, match=r"dropped from the models: slerp leads from the base"):
        Recipe.from_yaml(
            text("slerp", models={"org/code": None, "org/base": {"density": 1}}, parameters=t)
        )


def test_nuslerp_merges_two_models_and_may_have_a_base() -> None:
    two = {"org/code": {"weight": 0.25}, "org/maths": {"weight": [0, 1]}}
    found = merges(text("nuslerp", base=None, models=two))
    assert all(merge.base is None and merge.flatten for merge in found.values())
    assert [part.weight for part in found["layers.1.mlp"].contributions] == [0.25, 1.0]
    rows = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    for models in (two, {"org/base": None, **two}):
        found = merges(text("nuslerp", models=models, parameters=rows))
        for merge in found.values():
            assert merge.base is not None
            assert (len(merge.contributions), merge.flatten, merge.row_wise) == (2, False, True)
    assert "1 models (org/code) are refused: nuslerp merges exactly 2, the base" in fault(
        text("nuslerp", base="org/maths", models=two)
    )
    three = {**two, "org/chat": {"weight": 1}}
    assert fault(text("nuslerp", base=None, models=three)).endswith(
        "3 models (org/code, org/maths, org/chat) are refused: nuslerp merges exactly 2"
    )
    assert "org/maths has no weight; nuslerp needs one for every model" in fault(
        text("nuslerp", base=None, models={"org/code": {"weight": 1}, "org/maths": None})
    )


def test_model_stock_and_sce_read_no_weights() -> None:
    rows = [{"filter": "mlp", "value": True}, {"value": False}]
    stock = merges(text("model_stock", parameters={"filter_wise": rows}))
    assert {name for name, merge in stock.items() if merge.filter_wise} == {
        *("layers.0.mlp", "layers.1.mlp")
    }
    assert fault(text("model_stock", models=["org/code"])).endswith(
        "1 models (org/code) are refused: model_stock merges at least 2, the base model not counted"
    )
    chosen = merges(text("sce", parameters={"select_topk": [0.5, 1]}))
    assert [merge.select_topk for merge in chosen.values()] == [0.5, 0.5, 0.5, 1.0, 0.5]
    assert merges(text("sce"))["head"].select_topk == 1.0
    for share in (0, 1.5):
        assert f"select_topk {share} is refused: the share merged lies in (0, 1]" in fault(
            text("sce", parameters={"select_topk": share})
        )


def test_every_method_without_a_base_or_models_says_so() -> None:
    for method, spec in METHODS.items():
        problem = "\n".join(faults(text(method, base=None, models=["org/code"])))
        assert ("base_model: is missing" in problem) == spec.needs_base
        reads = spec.parameters
        assert ("has no weight" in problem) == ("weight" in reads)
        assert ("needs t" in problem) == ("t" in reads)


DARE = {"org/code": {"weight": 0.5, "density": 0.3}, "org/maths": {"weight": 1, "density": 0.2}}


@pytest.mark.parametrize("method", [n for n, s in METHODS.items() if "paper" in s.variants])
def test_the_papers_variants(method: str) -> None:
    models: dict[str, Any] = {name: {"density": 0.3} for name in MODELS}
    if "weight" in METHODS[method].reads("paper"):
        models = DARE
    found = merges(text(method, models=models, variant="paper"))
    assert {merge.variant for merge in found.values()} == {"paper"}
    assert METHODS[method].consensus_of("paper") == {
        "ties": "mean",
        "dare_ties": "mean",
        "dare_linear": "sum",
        "della": "elect",
        "della_linear": "sum",
    }.get(method)


def test_the_papers_ties_reads_no_weights() -> None:
    with pytest.warns(RecipeWarning, match="ties with variant paper reads lambda, density"):
        recipe = Recipe.from_yaml(text("ties", models=DARE, variant="paper"))
    weights = {c.weight for merge in resolve(recipe, LAYOUT) for c in merge.contributions}
    assert weights == {1.0}


def test_variants_and_ablations_that_mean_nothing_are_refused() -> None:
    tied = {"weight": 1, "density": 0.5}
    assert fault(text("task_arithmetic", models={"org/code": tied}, variant="paper")) == (
        "r.yaml:8: variant: 'paper' is refused: task_arithmetic has no such variant; allowed for "
        "ties, dare_linear, dare_ties, della, della_linear"
    )
    assert fault(text("ties", models={"org/code": tied}, variant="papers")) == (
        "r.yaml:8: variant: 'papers' is refused; allowed: mergekit, paper"
    )
    assert faults(text("della", models=DARE, mask_by="magnitude", mask_of="deltas")) == [
        "r.yaml:12: mask_by: is refused: della has no such masks; allowed for dare_linear, "
        "dare_ties",
        "r.yaml:13: mask_of: 'deltas' is refused; allowed: task_vectors, weights",
    ]
    assert fault(text("ties", models={"org/code": {**tied, "trim": 0.5}})) == (
        "r.yaml:7: models[0].parameters.trim: is refused: ties reads weight, normalize, lambda, "
        "density, rescale; trim goes with dare_ties and variant: paper"
    )
    assert "dare_ties reads weight" in fault(
        text("dare_ties", models={"org/code": {**tied, "trim": 0.5}})
    )


def test_dare_then_ties_trims_what_the_mask_has_left() -> None:
    models = {"org/code": {"density": [0.1, 0.4], "trim": 0.2}, "org/maths": {"density": 0.5}}
    found = merges(text("dare_ties", models=models, variant="paper"))
    assert [c.density for c in found["layers.1.mlp"].contributions] == [0.4, 0.5]
    assert {tuple(c.trim for c in merge.contributions) for merge in found.values()} == {(0.2, 1.0)}
    assert all(merge.rescale for merge in found.values())
    for share in (0, 1.1):
        models = {"org/code": {"trim": share}}
        assert f"trim {share} is refused: the share kept lies in (0, 1]" in fault(
            text("dare_ties", models=models, variant="paper")
        )


@pytest.mark.parametrize(
    ("method", "name", "line"), [("ties", "density", 5), ("dare_ties", "trim", 5)]
)
def test_a_model_is_trimmed_as_a_whole(method: str, name: str, line: int) -> None:
    several = f"{name} differs between tensors (0.2, 0.4), which is refused: {method} with variant"
    for value in ([0.2, 0.4], [{"filter": "mlp", "value": 0.4}, {"value": 0.2}]):
        models = {"org/code": {name: value}}
        found = fault(text(method, models=models, variant="paper"))
        assert found.startswith(f"r.yaml:{line}: models[0].parameters.{name}: {several}")
    # Each place has one value, and the tensors still differ.
    filtered = {"org/code": {name: [{"filter": "mlp", "value": 0.4}]}}
    split = text(method, models=filtered, parameters={name: 0.2}, variant="paper")
    assert f"org/code: {several.replace('0.2, 0.4', '0.2, 0.4')}" in fault(split)
    equal = text(method, models={"org/code": {name: [0.3, 0.3, 0.3, 0.3]}}, variant="paper")
    parts = [merge.contributions[0] for merge in merges(equal).values()]
    assert {getattr(part, name) for part in parts} == {0.3}


def test_what_mergekit_cannot_say_is_said() -> None:
    plain = Recipe.from_yaml(text("dare_ties", models=DARE, mask_seed=3))
    assert plain.beyond_mergekit() == []
    assert "#" not in plain.to_yaml()
    ours = Recipe.from_yaml(
        text("dare_linear", models=DARE, variant="paper", mask_by="magnitude", mask_of="weights")
    )
    assert [reason.partition(" (")[0] for reason in ours.beyond_mergekit()] == [
        *("variant: paper", "mask_by: magnitude", "mask_of: weights")
    ]
    written = ours.to_yaml()
    assert written.startswith("# Not in mergekit, which ignores it: variant: paper (dare_linear")
    assert Recipe.from_yaml(written) == ours
    assert "mask_seed" not in written, "nothing is drawn"
    spelt_out = text("dare_ties", models=DARE, variant="mergekit", mask_by="random")
    assert Recipe.from_yaml(spelt_out).beyond_mergekit() == []
    drop_only = Recipe.from_yaml(text("dare_ties", models=DARE, parameters={"rescale": False}))
    assert drop_only.beyond_mergekit() == [], "mergekit has that too"
