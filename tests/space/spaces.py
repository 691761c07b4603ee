"""Any search space, for Hypothesis."""

from __future__ import annotations

from typing import Any

import hypothesis
from hypothesis import strategies as st

from evomerge.recipe import Layout
from evomerge.references import ModelReference, labels
from evomerge.space import SearchSpace, Stage
from evomerge.space.methods import COMMON, METHODS, PARAMETERS, SWITCHES, names_of

MODELS = (
    "owner/math",
    "owner/code@v2",
    "owner/chat+owner/lora",
    {"model": {"path": "/data/c++/law"}},
    "other/math",
)
FILTERS = ("self_attn", "mlp", "norm")

_finite = st.floats(-5, 5)


def _settings(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    pairs = st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1])
    return st.one_of(numbers, pairs.map(sorted))


_densities = st.floats(1e-3, 1.0)
_epsilons = st.floats(0.0, 0.499)
_shares = st.floats(0.0, 1.0)


def _per_model(numbers: st.SearchStrategy[float], names: list[str]) -> st.SearchStrategy[Any]:
    one = _settings(numbers)
    entries = st.fixed_dictionaries({"default": one}, optional=dict.fromkeys(names, one))
    return st.one_of(one, entries)


def _of_density(limits: st.SearchStrategy[float], names: list[str]) -> st.SearchStrategy[Any]:
    """A value itself, or a share of what the density leaves room for."""
    shares = st.fixed_dictionaries({"share": _per_model(_shares, names)})
    return _per_model(limits, names) | shares


def _common(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    one = _settings(numbers)
    wrapped = [st.fixed_dictionaries({word: one}) for word in ("whole", "each")]
    return st.one_of(one, *wrapped)


def _forms(names: list[str]) -> dict[str, st.SearchStrategy[Any]]:
    """What a genome may say of each parameter."""
    return {
        "weight": _per_model(_finite, names),
        "density": _per_model(_densities, names),
        "trim": _per_model(_densities, names),
        "lambda": _common(_finite),
        "t": _common(_finite),
        "select_topk": _common(_densities),
        "epsilon": _of_density(_epsilons, names),
        "gamma": _of_density(st.floats(0.0, 0.999), names),
    }


def _methods(count: int) -> st.SearchStrategy[Any]:
    """A method for so many models, or several to choose from."""
    fit = [
        name
        for name, one in METHODS.items()
        if one.least <= count and (one.most is None or count <= one.most)
    ]
    return st.sampled_from(fit) | st.lists(
        st.sampled_from(fit), min_size=2, max_size=4, unique=True
    )


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """A space of one to five models in which something varies; for 4 layers or more."""
    models = [ModelReference.parse(model) for model in MODELS[: draw(st.integers(1, 5))]]
    return SearchSpace.model_validate({**draw(_merges(models)), "tasks": ["arc_easy"]})


@st.composite
def staged_spaces(draw: st.DrawFn) -> SearchSpace:
    """A space of two stages, the second of which has the first's result as base or model."""
    models = [ModelReference.parse(model) for model in MODELS]
    first = draw(_merges(models[: draw(st.integers(1, 3))]))
    others = models[draw(st.integers(2, 4)) :]
    result = ModelReference("first")
    last = draw(_merges([*others, result] if draw(st.booleans()) else others))
    if result not in last["models"] and last["base_model"] is not None:
        last["base_model"] = result
    stage = Stage.model_validate({**first, "name": "first"})
    return SearchSpace.model_validate({**last, "stages": [stage], "tasks": ["arc_easy"]})


@st.composite
def _merges(draw: st.DrawFn, models: list[ModelReference]) -> dict[str, Any]:
    """A merge of these models in which something varies."""
    known = list(labels(models).values())
    named = draw(_methods(len(models)))
    methods = [METHODS[name] for name in names_of(named)]
    variant = draw(st.sampled_from(["mergekit", "paper"]))
    if not any(method.paper for method in methods):
        variant = "mergekit"
    reads = {key for method in methods for key in method.reads_in(variant)}
    genome: dict[str, Any] = {
        "layers": {"groups": draw(st.integers(1, 4)), "smooth": draw(st.booleans())},
        "filters": draw(st.permutations(FILTERS))[: draw(st.integers(0, 3))],
    }
    genome |= {key: draw(st.sampled_from([None, True, False])) for key in SWITCHES if key in reads}
    forms = _forms(known)
    for key in forms:
        if key in reads and (key not in ("epsilon", "gamma") or draw(st.booleans())):
            genome[key] = draw(forms[key])
    merge = {
        "models": models,
        "base_model": "owner/base" if any(method.takes_base for method in methods) else None,
        "merge_method": named,
        "genome": genome,
        "variant": variant,
        "mask_seed": draw(st.integers(0, 3)),
    }
    if any(method.masks == "dare" for method in methods):
        merge["mask_by"] = draw(st.sampled_from(["random", "magnitude"]))
        merge["mask_of"] = draw(st.sampled_from(["task_vectors", "weights"]))
    if named == "model_stock":  # has nothing that could vary
        merge["merge_method"] = ["model_stock", "sce"]
    elif isinstance(named, str) and not _varies(genome, known, reads):
        genome[next(key for key in ("weight", *COMMON) if key in reads)] = [0.25, 1.0]
    if "linear" in names_of(named) and "weight" in reads:
        hypothesis.assume(abs(_sum_of_fixed(genome["weight"], known)) > 1e-9)
    return merge


def _sum_of_fixed(weight: Any, names: list[str]) -> float:
    """The weights' sum; 1 where one of them is searched."""
    entries = (
        [weight.get(name, weight["default"]) for name in names]
        if isinstance(weight, dict)
        else [weight] * len(names)
    )
    return 1 if any(isinstance(entry, list) for entry in entries) else sum(entries)


def _varies(genome: dict[str, Any], names: list[str], reads: set[str]) -> bool:
    """Whether any model has a gene; a default that every model overrides is none."""
    for key in reads & set(PARAMETERS):
        setting = genome.get(key)
        if isinstance(setting, dict) and set(setting) <= {"whole", "each", "share"}:
            (setting,) = setting.values()
        entries = [setting]
        if isinstance(setting, dict):
            entries = [setting.get(name, setting["default"]) for name in names]
        if any(isinstance(entry, list) for entry in entries):
            return True
    return False


@st.composite
def genomes(draw: st.DrawFn, space: SearchSpace, num_layers: int) -> dict[str, float]:
    """Any point of a space, its corners included."""
    return {
        gene.name: draw(st.sampled_from([gene.low, gene.high]) | st.floats(gene.low, gene.high))
        for gene in space.genes(num_layers)
    }


def layout(num_layers: int) -> Layout:
    """The tensors of a small Llama."""
    tensors: dict[str, int | None] = {"model.embed_tokens.weight": None}
    for layer in range(num_layers):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "input_layernorm"):
            tensors[f"model.layers.{layer}.{part}.weight"] = layer
    tensors.update({"model.norm.weight": None, "lm_head.weight": None})
    return Layout(tensors, frozenset({"model.norm.weight", "lm_head.weight"}), num_layers)
