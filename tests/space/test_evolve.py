"""mergekit-evolve's configurations mean the same here, by mergekit's own classes."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mergekit.config import (
    ConfigReader,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
    OutputSliceDefinition,
)
from mergekit.evo.config import EvolMergeConfiguration
from mergekit.evo.genome import ModelGenome
from mergekit.merge_methods import get as merge_method
from mergekit.parameter_resolver import resolve_parameters

from evomerge.errors import SpaceError
from evomerge.references import labels
from evomerge.space import PerModel, Range, SearchSpace, SpaceWarning, load_space

from .conftest import Write

TEXT = """
genome: {models: [models/math], base_model: models/base, merge_method: ties}
tasks: [a]
"""
LAYERS = 6
PARTS = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")

Resolved = dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]]


@pytest.fixture
def models(folder: Path) -> list[str]:
    """Model folders with the configuration that mergekit-evolve reads the layers from."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "architectures": ["LlamaForCausalLM"],
    }
    for name in ("base", "math", "code", "chat"):
        (folder / "models" / name / "config.json").write_text(json.dumps(config))
    return [str(folder / "models" / name) for name in ("base", "math", "code", "chat")]


def read(path: Path) -> SearchSpace:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_space(path)


def resolved(config: MergeConfiguration) -> Resolved:
    """mergekit's parameters for every tensor: the shared ones, and each model's."""
    spec = merge_method(config.merge_method).spec
    base = config.base_model
    found: Resolved = {}

    def add(name: str, reader: ConfigReader, sources: list[Any]) -> None:
        shared, each = resolve_parameters(
            spec,
            tensor_name=name,
            inputs={source.model: name for source in sources},
            sources=reader.parameter_sources,
            base_model=base,
            t=reader.t,
        )
        shared.pop("int8_mask", None)
        found[name] = (
            shared,
            {str(model): values for model, values in each.items() if model != base or values},
        )

    slices = config.slices or [_whole(config)]
    module = OutputModuleDefinition(slices=slices)
    reader = ConfigReader(config=config, t=0, module=module)
    add("model.embed_tokens.weight", reader.for_out_slice(slices[0]), slices[0].sources)
    layer = 0
    for part in slices:
        first, last = part.sources[0].layer_range
        for index in range(last - first):
            t = index / (last - first - 1) if last - first > 1 else 1
            for name in PARTS:
                where = reader.for_out_slice(part).with_t(t)
                add(f"model.layers.{layer}.{name}.weight", where, part.sources)
            layer += 1
    add("model.norm.weight", reader.for_out_slice(slices[-1]), slices[-1].sources)
    assert layer == LAYERS
    return found


def _whole(config: MergeConfiguration) -> OutputSliceDefinition:
    sources = [
        InputSliceDefinition(model=m.model, layer_range=(0, LAYERS), parameters=m.parameters)
        for m in config.models or ()
    ]
    if config.base_model and all(source.model != config.base_model for source in sources):
        sources.append(InputSliceDefinition(model=config.base_model, layer_range=(0, LAYERS)))
    return OutputSliceDefinition(sources=sources)


def genes_of(space: SearchSpace, genotype: np.ndarray, definition: Any) -> dict[str, float]:
    """The genome that says what a (folded) genotype (group, model, filter, parameter) says."""
    genome = {}
    known = labels(space.models)
    theirs = [str(model) for model in definition.models]
    components = [*(definition.filters or []), "rest"]
    groups = space.group_count(LAYERS)
    for group, (model, label), (c, component), (p, parameter) in itertools.product(
        range(groups),
        known.items(),
        enumerate(components),
        enumerate(("weight", "density")[: genotype.shape[-1]]),
    ):
        name = [parameter, label]
        name += [component] if len(components) > 1 else []
        name += [str(group)] if groups > 1 else []
        value = abs(genotype[group, theirs.index(str(model)), c, p])
        if parameter == "density":
            value = min(value, 1.0)
        elif definition.allow_negative_weights:
            value = genotype[group, theirs.index(str(model)), c, p]
        genome["/".join(name)] = float(value)
    return genome


