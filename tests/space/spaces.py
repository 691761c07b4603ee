"""Any search space, for Hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from evomerge.recipe import Layout
from evomerge.references import ModelReference, labels
from evomerge.space import SearchSpace
from evomerge.space.methods import METHODS

MODELS = (
    "owner/math",
    "owner/code@v2",
    "owner/chat+owner/lora",
    {"model": {"path": "/data/c++/law"}},
    "other/math",
)
FILTERS = ("self_attn", "mlp", "norm")

_finite = st.floats(-5, 5)
_positive = st.floats(0, 5)  # with mixed signs the weights of a linear blend can cancel out


def _settings(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    pairs = st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1])
    return st.one_of(numbers, pairs.map(sorted))


_densities = st.floats(1e-3, 1.0)
_epsilons = st.floats(0.0, 0.499)


def _per_model(numbers: st.SearchStrategy[float], names: list[str]) -> st.SearchStrategy[Any]:
    one = _settings(numbers)
    entries = st.fixed_dictionaries({"default": one}, optional=dict.fromkeys(names, one))
    return st.one_of(one, entries)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """A space of one to five models in which something varies; for 4 layers or more."""
    models = [ModelReference.parse(model) for model in MODELS[: draw(st.integers(1, 5))]]
    known = list(labels(models).values())
    name = draw(st.sampled_from(list(METHODS)))
    method = METHODS[name]
    genome: dict[str, Any] = {
        "layers": {"groups": draw(st.integers(1, 4)), "smooth": draw(st.booleans())},
        "filters": draw(st.permutations(FILTERS))[: draw(st.integers(0, 3))],
        "weight": draw(_per_model(_finite if method.needs_base else _positive, known)),
        "normalize": draw(st.sampled_from([None, True, False])),
    }
    if method.needs_base:
        genome["lambda"] = draw(_settings(_finite))
    if method.sparsifies:
        genome["density"] = draw(_per_model(_densities, known))
    if method.widens and draw(st.booleans()):
        genome["epsilon"] = draw(_per_model(_epsilons, known))
    if not _varies(genome, known):
        genome["weight"] = [0.0, 1.0]
    return SearchSpace.model_validate(
        {
            "models": models,
            "base_model": "owner/base" if method.needs_base else None,
            "merge_method": name,
            "genome": genome,
            "tasks": ["arc_easy"],
            "mask_seed": draw(st.integers(0, 3)),
        }
    )


def _varies(genome: dict[str, Any], names: list[str]) -> bool:
    """Whether any model has a gene; a default that every model overrides is none."""
    for key in ("weight", "density", "epsilon", "lambda"):
        setting = genome.get(key)
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
