"""Coefficients per tensor: known answers; the comparison with mergekit is in test_agreement."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import Layout, Recipe, TensorMerge, output_layers, resolve

LAYERS = 4
LAYOUT = Layout(
    {
        "lm_head.weight": None,
        "model.embed_tokens.weight": None,
        **{
            f"model.layers.{layer}.{part}.weight": layer
            for layer in range(LAYERS)
            for part in ("self_attn.q_proj", "mlp.up_proj")
        },
        "model.norm.weight": None,
    },
    frozenset({"lm_head.weight", "model.norm.weight"}),
    LAYERS,
)


def recipe(own: dict[str, Any], method: str = "ties", **more: Any) -> Recipe:
    return Recipe.from_mapping(
        {
            "models": [{"model": "org/code", "parameters": own}],
            "merge_method": method,
            "base_model": "org/base",
            **more,
        }
    )


def resolved(one: Recipe) -> dict[str, TensorMerge]:
    return {merge.name: merge for merge in resolve(one, LAYOUT)}


def weights(one: Recipe, part: str) -> list[float]:
    return [merge.contributions[0].weight for name, merge in resolved(one).items() if part in name]


def test_a_gradient_goes_over_the_layers_and_its_first_value_holds_outside_them() -> None:
    one = recipe({"weight": [0.0, 3.0]})
    assert weights(one, "mlp") == [0.0, 1.0, 2.0, 3.0]
    assert weights(one, "embed") == weights(one, "norm") == weights(one, "lm_head") == [0.0]


def test_a_gradient_is_linear_between_its_values() -> None:
    assert weights(recipe({"weight": [0, 6, 0]}), "mlp") == pytest.approx([0, 4, 4, 0])


def test_switches_step() -> None:
    one = recipe({"weight": 1}, parameters={"normalize": [True, False]})
    found = [merge.normalize for name, merge in resolved(one).items() if "mlp" in name]
    assert found == [True, True, True, False]


def test_the_first_filter_that_fits_holds() -> None:
    one = recipe(
        {
            "weight": [
                {"filter": "layers.2.", "value": 5},
                {"filter": "mlp", "value": [1, 4]},
                {"value": 9},
            ]
        }
    )
    assert weights(one, "mlp") == [1.0, 2.0, 5.0, 4.0]
    assert weights(one, "self_attn") == [9.0, 9.0, 5.0, 9.0]
    assert weights(one, "embed") == [9.0]


def test_a_level_without_a_filter_that_fits_leaves_it_to_the_next() -> None:
    one = recipe({"weight": [{"filter": "mlp", "value": 1}]}, parameters={"weight": 2})
    assert weights(one, "mlp") == [1.0] * 4
    assert weights(one, "self_attn") == [2.0] * 4


def test_every_default_is_applied() -> None:
    merge = resolved(recipe({"weight": 1}, "della", mask_seed=5))["model.norm.weight"]
    assert (merge.normalize, merge.rescale, merge.lambda_, merge.mask_seed) == (True, True, 1.0, 5)
    assert merge.base is not None
    assert (str(merge.base[0]), merge.base[1]) == ("org/base", "model.norm.weight")
    (part,) = merge.contributions
    assert (part.label, part.weight, part.density, part.epsilon) == ("code", 1.0, 1.0, 0.15)


def test_what_a_method_does_not_read_is_not_passed_on() -> None:
    with pytest.warns(UserWarning, match="has no effect"):
        one = recipe({"weight": 1, "density": 0.5, "epsilon": 0.1}, "task_arithmetic")
    merge = resolved(one)["model.norm.weight"]
    assert (merge.contributions[0].density, merge.contributions[0].epsilon) == (1.0, 0.0)
    assert merge.rescale is False


def sources(*ranges: tuple[str, int, int, float | None]) -> dict[str, Any]:
    return {
        "sources": [
            {
                "model": model,
                "layer_range": [first, end],
                **({} if weight is None else {"parameters": {"weight": weight}}),
            }
            for model, first, end, weight in ranges
        ]
    }


def test_slices_stack_layers_and_filters_see_the_inputs_name() -> None:
    blocks = [
        sources(("org/base", 0, 2, None), ("org/code", 2, 4, None)),
        sources(("org/base", 1, 4, None), ("org/code", 1, 4, 0.5)),
    ]
    one = Recipe.from_mapping(
        {
            "slices": blocks,
            "merge_method": "task_arithmetic",
            "base_model": "org/base",
            "parameters": {
                "weight": [{"filter": "layers.3.", "value": 7}, {"value": 1}],
                "lambda": [{"filter": "layers.3.", "value": 7}, {"value": 1}],
            },
        }
    )
    assert output_layers(one, LAYERS) == 5
    merges = resolved(one)
    assert list(merges) == [
        "model.embed_tokens.weight",
        *(
            f"model.layers.{layer}.{part}.weight"
            for layer in range(5)
            for part in ("self_attn.q_proj", "mlp.up_proj")
        ),
        "lm_head.weight",
        "model.norm.weight",
    ]
    second = merges["model.layers.1.mlp.up_proj.weight"]
    assert second.base is not None
    assert second.base[1] == "model.layers.1.mlp.up_proj.weight"
    assert second.contributions[0].tensor == "model.layers.3.mlp.up_proj.weight"
    assert (second.contributions[0].weight, second.lambda_) == (7.0, 1.0)
    fourth = merges["model.layers.3.mlp.up_proj.weight"]
    assert fourth.contributions[0].tensor == "model.layers.2.mlp.up_proj.weight"
    assert (fourth.contributions[0].weight, fourth.lambda_) == (0.5, 7.0)
    assert merges["model.embed_tokens.weight"].contributions[0].weight == 1.0
    assert merges["lm_head.weight"].contributions[0].weight == 0.5


def test_a_slice_of_one_layer_takes_a_gradients_last_value() -> None:
    one = Recipe.from_mapping(
        {
            "slices": [
                sources(("org/base", layer, layer + 1, None), ("org/code", layer, layer + 1, None))
                for layer in range(LAYERS)
            ],
            "merge_method": "ties",
            "base_model": "org/base",
            "parameters": {"weight": [0.25, 0.75]},
        }
    )
    assert weights(one, "mlp") == [0.75] * 4
    assert weights(one, "norm") == [0.25]


def test_labels_tell_models_apart() -> None:
    one = Recipe.from_mapping(
        {
            "models": [{"model": name} for name in ("a/llama", "b/llama", "c/maths")],
            "merge_method": "linear",
            "parameters": {"weight": 1},
        }
    )
    merge = resolved(one)["lm_head.weight"]
    assert merge.base is None
    assert [part.label for part in merge.contributions] == ["a/llama", "b/llama", "c/maths"]


def refusal(one: Recipe) -> list[str]:
    with pytest.raises(RecipeError) as refused:
        resolve(one, LAYOUT)
    return [str(fault) for fault in refused.value.faults]


def test_a_weight_that_is_missing_for_some_tensors_is_said_once() -> None:
    assert refusal(recipe({"weight": [{"filter": "mlp", "value": 1}]})) == [
        "recipe: models[0]: org/code has no weight: no filter fits, and no entry is without a "
        "filter (tensor model.embed_tokens.weight and 6 more)"
    ]


def test_density_and_epsilon_are_checked_at_every_depth() -> None:
    one = recipe({"weight": 1, "density": [0.5, 0.9, 0.5], "epsilon": 0.25}, "della")
    assert refusal(one)[0].startswith(
        "recipe: models[0].parameters.density: org/code: density 0.766666"
    )
    assert refusal(one)[0].endswith("(tensor model.layers.1.self_attn.q_proj.weight and 1 more)")


def test_density_behind_a_filter_is_checked() -> None:
    one = recipe({"weight": 1, "density": [{"filter": "mlp", "value": 0.95}]}, "della_linear")
    (found,) = refusal(one)
    assert "density 0.95 with epsilon 0.15 is refused: della_linear keeps" in found


def test_layers_that_the_model_lacks_are_refused() -> None:
    one = Recipe.from_mapping(
        {"slices": [sources(("m", 2, 9, 1.0), ("n", 0, 7, 1.0))], "merge_method": "linear"}
    )
    assert refusal(one) == [
        f"recipe: slices[0].sources[{index}]: layer_range {found} is refused: the model has 4 "
        "layers, so the second number is at most 4"
        for index, found in enumerate(("[2, 9]", "[0, 7]"))
    ]


def test_tensors_that_a_layer_lacks_are_refused() -> None:
    layout = Layout({"h.0.a": 0, "h.1.a": 1, "h.1.b": 1}, frozenset(), 2)
    one = Recipe.from_mapping(
        {"slices": [sources(("m", 1, 2, 1.0), ("n", 0, 1, 1.0))], "merge_method": "linear"}
    )
    with pytest.raises(RecipeError, match=r"sources\[1\]: n has no tensor for it \(tensor h.0.b\)"):
        resolve(one, layout)


def test_linear_does_not_divide_by_zero() -> None:
    data = {
        "models": [
            {"model": "m", "parameters": {"weight": [1, 0]}},
            {"model": "n", "parameters": {"weight": [-1, 1]}},
        ],
        "merge_method": "linear",
    }
    assert refusal(Recipe.from_mapping(data)) == [
        "recipe: the weights sum to 0 and linear divides by their sum (normalize: false would "
        "not) (tensor model.embed_tokens.weight and 4 more)"
    ]
    assert resolve(Recipe.from_mapping({**data, "parameters": {"normalize": False}}), LAYOUT)


@pytest.mark.parametrize(
    ("tensors", "last"),
    [({"h.3.a": 3}, ()), ({"h.1.a": 0}, ()), ({"h.0.a": 0}, ("h.0.a",)), ({}, ("norm",))],
)
def test_a_layout_that_contradicts_itself_is_refused(
    tensors: dict[str, int | None], last: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=r"layer|component"):
        Layout(tensors, frozenset(last), 2)


def test_recipes_and_coefficients_cross_process_borders() -> None:
    one = recipe({"weight": [0.0, 1.0]})
    assert pickle.loads(pickle.dumps(one)) == one
    merges = resolve(one, LAYOUT)
    assert pickle.loads(pickle.dumps(merges)) == merges