CASES = [
    pytest.param(*case, id="-".join(map(str, case)))
    for case in itertools.product(
        ("linear", "task_arithmetic", "ties", "dare_ties"),
        (False, True),
        (None, ["self_attn", "mlp"]),
        (0, 2, LAYERS),
        (None, True, False),
        (False, True),
    )
]


@pytest.mark.parametrize(
    ("method", "smooth", "filters", "granularity", "normalize", "negative"), CASES
)
def test_a_genome_means_what_their_genotype_means(
    write: Write,
    models: list[str],
    method: str,
    smooth: bool,
    filters: list[str] | None,
    granularity: int,
    normalize: bool | None,
    negative: bool,
) -> None:
    data = {
        "genome": {
            "models": models[1:],
            "merge_method": method,
            "base_model": None if method == "linear" else models[0],
            "tokenizer_source": None if method == "linear" else "base",
            "layer_granularity": granularity,
            "normalize": normalize,
            "allow_negative_weights": negative,
            "filters": filters,
            "smooth": smooth,
        },
        "tasks": [{"name": "arc_easy"}],
    }
    theirs = EvolMergeConfiguration.model_validate(data).genome
    space = read(write(yaml.safe_dump(data)))
    groups = LAYERS // granularity if granularity else 1
    shape = (groups, 3, len(filters or []) + 1, 1 + (method in ("ties", "dare_ties")))
    genotype = np.random.default_rng(7).normal(0.4, 0.6, shape)
    genotype = np.where(abs(genotype) < 0.001, 0.001, genotype).clip(-2, 2)
    expected = ModelGenome(theirs).genotype_merge_config(genotype)
    mapping = space.recipe_mapping(genes_of(space, genotype, theirs), LAYERS)
    mine = MergeConfiguration.model_validate(mapping)
    assert resolved(mine) == resolved(expected)
    assert (mine.merge_method, mine.base_model) == (expected.merge_method, expected.base_model)
    # The same type is saved; the arithmetic is ours, float32 throughout.
    assert (mine.out_dtype, mine.tokenizer_source) == (expected.dtype, expected.tokenizer_source)


def test_the_search_begins_where_theirs_does(write: Write, models: list[str]) -> None:
    for index, (filters, random) in enumerate(itertools.product((None, ["mlp"]), (False, True))):
        data = {
            "genome": {
                "models": models[1:],
                "merge_method": "dare_ties",
                "base_model": models[0],
                "layer_granularity": 3,
                "filters": filters,
            },
            "tasks": ["arc_easy"],
            "random_init": random,
        }
        theirs = ModelGenome(EvolMergeConfiguration.model_validate(data).genome)
        start = theirs.initial_genotype(random).numpy()
        space = read(write(yaml.safe_dump(data), f"{index}.yaml"))
        genes = space.genes(LAYERS)
        assert len(genes) == start.size
        found = {gene.name: gene.initial for gene in genes}
        if random:
            assert all(0 <= value < 1 for value in found.values() if value is not None)
            assert len(set(found.values())) == len(genes)
        else:
            assert found == pytest.approx(genes_of(space, start, theirs.definition), rel=1e-6)


def test_the_base_among_the_models_stays_without_effect(write: Write, models: list[str]) -> None:
    genome = {"models": models, "base_model": models[0], "merge_method": "ties", "filters": ["mlp"]}
    data = {"genome": genome, "tasks": ["arc_easy"]}
    path = write(yaml.safe_dump(data))
    with pytest.warns(SpaceWarning, match=r"genome\.models\[0\]: .* is left out"):
        space = load_space(path)
    theirs = EvolMergeConfiguration.model_validate(data).genome
    genotype = np.random.default_rng(3).uniform(0.1, 0.9, (1, 4, 2, 2))
    expected = resolved(ModelGenome(theirs).genotype_merge_config(genotype))
    mapping = space.recipe_mapping(genes_of(space, genotype, theirs), LAYERS)
    mine = resolved(MergeConfiguration.model_validate(mapping))
    for name, (shared, each) in expected.items():
        others = {model: values for model, values in each.items() if model != models[0]}
        assert mine[name] == (shared, others)
    assert space.genes(LAYERS)[0].initial == 0.25


