"""The coefficients of every tensor are those that mergekit 0.1.5 plans for the same file."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe import METHODS, Layout, Recipe, RecipeWarning, TensorMerge, resolve
from evomerge.recipe.methods import SHARED
from tests.recipe.strategies import recipes

mergekit_plan = pytest.importorskip("mergekit.plan")

from mergekit.architecture import get_architecture_info  # noqa: E402
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.io.tasks import LoaderCache  # noqa: E402
from mergekit.merge_methods import registry  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402

Plan = dict[str, Any]


def planned(text: str) -> dict[str, Plan]:
    """mergekit's plan of a recipe: output tensor → what it is made of."""
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions()
    LoaderCache().setup(options=options)
    logging.disable(logging.WARNING)
    try:
        planner = mergekit_plan.MergePlanner(
            config,
            get_architecture_info(config, options),
            options=options,
            out_model_config=config.referenced_models()[0].config(),
        )
        tasks = planner.plan_to_disk("never-written")
    finally:
        logging.disable(logging.NOTSET)
    return {
        task.tensor_name: _plan(task.tensor_task) for task in tasks if hasattr(task, "tensor_name")
    }


def _plan(task: Any) -> Plan:
    names = {model: info.name for model, info in task.gather_tensors.weight_info.items()}
    spec = METHODS[task.method_name]
    base = task.base_model if spec.takes_base else None
    inputs = [
        (str(model), names[model], dict(task.input_parameters[model].items()))
        for model in task.model_order
        if model != base
    ]
    return {
        "base": (str(base), names[base]) if base else None,
        "inputs": inputs,
        "shared": dict(task.parameters.items()),
    }


def same(ours: TensorMerge, theirs: Plan) -> None:
    spec = METHODS[ours.method]
    assert (ours.base and (str(ours.base[0]), ours.base[1])) == theirs["base"]
    assert [(str(c.model), c.tensor) for c in ours.contributions] == [
        (model, tensor) for model, tensor, _ in theirs["inputs"]
    ]
    for contribution, (_, _, values) in zip(ours.contributions, theirs["inputs"], strict=True):
        for name in ("weight", "density", "epsilon", "gamma"):
            if name in spec.parameters:
                assert getattr(contribution, name) == values[name], name
    ours_of = {"lambda": "lambda_", "nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
    for name in (name for name in spec.parameters if name in SHARED):
        value = theirs["shared"][name]
        assert getattr(ours, ours_of.get(name, name)) == value, name


@pytest.mark.parametrize("name", METHODS)
def test_the_table_is_mergekits(name: str) -> None:
    """Defaults, base model, number of models: as mergekit 0.1.5 declares them."""
    ours, theirs = METHODS[name], registry.get(name).spec
    policy = theirs.contract.base.value
    assert {"blended": "ignored"}.get(ours.base, ours.base) == policy
    bases = int(ours.needs_base)
    assert ours.least == max(theirs.contract.min_inputs - 1, theirs.contract.min_non_base or 0)
    most = theirs.contract.max_inputs
    assert ours.most == (theirs.contract.max_non_base if most is None else most - bases)
    defaults = {spec.name: spec for spec in theirs.parameters if spec.name != "int8_mask"}
    unread = {"density", "rescale"} if ours.sparsifier is None else set()
    assert set(ours.parameters) == set(defaults) - unread
    for parameter in ours.parameters:
        assert defaults[parameter].required == (parameter in ("weight", "t"))
        own = {"lambda": "lambda_"}.get(parameter, parameter)
        if hasattr(ours, own):
            assert getattr(ours, own) == defaults[parameter].default
        elif not defaults[parameter].required:
            assert defaults[parameter].default is (parameter == "nuslerp_flatten")


def resolved(text: str, layout: Layout) -> tuple[tuple[TensorMerge, ...], str]:
    """Our coefficients, or why there are none."""
    try:
        return resolve(Recipe.from_yaml(text), layout), ""
    except RecipeError as refused:
        return (), str(refused)


def agree(text: str, layout: Layout) -> None:
    ours = resolve(Recipe.from_yaml(text), layout)
    theirs = planned(text)
    assert {merge.name for merge in ours} == set(theirs)
    for merge in ours:
        same(merge, theirs[merge.name])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), weighted=st.sampled_from([True, True, True, False]))
