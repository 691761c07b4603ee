"""What is written is read as the same recipe, by us and by mergekit."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.recipe import Recipe
from evomerge.references import ModelReference
from tests.recipe.strategies import recipes

MODELS = ("org/base", "org/code", "./maths@main", "prose+org/lora@v1")

# Any text that YAML can hold: no lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))

LAX = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)

pytestmark = pytest.mark.filterwarnings("ignore::evomerge.recipe.RecipeWarning")


def reread(recipe: Recipe) -> Recipe:
    return Recipe.from_yaml(recipe.to_yaml())


@LAX
@given(recipes(MODELS, num_layers=6), st.integers(0, 2**63 - 1))
def test_writing_and_reading_changes_nothing(data: dict[str, Any], seed: int) -> None:
    recipe = Recipe.from_mapping({**data, "mask_seed": seed})
    assert reread(recipe) == recipe
    assert reread(recipe).to_mapping() == recipe.to_mapping()
    assert yaml.safe_load(recipe.to_yaml()) == recipe.to_mapping()
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe


@LAX
@given(
    st.dictionaries(
        st.sampled_from(["chat_template", "name", "filter", "path", "revision", "token"]), TEXTS
    )
)
def test_any_text_survives(texts: dict[str, str]) -> None:
    path = texts.get("path") or "org/code"
    data: dict[str, Any] = {
        "models": [{"model": {"model": {"path": path, "revision": texts.get("revision") or None}}}],
        "merge_method": "linear",
        "parameters": {
            "weight": [{"filter": texts.get("filter", "mlp"), "value": [1.0, 0.5]}, {"value": 2}]
        },
        "tokenizer": {"tokens": {texts.get("token", "x"): {"source": {"kind": "zero"}}}},
        "chat_template": texts.get("chat_template"),
    }
    name = texts.get("name", "").translate({ord("+"): None, ord("@"): None})
    recipe = Recipe.from_mapping({**data, "name": name if name.strip() else None})
    assert reread(recipe) == recipe


@LAX
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_every_bit(value: float) -> None:
    recipe = Recipe.from_mapping(
        {"models": [{"model": "m"}], "merge_method": "linear", "parameters": {"weight": value}}
    )
    assert yaml.safe_load(recipe.to_yaml())["parameters"]["weight"] == value
    assert reread(recipe).parameters.settings["weight"][0].values == (value,)


def test_the_whole_shape() -> None:
    text = """\
name: final
slices:
- sources:
  - model: org/base
    layer_range: [0, 2]
  - model: org/code@main+org/lora@v1
    layer_range: [2, 4]
    parameters:
      weight: [0.1, 1.0e-05]
  base_model: org/base
  parameters:
    density:
    - filter: mlp
      value: [0.5, 1]
    - value: 0.25
merge_method: dare_ties
base_model: org/other
parameters:
  normalize: true
  int8_mask: true
dtype: float32
out_dtype: bfloat16
tokenizer:
  source: union
  tokens:
    <|im_start|>:
      source: org/code
      force: true
    <|im_end|>:
      source:
        kind: model_token
        model: org/code
        token_id: 7
    <|pad|>:
      source:
        kind: zero
  pad_to_multiple_of: 64
chat_template: |-
  {% for m in messages %}
  {{ m }}
  {% endfor %}
mask_seed: 11
"""
    assert Recipe.from_yaml(text).to_yaml() == text


def test_the_seed_is_written_wherever_masks_are_drawn() -> None:
    data: dict[str, Any] = {
        "models": [{"model": "org/code", "parameters": {"weight": 1}}],
        "base_model": "org/base",
    }
    assert Recipe.from_mapping({**data, "merge_method": "della"}).to_mapping()["mask_seed"] == 0
    assert "mask_seed" not in Recipe.from_mapping({**data, "merge_method": "ties"}).to_mapping()


def test_a_path_that_would_be_read_as_something_else_is_written_as_a_mapping() -> None:
    model = ModelReference("/data/a+b@c@d")
    recipe = Recipe.from_mapping(
        {
            "models": [{"model": {"model": {"path": model.path}}, "parameters": {"weight": 1}}],
            "merge_method": "linear",
            "tokenizer_source": {"model": {"path": "union"}},
        }
    )
    assert recipe.to_mapping()["models"][0]["model"] == {"model": {"path": model.path}}
    assert reread(recipe) == recipe
    assert recipe.tokenizer_source == ModelReference("union")


@pytest.mark.parametrize("text", ["1e5", "1e-3", "yes", "null", "0x10"])
def test_names_that_look_like_numbers_stay_names(text: str) -> None:
    recipe = Recipe.from_mapping(
        {
            "models": [{"model": text}],
            "merge_method": "linear",
            "parameters": {"weight": [{"filter": text, "value": 1}, {"value": 2}]},
        }
    )
    assert reread(recipe) == recipe


def test_mergekit_reads_what_we_write() -> None:
    config = pytest.importorskip("mergekit.config")
    recipe = Recipe.from_mapping(
        {
            "name": "stage",
            "models": [
                {"model": "org/code@main+org/lora", "parameters": {"weight": [0.1, "1e-3"]}},
                {"model": {"model": {"path": "/a+b"}}, "parameters": {"weight": 1}},
            ],
            "merge_method": "della",
            "base_model": "org/base",
            "tokenizer": {
                "source": "org/code",
                "tokens": {
                    "<x>": {"source": {"kind": "model_token", "model": "org/code", "token": "y"}},
                    "<z>": {"source": {"kind": "zero"}, "force": True},
                    "<m>": {"source": "org/code"},
                },
                "pad_to_multiple_of": 8,
            },
            "chat_template": "auto",
            "out_dtype": "torch.bfloat16",
            "mask_seed": 3,
        }
    )
    read = config.MergeConfiguration.model_validate(yaml.safe_load(recipe.to_yaml()))
    assert [str(one.model) for one in read.models] == ["org/code@main+org/lora", "/a+b"]
    assert read.models[0].parameters == {"weight": [0.1, 0.001]}
    assert (read.out_dtype, read.chat_template) == ("bfloat16", "auto")
    assert str(read.tokenizer.source) == "org/code"
    assert read.tokenizer.tokens["<x>"].source.token == "y"
    assert read.tokenizer.tokens["<z>"].source.kind == "zero"
    assert str(read.tokenizer.tokens["<m>"].source) == "org/code"
