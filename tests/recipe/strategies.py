"""Hypothesis strategies: recipes as a person could write them, in all of mergekit's forms."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from evomerge.recipe import METHODS
from evomerge.recipe.methods import PER_MODEL

FILTERS = ("mlp", "self_attn", "layers.1.", "layers.2", "lm_head", "embed", "norm", "*", "nowhere")

Plain = dict[str, Any]


def settings(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A value, a gradient, a filtered value, or a list of those."""
    level = values | st.lists(values, min_size=1, max_size=5)
    filters = st.none() | st.sampled_from(FILTERS)
    case = st.builds(_case, filters, level)
    return level | case | st.lists(case, min_size=1, max_size=3)


def _case(pattern: str | None, value: Any) -> Plain:
    return {"value": value} if pattern is None else {"filter": pattern, "value": value}


def numbers(low: float, high: float) -> st.SearchStrategy[Any]:
    """Numbers of a range, some of them as text."""
    floats = st.floats(low, high)
    return floats | floats.map(repr)


def parameters(method: str, *, shared: bool) -> st.SearchStrategy[Plain]:
    """The parameters of one level, legal wherever they hold."""
    values: Plain = {
        "weight": numbers(0.125, 2.0),
        "density": numbers(0.3, 0.6),
        "epsilon": numbers(0.0, 0.25),
        "gamma": numbers(0.0, 0.5),
        "lambda": numbers(-3, 3),
        "t": numbers(-0.5, 1.5),
        "select_topk": numbers(0.125, 1.0),
    }
    reads = METHODS[method].parameters
    names = [*reads, "int8_mask"] if shared else [name for name in reads if name in PER_MODEL]
    if METHODS[method].sparsifier is None and METHODS[method].needs_base:
        names.append("density")  # has no effect
    if method in ("slerp", "nuslerp", "model_stock"):
        names = [name for name in names if name != "int8_mask"]
    optional = {name: settings(values.get(name, st.booleans())) for name in names}
    return st.fixed_dictionaries({}, optional=optional)


def _part(base: Plain, given: Plain) -> Plain:
    return {**base, "parameters": given} if given else base


@st.composite
def recipes(
    draw: st.DrawFn, models: tuple[str, ...], *, num_layers: int, weighted: bool = True
) -> Plain:
    """A recipe; the first of ``models`` is its base. Density and epsilon are legal everywhere.

    Args:
        draw: Hypothesis'.
        models: at least two distinct models.
        num_layers: of the models.
        weighted: whether every model has a weight for certain.
    """
    method = draw(st.sampled_from(sorted(METHODS)))
    spec = METHODS[method]
    has_base = spec.needs_base or (spec.takes_base and draw(st.booleans()))
    base = models[0] if has_base else None
    form = draw(st.sampled_from(["models", "slices", "modules.models", "modules.slices"]))
    kind = form.rpartition(".")[2]
    body = draw((_models if kind == "models" else _slices)(method, base, models[1:], num_layers))
    top = draw(parameters(method, shared=True))
    if "t" in spec.parameters:
        top["t"] = [{"filter": "mlp", "value": 0.25}, {"value": draw(numbers(0.0, 1.0))}]
    if weighted and "weight" in spec.parameters:
        top["weight"] = [{"filter": "mlp", "value": 0.75}, {"value": draw(numbers(0.125, 2.0))}]
    data: Plain = {kind: body}
    if form != kind:
        data = {"modules": {"default": _part(data, draw(parameters(method, shared=True)))}}
    data["merge_method"] = method
    if base:
        data["base_model"] = base
    return _part(data, top)


def _number(method: str, tuned: tuple[str, ...]) -> tuple[int, int]:
    """How many models may be merged, besides a base."""
    spec = METHODS[method]
    return max(spec.least, 1), min(spec.most or len(tuned), len(tuned))


@st.composite
def _models(
    draw: st.DrawFn, method: str, base: str | None, tuned: tuple[str, ...], _num_layers: int
) -> list[Plain]:
    least, most = _number(method, tuned)
    chosen = draw(st.lists(st.sampled_from(tuned), min_size=least, max_size=most, unique=True))
    listed = [_part({"model": one}, draw(parameters(method, shared=False))) for one in chosen]
    if base and draw(st.booleans()):
        listed.insert(draw(st.integers(0, len(listed))), {"model": base})
    return listed


@st.composite
def _slices(
    draw: st.DrawFn, method: str, base: str | None, tuned: tuple[str, ...], num_layers: int
) -> list[Plain]:
    # As many sources in every slice: mergekit counts those of the last tensors by the first slice.
    count = draw(st.integers(*_number(method, tuned)))
    return [
        draw(_slice(method, base, tuned, count, num_layers)) for _ in range(draw(st.integers(1, 3)))
    ]


@st.composite
def _slice(
    draw: st.DrawFn,
    method: str,
    base: str | None,
    tuned: tuple[str, ...],
    count: int,
    num_layers: int,
) -> Plain:
    chosen = draw(st.lists(st.sampled_from(tuned), min_size=count, max_size=count, unique=True))
    if base:
        chosen.insert(draw(st.integers(0, count)), base)
    length = draw(st.integers(1, num_layers))
    own_base = draw(st.sampled_from(chosen)) if base and draw(st.booleans()) else None
    sources = []
    for model in chosen:
        first = draw(st.integers(0, num_layers - length))
        source = {"model": model, "layer_range": [first, first + length]}
        given = {} if model == (own_base or base) else draw(parameters(method, shared=False))
        sources.append(_part(source, given))
    data: Plain = {"sources": sources}
    if own_base:
        data["base_model"] = own_base
    return _part(data, draw(parameters(method, shared=True)))
