"""From plain data in the shape of mergekit's YAML to a ``Recipe``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.documents import Document, KeyPath
from evomerge.recipe.checks import check, check_keys, without_base
from evomerge.recipe.ledger import Ledger, shown, unknown
from evomerge.recipe.methods import (
    MAGNITUDE,
    MERGEKIT,
    METHODS,
    PAPER,
    RANDOM,
    TASK_VECTORS,
    WEIGHTS,
)
from evomerge.recipe.model import Module, Recipe, Slice, Source
from evomerge.recipe.settings import read_parameters
from evomerge.recipe.tokenizer import (
    Rename,
    Tokenizer,
    read_reference,
    read_tokenizer,
    read_tokenizer_source,
)
from evomerge.references import ModelReference

KEYS = (
    *("name", "models", "slices", "modules", "merge_method", "base_model", "parameters"),
    *("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "mask_seed"),
    *("variant", "mask_by", "mask_of"),
)

CHOICES = {
    "variant": (MERGEKIT, PAPER),
    "mask_by": (RANDOM, MAGNITUDE),
    "mask_of": (TASK_VECTORS, WEIGHTS),
}
"""Our own keys that name one of a few; the first is what holds where a recipe names none."""

DTYPES = ("float32", "bfloat16", "float16", "float64")

_SEED_LIMIT = 2**63


def read_recipe(data: Any, source: Document | str) -> Recipe:
    """Read and check one recipe.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    ledger = Ledger(source)
    recipe = read_into(ledger, data, lambda reference: reference)
    ledger.finish()
    return recipe


def read_into(ledger: Ledger, data: Any, rename: Rename) -> Recipe:
    """Read one recipe, leaving its faults in ``ledger``; with faults the recipe is not to be used.

    Args:
        ledger: takes what is wrong and what has no effect.
        data: a YAML document's data.
        rename: is put on every model before models are compared.
    """
    found = ledger.mapping(data, (), KEYS)
    method = _read_method(found, ledger)
    choices = _read_choices(found, ledger)
    base = (
        read_reference(found["base_model"], ("base_model",), ledger) if _has_base(found) else None
    )
    recipe = Recipe(
        merge_method=method or "linear",
        base_model=base,
        models=_read_models(found.get("models"), ("models",), ledger),
        slices=_read_slices(found.get("slices"), ("slices",), ledger),
        modules=_read_modules(found.get("modules"), ("modules",), ledger),
        parameters=read_parameters(found.get("parameters"), ("parameters",), ledger),
        dtype=_read_dtype(found, "dtype", ledger),
        out_dtype=_read_dtype(found, "out_dtype", ledger),
        tokenizer_source=_read_source_of_tokens(found, ledger),
        tokenizer=_read_tokenizer(found, ledger),
        chat_template=_read_text(found, "chat_template", ledger),
        name=_read_name(found, ledger),
        mask_seed=_read_seed(found, ledger),
        **{**{key: names[0] for key, names in CHOICES.items()}, **choices},
        place=ledger.place(()),
    ).renamed(rename)
    _check_shape(found, ledger)
    if method:
        check_keys(METHODS[method], choices, ledger)
        recipe = without_base(recipe, ledger)
        check(recipe, ledger)
    return recipe


def _has_base(found: Mapping[str, Any]) -> bool:
    return "base_model" in found


def _check_shape(found: Mapping[str, Any], ledger: Ledger) -> None:
    given = [key for key in ("models", "slices", "modules") if key in found]
    if len(given) != 1:
        stand = " and ".join(given) if given else "none of them"
        ledger.fault((), f"exactly one of models, slices, modules is expected; {stand} given")
    if "tokenizer" in found and "tokenizer_source" in found:
        ledger.fault(("tokenizer",), "tokenizer_source is given too: only one of them can be")
    tokenizer = found.get("tokenizer")
    nested = tokenizer.get("source") if isinstance(tokenizer, Mapping) else None
    for path, source in (
        (("tokenizer_source",), found.get("tokenizer_source")),
        (("tokenizer", "source"), nested),
    ):
        if source == "base" and not _has_base(found):
            ledger.fault(path, "'base' is refused: the recipe has no base_model")


def _read_method(found: Mapping[str, Any], ledger: Ledger) -> str | None:
    method = found.get("merge_method")
    if method is None:
        ledger.fault(("merge_method",), f"is missing and required; allowed: {', '.join(METHODS)}")
    elif not isinstance(method, str) or method not in METHODS:
        problem = unknown(str(method), METHODS, f"{shown(method)} is not a merge method we have")
        ledger.fault(("merge_method",), problem)
    else:
        return method
    return None


def _read_choices(found: Mapping[str, Any], ledger: Ledger) -> dict[str, str]:
    """Those of ``CHOICES`` that the recipe names; what is none of the names is left out."""
    choices = {}
    for key, names in CHOICES.items():
        if key in found and found[key] not in names:
            problem = f"{shown(found[key])} is refused; allowed: {', '.join(names)}"
            ledger.fault((key,), problem)
        elif key in found:
            choices[key] = str(found[key])
    return choices


