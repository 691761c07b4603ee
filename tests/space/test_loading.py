"""Reading a space: its shape, its defaults, where things lie, and everything that is refused."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from evomerge.errors import SpaceError
from evomerge.recipe import METHODS as RECIPE_METHODS
from evomerge.references import ModelReference
from evomerge.space import Common, PerModel, Range, SearchSpace, SpaceWarning, TaskSpec, load_space
from evomerge.space.methods import EPSILON, METHODS

from .conftest import Load, Write

FULL = """
name: full
base_model: models/base
models:
- models/math
- {model: {path: owner/hermes, revision: v2}, lora: owner/adapter}
- owner/name@main
merge_method: della
genome:
  layers: {groups: 4, smooth: true}
  filters: [self_attn, mlp]
  weight: {math: [0, 1.5], hermes@v2+adapter: 0.5, default: [-1, 1]}
  density: {low: 1e-1, high: 1, initial: 0.5}
  lambda: [0.5, 2]
  epsilon: {default: 0.1, math: [0, 0.2]}
  normalize: false
  rescale: true
tasks:
- arc_easy
- {task: gsm8k, metric: "exact_match, strict-match", weight: -2, items: 50, num_fewshot: 5,
   holdout_task: gsm8k_test, order: first, split: train}
holdout: {items: 300}
search: {sampler: nsga2, seed: 7, population: 12, random_init: true}
resources: {gpus: 0.5, cpus: 2, workers: 3}
dtype: bfloat16
mask_seed: 3
tokenizer_source: union
apply_chat_template: true
fewshot_as_multiturn: false
system_instruction: Be brief.
include_path: tasks
trust_remote_code: true
confirm_unsafe: true
"""


def faults(write: Write, text: str) -> list[str]:
    path = write(text)
    with pytest.raises(SpaceError) as raised:
        load_space(path)
    return [str(fault).removeprefix(f"{path}:") for fault in raised.value.faults]


def test_a_full_space(load: Load, folder: Path) -> None:
    (folder / "tasks").mkdir()
    space = load(FULL)
    assert space.name == "full"
    assert space.source == folder / "space.yaml"
    assert space.base_model == ModelReference(str(folder / "models/base"))
    assert space.models == (
        ModelReference(str(folder / "models/math")),
        ModelReference("owner/hermes", "v2", "owner/adapter"),
        ModelReference("owner/name", "main"),
    )
    genome = space.genome
    assert (genome.layers.groups, genome.layers.smooth) == (4, True)
    assert genome.weight.of("math") == Range(0.0, 1.5)
    assert genome.weight.of("hermes@v2+adapter") == 0.5
    assert genome.weight.of("name@main") == Range(-1.0, 1.0)
    assert genome.density == PerModel(Range(0.1, 1.0, 0.5))
    assert genome.lambda_ == Common(Range(0.5, 2.0), each=False)
    assert genome.epsilon == PerModel(0.1, (("math", Range(0.0, 0.2)),))
    assert (genome.normalize, genome.rescale) == (False, True)
    second = space.tasks[1]
    assert (second.metric_name, second.metric_filter) == ("exact_match", "strict-match")
    assert (second.weight, second.items, second.order) == (-2.0, 50, "first")
    assert [task.split for task in space.tasks] == ["auto", "train"]
    assert space.confirm_unsafe
    assert space.holdout is not None
    assert space.holdout.items == 300
    assert (space.search.sampler, space.search.population) == ("nsga2", 12)
    assert (space.resources.gpus, space.resources.workers) == (0.5, 3)
    assert space.include_path == (folder / "tasks",)


def test_defaults(load: Load, small: str) -> None:
    space = load(small)
    assert space.name == "space"
    assert space.genome.weight == PerModel(Range(0.0, 1.0))
    assert (space.genome.layers.groups, space.genome.layers.smooth) == (None, False)
    assert (space.genome.normalize, space.genome.rescale, space.genome.lambda_) == (None,) * 3
    assert space.tasks == (TaskSpec(task="arc_easy"),)
    assert (space.tasks[0].metric, space.tasks[0].items) == ("acc", None)
    assert (space.search.sampler, space.search.seed, space.search.sigma) == ("ascent", 0, 0.25)
    assert (space.holdout, space.dtype, space.tokenizer_source) == (None, None, None)
    assert (space.mask_seed, space.plain_sum, space.apply_chat_template) == (0, False, False)
    assert space.fewshot_as_multiturn is True


def test_a_space_cannot_be_changed(load: Load, small: str) -> None:
    space = load(small)
    with pytest.raises(ValidationError):
        space.mask_seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        space.genome.weight = PerModel(1.0)  # type: ignore[misc]
    assert hash(space) == hash(load(small))


def test_a_space_survives_json_and_pickle(load: Load, folder: Path, small: str) -> None:
    (folder / "tasks").mkdir()
    for text in (small, FULL):
        space = load(text)
        again = SearchSpace.model_validate(json.loads(space.model_dump_json()))
        assert again == space
        assert again.digest() == space.digest()
        assert SearchSpace.model_validate_json(space.model_dump_json()) == space
        assert pickle.loads(pickle.dumps(space)) == space


def test_a_path_with_a_plus_or_an_at_survives_json(load: Load, folder: Path, small: str) -> None:
    odd = folder / "c++ @work"
    odd.mkdir()
    written = f'{{model: {{path: "{odd}"}}}}'
    space = load(small.replace("models/chat", written))
    assert space.models[2] == ModelReference(str(odd))
    assert SearchSpace.model_validate_json(space.model_dump_json()) == space
    genome = {gene.name: gene.high for gene in space.genes(2)}
    model = space.recipe_mapping(genome, 2)["models"][2]["model"]
    assert ModelReference.parse(model) == space.models[2]


def test_many_mistakes_are_one_message(write: Write) -> None:
    text = """
    base_model: models/base
    models: [./models/maths, models/code, models/code]
    merge_method: dare_tie
    gnome: 3
    genome:
      layers: {groups: 0, smoth: true}
      filters: [mlp, '*', mlp.up]
      weight: {code: [0.0, inf], chat: [1, 0]}
      density: [0.1, 1.2]
      densty: 0.5
      lambda: yes
    tasks:
      - {task: arc, metric: acc norm, items: 0, num_fewshot: -1, wieght: 2}
      - hellaswag
      - hellaswag
    holdout: {items: many}
    search: {sampler: cma, seed: 0.5, sigma: 1e+1}
    resources: 3
    dtype: fp32
    """
    expected = [
        "2: models[0]: './models/maths' is refused: there is no such folder",
        "2: models[2]: ",
        "3: merge_method: 'dare_tie' is refused: did you mean 'dare_ties'? allowed: linear, ",
        "4: gnome: unknown key; did you mean 'genome'? allowed: models, ",
        "6: genome.layers.groups: 0 is refused: must be at least 1",
        "6: genome.layers.smoth: unknown key; did you mean 'smooth'? allowed: groups, size, smooth",
        "7: genome.filters[1]: '*' is refused",
        "7: genome.filters[2]: 'mlp.up' has no effect: 'mlp' before it takes all its tensors",
        "8: genome.weight.code: 'inf' is refused: write a number or a range [low, high]",
        "8: genome.weight.chat: [1.0, 0.0] is refused: low is above high; write [0.0, 1.0]",
        "9: genome.density: 1.2 is refused: must be in (0, 1]",
        "10: genome.densty: unknown key; did you mean 'density'? allowed: layers, ",
        "11: genome.lambda: True is refused: write a number or a range [low, high]",
        "13: tasks[0].metric: 'acc norm' is refused: must be a metric, or metric,filter",
        "13: tasks[0].items: 0 is refused: must be at least 1",
        "13: tasks[0].num_fewshot: -1 is refused: must be at least 0",
        "13: tasks[0].wieght: unknown key; did you mean 'weight'? allowed: task, ",
        "15: tasks[2]: 'hellaswag' with acc stands twice; it is tasks[1] already",
        "16: holdout.items: 'many' is refused: must be a whole number",
        "17: search.sampler: 'cma' is refused: must be 'ascent', 'cmaes', 'tpe', 'gp', 'random' or "
        "'nsga2'",
        "17: search.seed: 0.5 is refused: must be a whole number",
        "17: search.sigma: 10.0 is refused: must be at most 1",
        "18: resources: 3 is refused: must be a mapping",
        "19: dtype: 'fp32' is refused: must be 'float32', 'bfloat16' or 'float16'",
    ]
    found = faults(write, text)
    assert len(found) == len(expected), "\n".join(found)
    for message, start in zip(found, expected, strict=True):
        assert message.startswith(start)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tasks: [arc_easy]", "", "tasks: is missing and required"),
        ("tasks: [arc_easy]", "tasks: []", "tasks: [] is refused: must have at least 1 entry"),
        ("tasks: [arc_easy]", "tasks: arc_easy", "tasks: 'arc_easy' is refused: must be a list"),
        ("tasks: [arc_easy]", "tasks: [{task: a, weight: 0}]", "tasks: every weight is 0"),
        ("tasks: [arc_easy]", "tasks: [{metric: acc}]", "tasks[0].task: is missing and required"),
        (
            "tasks: [arc_easy]",
            "tasks: [{task: a, weight: .nan}]",
            "tasks[0].weight: nan is refused",
        ),
        ("tasks: [arc_easy]", "tasks: [{task: a, items: true}]", "tasks[0].items: True is refused"),
        ("base_model: models/base", "", "base_model: is missing and required: dare_ties adds"),
        ("models/chat", "models/code", "models[2]: "),
        ("models: [models/math, models/code, models/chat]", "models: []", "models: [] is refused"),
        ("models: [models/math, models/code, models/chat]", "models: 3", "models: 3 is refused"),
        ("models/chat", "7", "models[2]: 7 is refused: a model is named by path"),
        ("models/chat", "/no/where", "models[2]: '/no/where' is refused: there is no such folder"),
        ("dare_ties", "slerps", "merge_method: 'slerps' is refused: did you mean 'slerp'? allowed"),
        ("dare_ties", "[ties, tie]", "'tie' is refused: did you mean 'ties'? allowed: linear, ta"),
        ("dare_ties", "[ties]", "['ties'] is refused: a list names at least 2 different methods"),
        ("dare_ties", "[ties, ties]", "is refused: a list names at least 2 different methods"),
        ("dare_ties", "task_arithmetic", "genome.density: has no effect: task_arithmetic reads"),
        ("density: [0.1, 1.0]", "epsilon: 0.1", "genome.epsilon: has no effect: dare_ties reads"),
        ("density: [0.1, 1.0]", "density: 0", "genome.density: 0 is refused: must be in (0, 1]"),
        ("density: [0.1, 1.0]", "density: [0.5, 0.5]", "genome.density: [0.5, 0.5] is refused: wr"),
        ("density: [0.1, 1.0]", "density: [0.1]", "[0.1] is refused: a range is [low, high]"),
        ("density: [0.1, 1.0]", "density: {low: 0.1, high: 1, initial: 2}", "2 is refused: must b"),
        ("density: [0.1, 1.0]", "density: {low: 0.1, high: 0.5, initial: 1}", "initial 1.0 is ref"),
        ("density: [0.1, 1.0]", "density: {low: 0.1, high: 1, intial: 1}", "did you mean 'initia"),
        ("density: [0.1, 1.0]", "density: {math: 0.5}", "genome.density: says nothing for code, c"),
        ("density: [0.1, 1.0]", "weight: {mat: 1, default: [0, 1]}", "did you mean 'math'? allowe"),
        ("density: [0.1, 1.0]", "weight: 1", "genome: nothing varies"),
        ("density: [0.1, 1.0]", "layers: {groups: 2, size: 2}", "genome.layers.size: groups is gi"),
        ("density: [0.1, 1.0]", "filters: [a/b]", "genome.filters[0]: 'a/b' is refused: names of"),
        ("density: [0.1, 1.0]", "filters: [a, a]", "genome.filters[1]: 'a' has no effect"),
        ("density: [0.1, 1.0]", "filters: ['']", "genome.filters[0]: '' is refused: must have a"),
        ("tasks: [arc_easy]", "tasks: [a]\nsource: x", "source: is refused"),
        ("tasks: [arc_easy]", "tasks: [a]\nname: ../x", "name: '../x' is refused"),
        ("tasks: [arc_easy]", "tasks: [a]\ninclude_path: x", "include_path[0]: 'x' is refused: th"),
        ("tasks: [arc_easy]", "tasks: [a]\ninclude_path: {a: 1}", "must be a folder or a list of"),
        ("tasks: [arc_easy]", "tasks: [a]\n1: 2", "1: "),
        ("tasks: [arc_easy]", "tasks: [a]\ngenom:", "unknown key; did you mean 'genome'?"),
        ("tasks: [arc_easy]", "tasks: [a]\ntokenizer_source: a@", "tokenizer_source: 'a@' is ref"),
        ("tasks: [arc_easy]", "tasks: [a]\nmask_seed: -1", "mask_seed: -1 is refused: must be at"),
        ("tasks: [arc_easy]", "tasks: [a]\nsearch: {population: 1}", "1 is refused: must be at le"),
        ("tasks: [arc_easy]", "tasks: [a]\nsearch: {rungs: [0.5, 0.25]}", "[0.5, 0.25] is refused"),
        ("tasks: [arc_easy]", "tasks: [a]\nsearch: {rungs: [0.5, 1]}", "ascending, in (0, 1), su"),
        ("tasks: [arc_easy]", "tasks: [a]\nsearch: {rungs: []}", "[] is refused; allowed: auto, n"),
        ("tasks: [arc_easy]", "tasks: [a]\nsearch: {rungs: never}", "search.rungs: 'never' is ref"),
        (
            "tasks: [arc_easy]",
            "tasks: [a]\nsearch: {patience: 0}",
            "0 is refused: must be at least",
        ),
        ("tasks: [arc_easy]", "tasks: [a]\nresources: {cpus: 0}", "0 is refused: must be above 0"),
    ],
)
def test_one_mistake(write: Write, small: str, old: str, new: str, message: str) -> None:
    assert old in small
    found = faults(write, small.replace(old, new))
    assert len(found) == 1, found
    assert message in found[0]
    assert re.match(r"\d+: ", found[0])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_a_file_that_is_no_mapping(write: Write, text: str) -> None:
    assert "a mapping is expected" in faults(write, text)[0]


def test_linear_and_its_base(load: Load, write: Write, small: str) -> None:
    linear = small.replace("dare_ties", "linear").replace("density: [0.1, 1.0]", "weight: [0, 1]")
    space = load(linear)
    assert space.base_model is not None
    assert len(load(linear.replace("models/math", "models/base")).models) == 3
    assert load(linear.replace("base_model: models/base", "")).base_model is None
    aside = faults(write, linear + "tokenizer_source: base\n")
    assert "linear blends only models" in aside[0]
    no_base = linear.replace("base_model: models/base", "tokenizer_source: base")
    assert "there is no base_model" in faults(write, no_base)[0]
    assert (
        "genome.lambda: has no effect"
        in faults(write, linear.replace("weight: [0, 1]", "lambda: [0, 1]"))[0]
    )


def test_the_base_among_the_models_is_left_out_with_a_warning(write: Write, small: str) -> None:
    path = write(small.replace("models/math", "models/base"))
    with pytest.warns(SpaceWarning, match=r"space\.yaml:2: models\[0\]: .* is left out"):
        space = load_space(path)
    assert [Path(model.path).name for model in space.models] == ["code", "chat"]
    with pytest.raises(ValidationError, match="is the base model"):
        SearchSpace.model_validate(
            {"base_model": "b", "models": ["b"], "merge_method": "ties", "tasks": ["t"]}
        )


def test_lines_are_right_behind_a_base_that_is_left_out(write: Write, small: str) -> None:
    text = small.replace("[models/math, models/code, models/chat]", "\n- models/base\n- 5\n- 6")
    assert [fault.split(": 'mo")[0][:12] for fault in faults(write, text)] == [
        "4: models[1]",
        "5: models[2]",
    ]


def test_a_sparsifying_method_without_density_is_noted(write: Write, small: str) -> None:
    path = write(small.replace("density: [0.1, 1.0]", "weight: [0, 1]"))
    with pytest.warns(SpaceWarning, match=r"genome: dare_ties without density keeps"):
        load_space(path)


def test_models_are_located_from_the_spaces_folder(
    write: Write, small: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    space = load_space(str(write(small)))
    assert space.models[0].path == str(folder / "models/math")
    hub = load_space(write(small.replace("models/chat", "owner/chat@v1+owner/lora")))
    assert hub.models[2] == ModelReference("owner/chat", "v1", "owner/lora")
    named = load_space(write(small + "tokenizer_source: models/math\n"))
    assert named.tokenizer_source == str(folder / "models/math")


def test_the_tables_of_methods_agree() -> None:
    assert list(METHODS) == list(RECIPE_METHODS)
    for name, method in METHODS.items():
        recipe = RECIPE_METHODS[name]
        assert set(method.reads) == set(recipe.parameters)
        assert (method.paper is not None) == ("paper" in recipe.variants)
        for variant in recipe.variants:
            assert set(method.reads_in(variant)) == set(recipe.reads(variant))
            assert method.whole_in(variant) == recipe.trims_whole(variant)
        assert method.base == recipe.base
        assert (method.least, method.most) == (recipe.least, recipe.most)
        assert method.draws_masks == recipe.draws_masks
        assert (method.masks == "dare") == (recipe.sparsifier == "random")
        assert (recipe.density, recipe.lambda_) == (1.0, 1.0)
        assert not method.widens or recipe.epsilon == EPSILON


def test_default_that_no_model_falls_back_to_is_no_gene(load: Load, small: str) -> None:
    """Found by Hypothesis: the range was counted although every model had a fixed value."""
    weights = "weight: {math: 0.3, code: 0.3, chat: 0.3, default: [0, 1]}"
    with pytest.raises(SpaceError, match="nothing varies"):
        load(small.replace("density: [0.1, 1.0]", f"density: 0.5\n  {weights}"))


def test_settings_that_the_sampler_does_not_read_are_refused(write: Write, small: str) -> None:
    text = small + "search: {sampler: gp, sigma: 0.2, multivariate: true, n_startup_trials: 5}\n"
    assert [line.partition("search.")[2] for line in faults(write, text)] == [
        "sigma: 0.2 has no effect: gp does not read it; sigma is read by cmaes, ascent",
        "multivariate: True has no effect: gp does not read it; multivariate is read by tpe",
    ]


def test_a_setting_that_is_not_read_is_told_once_whatever_its_value(
    write: Write, small: str
) -> None:
    text = small + "search: {sampler: tpe, mutation_prob: 3, population: many}\n"
    assert [line.partition("search.")[2] for line in faults(write, text)] == [
        "population: 'many' has no effect: tpe does not read it; population is read by cmaes, "
        "ascent, nsga2",
        "mutation_prob: 3 has no effect: tpe does not read it; mutation_prob is read by nsga2",
    ]