def test_a_linear_blend_may_hold_its_base(write: Write, models: list[str]) -> None:
    genome = {"models": models[:2], "base_model": models[0], "merge_method": "linear"}
    data = {"genome": genome | {"layer_granularity": 2}, "tasks": ["arc_easy"]}
    space = read(write(yaml.safe_dump(data)))
    theirs = EvolMergeConfiguration.model_validate(data).genome
    genotype = np.random.default_rng(3).uniform(0.1, 0.9, (3, 2, 1, 1))
    expected = ModelGenome(theirs).genotype_merge_config(genotype)
    mapping = space.recipe_mapping(genes_of(space, genotype, theirs), LAYERS)
    assert resolved(MergeConfiguration.model_validate(mapping)) == resolved(expected)


def test_the_rest_of_a_configuration(write: Write, models: list[str]) -> None:
    text = f"""
    genome:
      models: [models/math, {{model: {{path: {models[2]}}}, lora: owner/lora}}]
      merge_method: task_arithmetic
      base_model: models/base
    tasks:
      - arc_easy
      - name: gsm8k
        metric: exact_match,strict-match
        weight: 0.5
      - {{name: arc_easy, weight: 2}}
    limit: "100"
    num_fewshot: 4
    """.rstrip(" ")
    space = read(write(text))
    assert [model.path for model in space.models] == models[1:3]
    assert space.models[1].lora == "owner/lora"
    first, second = space.tasks
    assert (first.task, first.metric, first.weight) == ("arc_easy", "acc,none", 3.0)
    assert (second.metric_name, second.metric_filter) == ("exact_match", "strict-match")
    assert {(task.items, task.num_fewshot, task.order) for task in space.tasks} == {
        (100, 4, "first")
    }
    # Theirs are lm-eval's own documents, whatever else the task has.
    assert {task.split for task in space.tasks} == {"evaluation"}
    assert space.plain_sum
    assert (space.apply_chat_template, space.fewshot_as_multiturn) == (True, True)
    assert (space.dtype, space.name) == ("bfloat16", "space")
    assert space.genome.density is None
    more = "    shuffle: yes\n    apply_chat_template: 0\n    fewshot_as_multiturn: 'no'\n    "
    other = read(write(text + more))
    assert {task.order for task in other.tasks} == {"random"}
    assert (other.apply_chat_template, other.fewshot_as_multiturn) == (False, False)


def test_bounds_stand_for_the_folding(write: Write, models: list[str]) -> None:
    text = TEXT
    space = read(write(text))
    assert space.genome.weight == PerModel(Range(0.0, 2.0, 1.0))
    assert space.genome.density == PerModel(Range(0.001, 1.0, 1.0))
    negative = read(write(text.replace("ties", "ties, allow_negative_weights: true")))
    assert negative.genome.weight == PerModel(Range(-2.0, 2.0, 1.0))
    # Their first step, 1/6, whatever the width of the bounds.
    assert space.search.sigma * 2 == pytest.approx(1 / 6)
    assert negative.search.sigma * 4 == pytest.approx(1 / 6)