def _read_models(data: Any, path: KeyPath, ledger: Ledger) -> tuple[Source, ...] | None:
    if data is None:
        return None
    return tuple(
        _read_source(item, (*path, index), ledger, ranged=False)
        for index, item in enumerate(ledger.items(data, path))
    )


def _read_source(data: Any, path: KeyPath, ledger: Ledger, *, ranged: bool) -> Source:
    keys = ("model", "layer_range", "parameters") if ranged else ("model", "parameters")
    found = ledger.mapping(data, path, keys)
    if "model" in found:
        model = read_reference(found["model"], (*path, "model"), ledger)
    else:
        model = ModelReference(ledger.place(path))
        if isinstance(data, Mapping):
            ledger.fault((*path, "model"), "is missing and required")
    layers = None
    if ranged and isinstance(data, Mapping):
        layers = _read_range(found.get("layer_range"), (*path, "layer_range"), ledger)
    parameters = read_parameters(found.get("parameters"), (*path, "parameters"), ledger)
    return Source(model, layers, parameters, ledger.place(path))


def _read_range(data: Any, path: KeyPath, ledger: Ledger) -> tuple[int, int] | None:
    if isinstance(data, list | tuple) and len(data) == 2:
        first, end = data
        if type(first) is int and type(end) is int and 0 <= first < end:
            return first, end
    expected = "[first, end] with 0 <= first < end is expected; end is the layer after the last"
    ledger.fault(path, "is missing: " + expected if data is None else f"{shown(data)}: {expected}")
    return None


def _read_slices(data: Any, path: KeyPath, ledger: Ledger) -> tuple[Slice, ...] | None:
    if data is None:
        return None
    return tuple(
        _read_slice(item, (*path, index), ledger)
        for index, item in enumerate(ledger.items(data, path))
    )


def _read_slice(data: Any, path: KeyPath, ledger: Ledger) -> Slice:
    found = ledger.mapping(data, path, ("sources", "base_model", "parameters"))
    if "sources" not in found and isinstance(data, Mapping):
        ledger.fault((*path, "sources"), "is missing and required")
    sources = ledger.items(found["sources"], (*path, "sources")) if "sources" in found else []
    base = found.get("base_model")
    return Slice(
        tuple(
            _read_source(item, (*path, "sources", index), ledger, ranged=True)
            for index, item in enumerate(sources)
        ),
        None if base is None else read_reference(base, (*path, "base_model"), ledger),
        read_parameters(found.get("parameters"), (*path, "parameters"), ledger),
        ledger.place(path),
    )


def _read_modules(data: Any, path: KeyPath, ledger: Ledger) -> tuple[Module, ...] | None:
    if data is None:
        return None
    if not isinstance(data, Mapping) or len(data) != 1:
        ledger.fault(path, f"{shown(data)} is refused: a mapping with one module is expected")
        return None
    return tuple(
        _read_module(str(name), item, (*path, str(name)), ledger) for name, item in data.items()
    )


def _read_module(name: str, data: Any, path: KeyPath, ledger: Ledger) -> Module:
    found = ledger.mapping(data, path, ("models", "slices", "parameters"))
    if isinstance(data, Mapping) and ("models" in found) == ("slices" in found):
        ledger.fault(path, "exactly one of models, slices is expected")
    return Module(
        name,
        _read_models(found.get("models"), (*path, "models"), ledger),
        _read_slices(found.get("slices"), (*path, "slices"), ledger),
        read_parameters(found.get("parameters"), (*path, "parameters"), ledger),
    )


def _read_dtype(found: Mapping[str, Any], key: str, ledger: Ledger) -> str | None:
    name = _read_text(found, key, ledger)
    if name is not None and name.removeprefix("torch.") not in DTYPES:
        ledger.fault((key,), f"{shown(name)} is refused; allowed: {', '.join(DTYPES)}")
    return name.removeprefix("torch.") if name else None


def _read_source_of_tokens(found: Mapping[str, Any], ledger: Ledger) -> str | ModelReference | None:
    key = "tokenizer_source"
    return read_tokenizer_source(found[key], (key,), ledger) if key in found else None


def _read_tokenizer(found: Mapping[str, Any], ledger: Ledger) -> Tokenizer | None:
    key = "tokenizer"
    return read_tokenizer(found[key], (key,), ledger) if key in found else None


def _read_text(found: Mapping[str, Any], key: str, ledger: Ledger) -> str | None:
    text = found.get(key)
    if text is None or isinstance(text, str):
        return text
    ledger.fault((key,), f"{shown(text)} is refused: a string is expected")
    return None


def _read_name(found: Mapping[str, Any], ledger: Ledger) -> str | None:
    name = _read_text(found, "name", ledger)
    if name is not None and (not name.strip() or set(name) & set("+@")):
        ledger.fault(("name",), f"{shown(name)} is refused: a name is not empty and has no + or @")
    return name


def _read_seed(found: Mapping[str, Any], ledger: Ledger) -> int:
    seed = found.get("mask_seed", 0)
    if type(seed) is int and 0 <= seed < _SEED_LIMIT:
        return seed
    ledger.fault(("mask_seed",), f"{shown(seed)} is refused: an integer in [0, 2**63) is expected")
    return 0
