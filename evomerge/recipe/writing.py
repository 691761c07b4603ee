"""From a ``Recipe`` to the YAML that we and mergekit read as the same merge."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import yaml

from evomerge.recipe.model import Module, Recipe, Slice, Source
from evomerge.recipe.settings import Case, Parameters, Setting
from evomerge.recipe.tokenizer import TokenEmbedding, Tokenizer
from evomerge.references import ModelReference

Plain = dict[str, Any]


def to_yaml(recipe: Recipe) -> str:
    """The recipe as one YAML document, with a comment where mergekit would read it otherwise."""
    beyond = "".join(
        f"# Not in mergekit, which ignores it: {one}\n" for one in recipe.beyond_mergekit()
    )
    return beyond + yaml.dump(
        to_mapping(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20
    )


def to_mapping(recipe: Recipe) -> Plain:
    """The recipe as plain data, keys that are not set left out."""
    data: Plain = {"name": recipe.name}
    if recipe.models is not None:
        # Without the base, which mergekit adds by itself.
        data["models"] = [_source(source) for source in recipe.models] or [_bare(recipe)]
    if recipe.slices is not None:
        data["slices"] = [_slice(one) for one in recipe.slices]
    if recipe.modules is not None:
        data["modules"] = {module.name: _module(module, recipe) for module in recipe.modules}
    data["merge_method"] = recipe.merge_method
    data["base_model"] = recipe.base_model and recipe.base_model.as_data()
    data["parameters"] = _parameters(recipe.parameters)
    data["dtype"], data["out_dtype"] = recipe.dtype, recipe.out_dtype
    data["tokenizer_source"] = _maybe_model(recipe.tokenizer_source)
    data["tokenizer"] = recipe.tokenizer and _tokenizer(recipe.tokenizer)
    data["chat_template"] = recipe.chat_template
    if recipe.draws_masks or recipe.mask_seed:
        data["mask_seed"] = recipe.mask_seed
    defaults = {field.name: field.default for field in fields(recipe)}
    for key in ("variant", "mask_by", "mask_of"):
        if getattr(recipe, key) != defaults[key]:
            data[key] = getattr(recipe, key)
    return _set(data)


def _set(data: Plain) -> Plain:
    return {key: value for key, value in data.items() if value is not None}


def _bare(recipe: Recipe) -> Plain:
    """The base, named as a model where it is the only one: an empty list is not allowed."""
    return {"model": _maybe_model(recipe.base_model)}


def _source(source: Source) -> Plain:
    return _set(
        {
            "model": source.model.as_data(),
            "layer_range": source.layers and list(source.layers),
            "parameters": _parameters(source.parameters),
        }
    )


def _slice(one: Slice) -> Plain:
    return _set(
        {
            "sources": [_source(source) for source in one.sources],
            "base_model": _maybe_model(one.base_model),
            "parameters": _parameters(one.parameters),
        }
    )


def _module(module: Module, recipe: Recipe) -> Plain:
    data: Plain = {}
    if module.models is not None:
        data["models"] = [_source(source) for source in module.models] or [_bare(recipe)]
    if module.slices is not None:
        data["slices"] = [_slice(one) for one in module.slices]
    return _set({**data, "parameters": _parameters(module.parameters)})


def _parameters(parameters: Parameters) -> Plain | None:
    return {name: _setting(cases) for name, cases in parameters.settings.items()} or None


def _setting(cases: Setting) -> Any:
    if len(cases) == 1 and cases[0].filter is None:
        return _values(cases[0])
    return [_set({"filter": case.filter, "value": _values(case)}) for case in cases]


def _values(case: Case) -> Any:
    return case.values[0] if len(case.values) == 1 else list(case.values)


def _maybe_model(model: str | ModelReference | None) -> Any:
    return model.as_data() if isinstance(model, ModelReference) else model


def _tokenizer(tokenizer: Tokenizer) -> Plain:
    tokens = {name: _token(token) for name, token in tokenizer.tokens.items()}
    return _set(
        {
            "source": _maybe_model(tokenizer.source),
            "tokens": tokens or None,
            "pad_to_multiple_of": tokenizer.pad_to_multiple_of,
        }
    )


def _token(token: TokenEmbedding) -> Plain:
    source: Any = token.model and token.model.as_data()
    if token.zero:
        source = {"kind": "zero"}
    elif token.token is not None:
        key = "token" if isinstance(token.token, str) else "token_id"
        source = {"kind": "model_token", "model": source, key: token.token}
    return _set({"source": source, "force": token.force or None})


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line, texts of several lines as blocks, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    numbers = bool(data) and all(isinstance(item, int | float) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=numbers)


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    style = "|" if "\n" in data else None
    if any(char in data for char in "\x85\u2028\u2029"):
        style = '"'  # Line breaks to YAML 1.1, which would come back as spaces without quotes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
# YAML 1.2 reads 1e5 as a number and PyYAML alone would write such a name without quotes.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
