"""Reading: mergekit's forms are understood; what is wrong is said with its line, all at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import METHODS, Case, MethodSpec, Recipe, RecipeWarning, Tokenizer
from evomerge.references import ModelReference

TIES = """\
models:
  - model: org/code
    parameters: {weight: 0.5}
  - model: org/maths
    parameters: {weight: 0.5}
merge_method: ties
base_model: org/base
"""

BIOMED = """\
models:
  - model: meta-llama/Meta-Llama-3-8B-Instruct
    # Base model providing a general foundation without specific parameters
  - model: meta-llama/Meta-Llama-3-8B-Instruct
    parameters:
      density: 0.60
      weight: 0.5
  - model: NousResearch/Hermes-2-Pro-Llama-3-8B
    parameters:
      density: 0.55
      weight: 0.1
  - model: aaditya/Llama3-OpenBioLLM-8B
    parameters:
      density: 0.55
      weight: 0.3
merge_method: dare_ties
base_model: meta-llama/Meta-Llama-3-8B-Instruct
parameters:
  int8_mask: true
dtype: bfloat16
"""


def faults(text: str) -> list[str]:
    with pytest.raises(RecipeError) as refused:
        Recipe.from_yaml(text, "r.yaml")
    return [str(fault) for fault in refused.value.faults]


def fault(text: str) -> str:
    found = faults(text)
    assert len(found) == 1, found
    return found[0]


def quietly(text: str) -> Recipe:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecipeWarning)
        return Recipe.from_yaml(text, "r.yaml")


def test_everything_that_is_wrong_is_said_at_once_with_its_line() -> None:
    assert faults("""\
models:
  - model: org/code
    parameters:
      wieght: 0.5
      weight: many
  - modle: org/maths
    parameters: {weight: 1, density: [0.5, 0]}
  - model: org/code
    parameters: {density: 1.5}
slices:
  - sources: []
merge_method: ties
parameters:
  normalize: perhaps
  density: [{filter: 3, value: 0.5}, {filter: mlp}]
  lambda: []
dtype: bf16
mask_seed: -1
random_seed: 7
tokenizer_source: base
tokenizer: {source: union}
""") == [
        "r.yaml:1: exactly one of models, slices, modules is expected; models and slices given",
        "r.yaml:1: base_model: is missing, and ties requires it",
        "r.yaml:4: models[0].parameters.wieght: unknown key; did you mean weight? allowed: "
        "weight, density, epsilon, gamma, trim, normalize, rescale, lambda, int8_mask, t, "
        "select_topk, nuslerp_flatten, nuslerp_row_wise, filter_wise",
        "r.yaml:5: models[0].parameters.weight: 'many' is refused: a finite number is expected",
        "r.yaml:6: models[1].modle: unknown key; did you mean model? allowed: model, parameters",
        "r.yaml:6: models[1].model: is missing and required",
        "r.yaml:11: slices[0].sources: [] is refused: a list of at least one is expected",
        "r.yaml:14: parameters.normalize: 'perhaps' is refused: true or false is expected",
        "r.yaml:15: parameters.density[0].filter: 3 is refused: a string is expected",
        "r.yaml:15: parameters.density[1].value: is missing and required",
        "r.yaml:16: parameters.lambda: [] is refused: a gradient has at least one value",
        "r.yaml:17: dtype: 'bf16' is refused; allowed: float32, bfloat16, float16, float64",
        "r.yaml:18: mask_seed: -1 is refused: an integer in [0, 2**63) is expected",
        "r.yaml:19: random_seed: unknown key; did you mean mask_seed? allowed: name, models, "
        "slices, modules, merge_method, base_model, parameters, dtype, out_dtype, "
        "tokenizer_source, tokenizer, chat_template, mask_seed, variant, mask_by, mask_of",
        "r.yaml:20: tokenizer_source: 'base' is refused: the recipe has no base_model",
        "r.yaml:21: tokenizer: tokenizer_source is given too: only one of them can be",
    ]


def test_values_are_checked_together_too() -> None:
    found = faults("""\