def test_filters_that_can_match_nothing_are_left_out(write: Write, models: list[str]) -> None:
    filters = ["self_attn", "self_attn.q_proj", "mlp", "*", "norm"]
    data = {
        "genome": {
            "models": models[1:],
            "base_model": models[0],
            "merge_method": "task_arithmetic",
            "filters": filters,
        },
        "tasks": ["arc_easy"],
    }
    with pytest.warns(SpaceWarning) as caught:
        space = load_space(write(yaml.safe_dump(data)))
    assert [str(one.message).split(": ")[1] for one in caught] == [
        "genome.filters[1]",
        "genome.filters[3]",
    ]
    assert space.genome.filters == ("self_attn", "mlp")
    theirs = EvolMergeConfiguration.model_validate(data).genome
    genotype = np.random.default_rng(3).uniform(0.1, 0.9, (1, 3, len(filters) + 1, 1))
    expected = ModelGenome(theirs).genotype_merge_config(genotype)
    genome = {
        f"weight/{label}/{name}": float(genotype[0, index, component, 0])
        for index, label in enumerate(labels(space.models).values())
        for name, component in (("self_attn", 0), ("mlp", 2), ("rest", 3))
    }
    mine = MergeConfiguration.model_validate(space.recipe_mapping(genome, LAYERS))
    assert resolved(mine) == resolved(expected)


def test_keys_that_they_ignore_are_noted(write: Write) -> None:
    path = write(
        """
        genome:
          models: [models/math]
          base_model: models/base
          merge_method: ties
          filter: [mlp]
        tasks:
        - {name: a, limit: 3}
        max_fevals: 3
        """
    )
    with pytest.warns(SpaceWarning) as caught:
        load_space(path)
    notes = [str(one.message).removeprefix(f"{path}:") for one in caught]
    assert sorted(note.split(": ")[1] for note in notes) == [
        "genome.filter",
        "max_fevals",
        "tasks[0].limit",
    ]
    assert any("5: genome.filter: unknown key; did you mean 'filters'?" in note for note in notes)


def test_faults_are_placed_where_they_stand_in_their_file(write: Write) -> None:
    path = write(
        """
        genome:
          models: [models/math, models/base, 7]
          merge_method: ties
          base_model: models/base
          layer_granularity: few
          allow_negative_weights: some
          smooth: maybe
          filters: [3]
        tasks:
          - {weight: 1}
          - {name: 3, metric: 4, weight: x}
          - 5
        limit: 0
        num_fewshot: -1
        shuffle: 3
        random_init: perhaps
        """
    )
    with pytest.raises(SpaceError) as raised:
        load_space(path)
    found = [str(fault).removeprefix(f"{path}:").split(" is ")[0] for fault in raised.value.faults]
    assert found == [
        "2: genome.models[2]: 7",
        "5: genome.layer_granularity: 'few'",
        "6: genome.allow_negative_weights: 'some'",
        "7: genome.smooth: 'maybe'",
        "8: genome.filters[0]: 3",
        "10: tasks[0].name:",
        "11: tasks[1].name: 3",
        "11: tasks[1].metric: 4",
        "11: tasks[1].weight: 'x'",
        "12: tasks[2]: 5",
        "13: limit: 0",
        "14: num_fewshot: -1",
        "15: shuffle: 3",
        "16: random_init: 'perhaps'",
    ]


def test_slerp_and_a_granularity_that_does_not_divide(write: Write) -> None:
    text = TEXT.replace("ties", "slerp")
    with pytest.raises(
        SpaceError, match=r"genome\.merge_method: 'slerp' is refused: mergekit-evolve picks two"
    ):
        load_space(write(text))
    text = text.replace("slerp", "ties, layer_granularity: 4")
    space = read(write(text))
    assert space.group_count(8) == 2
    with pytest.raises(SpaceError, match=r":1: genome\.layer_granularity: 4 is refused: .* 6 lay"):
        space.genes(LAYERS)


def test_relative_models_are_seen_from_the_current_directory_first(
    write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub" / "models" / "math").mkdir(parents=True)
    text = (
        "genome: {models: [models/math], base_model: models/base, merge_method: ties}\ntasks: [a]\n"
    )
    path = write(text)
    monkeypatch.chdir(folder / "sub")
    space = read(path)
    assert space.models[0].path == str(folder / "sub/models/math")
    assert space.base_model is not None
    assert space.base_model.path == str(folder / "models/base")