@pytest.mark.filterwarnings("ignore::evomerge.recipe.RecipeWarning")
def test_any_recipe_means_the_same_to_mergekit(
    data: st.DataObject, weighted: bool, tiny_models: tuple[str, ...], tiny_layout: Layout
) -> None:
    mapping = data.draw(recipes(tiny_models, num_layers=4, weighted=weighted))
    text = yaml.safe_dump(mapping)
    merges, refused = resolved(text, tiny_layout)
    if refused:
        assert "has no weight" in refused
        with pytest.raises(RuntimeError, match="Missing required parameter weight"):
            planned(text)
        return
    recipe = Recipe.from_yaml(text)
    theirs, of_ours = planned(text), planned(recipe.to_yaml())
    assert theirs == of_ours, "what we write means the same as what we read"
    assert {merge.name for merge in merges} == set(theirs)
    for merge in merges:
        same(merge, theirs[merge.name])


@pytest.mark.filterwarnings("ignore:.*base model's parameters")
def test_gradients_filters_and_precedence(
    tiny_models: tuple[str, ...], tiny_layout: Layout
) -> None:
    base, code, maths, _ = tiny_models
    agree(
        f"""
slices:
  - sources:
      - {{model: {base}, layer_range: [0, 3]}}
      - model: {code}
        layer_range: [1, 4]
        parameters:
          weight:
            - {{filter: layers.1., value: 0.125}}
            - {{filter: self_attn, value: [0, "1e-1", 1]}}
      - {{model: {maths}, layer_range: [0, 3], parameters: {{density: [0.3, 0.6]}}}}
    parameters:
      weight: [{{filter: mlp, value: [1, 0]}}]
      lambda: [0.5, 1.5]
  - sources:
      - {{model: {base}, layer_range: [3, 4]}}
      - {{model: {code}, layer_range: [3, 4], parameters: {{epsilon: 1.0e-3}}}}
      - {{model: {maths}, layer_range: [0, 1]}}
    base_model: {code}
    parameters: {{normalize: [false, true], rescale: false}}
merge_method: della
base_model: {base}
parameters: {{weight: [0.25, 0.75], density: 0.5, epsilon: [0.1, 0.2], int8_mask: true}}
dtype: bfloat16
""",
        tiny_layout,
    )


def test_layers_can_be_stacked(tiny_models: tuple[str, ...], tiny_layout: Layout) -> None:
    base, code, *_ = tiny_models
    agree(
        f"""
slices:
  - sources: [{{model: {code}, layer_range: [0, 3]}}]
  - sources: [{{model: {base}, layer_range: [1, 4], parameters: {{weight: [0.5, 2]}}}}]
merge_method: linear
parameters: {{weight: 1}}
""",
        tiny_layout,
    )


def test_linear_counts_the_base_among_the_models(
    tiny_models: tuple[str, ...], tiny_layout: Layout
) -> None:
    base, code, *_ = tiny_models
    text = f"""
models:
  - {{model: {code}, parameters: {{weight: 0.25}}}}
merge_method: linear
base_model: {base}
"""
    with pytest.raises(RuntimeError, match="Missing required parameter weight"):
        planned(text)
    with pytest.raises(RecipeError, match=r"base_model: .* linear needs one for every model"):
        Recipe.from_yaml(text)
    agree(text + "parameters: {weight: 2}", tiny_layout)


def test_more_sources_in_the_last_slice_are_merged_as_written(
    tiny_models: tuple[str, ...], tiny_layout: Layout
) -> None:
    base, code, *_ = tiny_models
    recipe = Recipe.from_yaml(f"""
slices:
  - sources: [{{model: {base}, layer_range: [0, 2]}}]
  - sources:
      - {{model: {base}, layer_range: [2, 4]}}
      - {{model: {code}, layer_range: [2, 4], parameters: {{weight: 0.5}}}}
merge_method: task_arithmetic
base_model: {base}
""")
    with pytest.warns(RecipeWarning, match=r"the first slice has 1 sources, the last 2"):
        merges = {merge.name: merge for merge in resolve(recipe, tiny_layout)}
    assert [c.weight for c in merges["lm_head.weight"].contributions] == [0.5]
    assert not merges["model.embed_tokens.weight"].contributions


def test_a_base_listed_once_is_mergekits_own_idiom(
    tiny_models: tuple[str, ...], tiny_layout: Layout
) -> None:
    base, code, *_ = tiny_models
    text = f"""
models:
  - model: {base}
  - {{model: {code}, parameters: {{weight: 0.5, density: 0.3}}}}
merge_method: ties
base_model: {base}
"""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecipeWarning)
        agree(text, tiny_layout)