models:
  - model: org/code
    parameters: {density: [0.5, 0]}
  - model: org/code
    parameters: {weight: 1, density: 1.5}
  - model: org/maths
    parameters: {epsilon: -0.1, weight: 1}
merge_method: della
base_model: org/base
""")
    assert found == [
        "r.yaml:2: models[0]: org/code has no weight; every model but the base needs one "
        "(parameters: {weight: 1.0})",
        "r.yaml:3: models[0].parameters.density: density 0 is refused: the share kept lies in "
        "(0, 1]; to leave a model out, give it weight 0",
        "r.yaml:4: models[1]: org/code stands 2 times here",
        "r.yaml:5: models[1].parameters.density: density 1.5 is refused: the share kept lies in "
        "(0, 1]; 1 keeps everything",
        "r.yaml:7: models[2].parameters.epsilon: epsilon -0.1 is refused: it is at least 0",
    ]


@pytest.mark.parametrize("name", ["karcher", "bread_crumbs", "TIES", "passthrough", "1"])
def test_a_method_that_we_lack_lists_those_that_we_have(name: str) -> None:
    found = fault(TIES.replace("ties", name))
    assert found.startswith("r.yaml:6: merge_method: ")
    assert "is not a merge method we have" in found
    assert found.endswith("allowed: " + ", ".join(METHODS))


def test_the_methods_are_these() -> None:
    def names(holds: Callable[[MethodSpec], bool]) -> list[str]:
        return [name for name, spec in METHODS.items() if holds(spec)]

    assert names(lambda spec: spec.elects) == ["ties", "dare_ties", "della", "breadcrumbs_ties"]
    assert names(lambda spec: not spec.needs_base) == ["linear", "nuslerp"]
    assert names(lambda spec: not spec.takes_base) == ["linear"]
    assert names(lambda spec: spec.draws_masks) == [
        *("dare_linear", "dare_ties", "della", "della_linear")
    ]
    assert names(lambda spec: spec.sparsifies) == [
        *("ties", "dare_linear", "dare_ties", "della", "della_linear"),
        *("breadcrumbs", "breadcrumbs_ties"),
    ]


@pytest.mark.parametrize("text", ["1e-3", "'1e-3'", "1.0e-3", '" 0.001 "', "!!float 1e-3"])
def test_numbers_may_be_written_like_this(text: str) -> None:
    recipe = Recipe.from_yaml(TIES.replace("weight: 0.5", f"weight: {text}", 1))
    assert recipe.models is not None
    assert recipe.models[0].parameters.settings["weight"] == (Case((0.001,), None),)


@pytest.mark.parametrize("text", [".nan", ".inf", "true", "'inf'", "[1, many]", "10" + "0" * 400])
def test_numbers_may_not_be_written_like_this(text: str) -> None:
    assert "is" in fault(TIES.replace("weight: 0.5", f"weight: {text}", 1))


@pytest.mark.parametrize(("text", "value"), [("1", True), ("'off'", False), ("0.0", False)])
def test_switches_may_be_numbers_and_words(text: str, value: bool) -> None:
    recipe = Recipe.from_yaml(TIES + f"parameters: {{normalize: {text}}}")
    assert recipe.parameters.settings["normalize"] == (Case((value,), None),)


@pytest.mark.parametrize(
    "catch_all", ["{value: 1}", "{filter: '*', value: 1}", "{filter: '', value: 1}"]
)
def test_a_filter_that_is_absent_or_a_star_picks_everything(catch_all: str) -> None:
    recipe = Recipe.from_yaml(
        TIES + f"parameters: {{lambda: [{{filter: mlp, value: 2}}, {catch_all}]}}"
    )
    assert recipe.parameters.settings["lambda"] == (Case((2,), "mlp"), Case((1,), None))


def test_entries_behind_a_catch_all_have_no_effect_and_that_is_said() -> None:
    with pytest.warns(RecipeWarning, match=r"r.yaml:8: parameters.lambda\[1\]: has no effect"):
        recipe = Recipe.from_yaml(
            TIES + "parameters: {lambda: [{value: 1}, {filter: mlp, value: 2}]}", "r.yaml"
        )
    assert recipe.parameters.settings["lambda"] == (Case((1,), None),)


@pytest.mark.parametrize(
    ("where", "key", "words"),
    [
        ("model", "normalize: true", "on a single model"),
        ("model", "epsilon: 0.1", "ties reads weight, normalize, lambda, density, rescale"),
        ("top", "epsilon: 0.1", "ties reads"),
    ],
)
def test_a_known_parameter_without_effect_is_a_warning(where: str, key: str, words: str) -> None:
    text = TIES + f"parameters: {{{key}}}"
    if where == "model":
        text = TIES.replace("weight: 0.5", f"weight: 0.5, {key}", 1)
    with pytest.warns(RecipeWarning, match=words):
        Recipe.from_yaml(text)


def test_int8_mask_is_accepted_without_a_word_and_kept() -> None:
    recipe = quietly(TIES + "parameters: {int8_mask: true}")
    assert recipe.to_mapping()["parameters"] == {"int8_mask": True}


def test_models_are_named_by_text_or_mapping() -> None:
    by_text = quietly(TIES.replace("org/code", "org/code@main+org/lora@v2"))
    by_mapping = quietly(
        TIES.replace(
            "model: org/code",
            "model: {model: {path: org/code, revision: main}, "
            "lora: {path: org/lora, revision: v2}}",
        )
    )
    assert by_text == by_mapping
    assert by_text.models_named == (
        ModelReference("org/base"),
        ModelReference("org/code", "main", "org/lora", "v2"),
        ModelReference("org/maths"),
    )
    assert by_text.labels == {
        ModelReference("org/code", "main", "org/lora", "v2"): "code@main+lora@v2",
        ModelReference("org/maths"): "maths",
    }


def test_the_published_biomed_recipe_loads_and_the_base_among_its_models_is_dropped() -> None:
    with pytest.warns(RecipeWarning, match="is the base model and is dropped from the models"):
        recipe = Recipe.from_yaml(BIOMED)
    assert [str(source.model) for source in recipe.models or ()] == [
        "NousResearch/Hermes-2-Pro-Llama-3-8B",
        "aaditya/Llama3-OpenBioLLM-8B",
    ]
    assert [one["model"] for one in recipe.to_mapping()["models"]] == [
        "NousResearch/Hermes-2-Pro-Llama-3-8B",
        "aaditya/Llama3-OpenBioLLM-8B",
    ]


def test_a_base_that_is_listed_bare_is_dropped_without_a_warning() -> None:
    listed = TIES.replace("models:\n", "models:\n  - model: org/base\n")
    assert quietly(listed) == quietly(TIES)


def test_a_base_alone_is_a_recipe() -> None:
    recipe = quietly("models: [{model: org/base}]\nmerge_method: ties\nbase_model: org/base\n")
    assert recipe.models == ()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_linear_blends_the_base_like_any_model() -> None:
    recipe = quietly(TIES.replace("ties", "linear").replace("org/code", "org/base"))
    assert [str(source.model) for source in recipe.models or ()] == ["org/base", "org/maths"]
    assert list(recipe.labels.values()) == ["base", "maths"]


@pytest.mark.parametrize(
    ("slices", "problem"),
    [
        (
            "[{sources: [{model: org/code, layer_range: [0, 4], parameters: {weight: 1}}]}]",
            "r.yaml:3: slices[0]: the base model org/base is not among the sources: "
            "add it with its layer_range",
        ),
        (
            "[{sources: [{model: org/base, layer_range: [0, 4]}, "
            "{model: org/code, layer_range: [0, 3], parameters: {weight: 1}}]}]",
            "r.yaml:3: slices[0]: the sources' layer_range differ in length: "
            "org/base [0, 4], org/code [0, 3]",
        ),
        (
            "[{sources: [{model: org/base, layer_range: [4, 4]}]}]",
            "r.yaml:3: slices[0].sources[0].layer_range: [4, 4]: [first, end] with "
            "0 <= first < end is expected; end is the layer after the last",
        ),
        (
            "[{sources: [{model: org/base}]}]",
            "r.yaml:3: slices[0].sources[0].layer_range: is missing: [first, end] with "
            "0 <= first < end is expected; end is the layer after the last",
        ),
        (
            "[{sources: [{model: org/base, layer_range: [0, 2]}, "
            "{model: org/base, layer_range: [2, 4]}]}]",
            "r.yaml:3: slices[0].sources[1]: org/base stands 2 times here",
        ),
        ("[{source: []}]", "r.yaml:3: slices[0].sources: is missing and required"),
        ("[7]", "r.yaml:3: slices[0]: 7 is refused: a mapping is expected"),
    ],
)
def test_slices_that_make_no_sense(slices: str, problem: str) -> None:
    text = f"merge_method: ties\nbase_model: org/base\nslices: {slices}\n"
    assert problem in faults(text)


def test_a_slice_may_have_its_own_base_instead_of_the_recipes() -> None:
    recipe = quietly("""\
merge_method: ties
slices:
  - base_model: org/code
    sources:
      - {model: org/code, layer_range: [0, 4]}
      - {model: org/maths, layer_range: [0, 4], parameters: {weight: 1}}
""")
    assert [recipe.base_of(block) for block in recipe.blocks] == [ModelReference("org/code")]
    assert list(recipe.labels.values()) == ["maths"]


@pytest.mark.parametrize("modules", ["{a: {models: []}, b: {}}", "{}", "[1]"])
def test_there_is_one_module(modules: str) -> None:
    text = f"merge_method: ties\nbase_model: org/base\nmodules: {modules}\n"
    assert any("a mapping with one module is expected" in one for one in faults(text))


def test_della_keeps_its_probabilities_inside_0_and_1() -> None:
    text = TIES.replace("ties", "della")
    assert faults(text + "parameters: {density: 0.9}") == [
        f"r.yaml:8: parameters.density: {model}: density 0.9 with epsilon 0.15 is refused: della "
        "keeps elements with probabilities from density - epsilon = 0.75 to density + epsilon = "
        "1.05, which must lie inside (0, 1); epsilon >= 0 and < 0.1 is allowed here"
        for model in ("org/code", "org/maths")
    ]
    quietly(text + "parameters: {density: 1, epsilon: 0.4}")
    quietly(text + "parameters: {density: 0.9, epsilon: 0.05}")


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        ("{pad_to_multiple_of: 0}", "pad_to_multiple_of: 0 is refused: an integer ≥ 1 is expected"),
        ("{tokens: [1]}", "tokens: [1] is refused: a mapping is expected"),
        (
            "{tokens: {a: {source: {kind: ones}}}}",
            "kind: 'ones' is refused; allowed: model_token, zero",
        ),
        (
            "{tokens: {a: {source: {kind: model_token, model: m}}}}",
            "needs either token or token_id",
        ),
        (
            "{tokens: {a: {source: {kind: model_token, token: x}}}}",
            "model: is missing and required",
        ),
        (
            "{tokens: {a: {force: perhaps}}}",
            "force: 'perhaps' is refused: true or false is expected",
        ),
        ("{source: base, sauce: 1}", "sauce: unknown key; did you mean source?"),
    ],
)
def test_a_wrong_tokenizer_is_refused(tokenizer: str, problem: str) -> None:
    assert problem in fault(TIES + f"tokenizer: {tokenizer}")


def test_a_mapping_without_a_file_is_refused_by_its_keys() -> None:
    data = {"merge_method": "ties", "models": [{"model": "org/code"}], "base_model": "org/base"}
    with pytest.raises(RecipeError, match=r"^genome: models\[0\]: org/code has no weight"):
        Recipe.from_mapping(data, "genome")


def test_an_empty_tokenizer_is_the_union_and_an_empty_source_is_refused() -> None:
    recipe = quietly(TIES + "tokenizer: {}")
    assert recipe.tokenizer == Tokenizer("union")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert fault(TIES + "tokenizer_source: ''").startswith(
        "r.yaml:8: tokenizer_source: '' is refused: a model is named by"
    )
