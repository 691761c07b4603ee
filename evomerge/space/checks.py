"""What must hold of a space's keys taken together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.documents import shown, unknown_key
from evomerge.references import ModelReference, labels
from evomerge.space.methods import METHODS, PARAMETERS
from evomerge.space.settings import DEFAULT, PerModel, Range
from evomerge.space.strict import Conflict

_SWITCHES = ("normalize", "rescale")


def space_conflicts(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """What is wrong with a space's fields taken together.

    Args:
        fields: those that are right by themselves; the others are not looked at.
    """
    yield from _models(fields)
    yield from _base(fields)
    yield from _genome(fields)
    yield from _tasks(fields)
    yield from _tokenizer(fields)


def _models(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    models: tuple[ModelReference, ...] = fields.get("models", ())
    for index, model in enumerate(models):
        if model in models[:index]:
            first = models.index(model)
            yield ("models", index), f"'{model}' stands twice; it is models[{first}] already"


def _base(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    method = METHODS.get(fields.get("merge_method", ""))
    if method is None or not method.needs_base or "base_model" not in fields:
        return
    base, name = fields["base_model"], fields["merge_method"]
    if base is None:
        yield ("base_model",), f"is missing and required: {name} adds task vectors to a base model"
        return
    for index, model in enumerate(fields.get("models", ())):
        if model == base:
            problem = f"'{model}' is the base model, whose task vector is 0; leave it out"
            yield ("models", index), problem


def _genome(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    genome = fields.get("genome")
    if genome is None:
        return
    known = dict(genome)
    if "merge_method" in fields:
        yield from _unread(known, fields["merge_method"])
    models = fields.get("models")
    if not models or len(set(models)) != len(models):
        return
    names = list(labels(models).values())
    for parameter in PARAMETERS:
        if isinstance(known.get(parameter), PerModel):
            yield from _labels(parameter, known[parameter], names)
    if all(_field(parameter) in known for parameter in PARAMETERS) and not _varies(known, names):
        problem = "nothing varies: give at least one parameter a range, such as weight: [0.0, 1.0]"
        yield ("genome",), problem


def _unread(genome: Mapping[str, Any], name: str) -> Iterator[Conflict]:
    method = METHODS[name]
    for key in (*PARAMETERS, *_SWITCHES):
        if genome.get(_field(key)) is not None and key not in method.reads:
            readers = ", ".join(other for other, spec in METHODS.items() if key in spec.reads)
            problem = f"has no effect: {name} reads {', '.join(method.reads)}"
            yield ("genome", key), f"{problem}; {key} is read by {readers}"
    without_density = "density" in genome and genome["density"] is None
    if genome.get("epsilon") is not None and without_density and method.widens:
        problem = "has no effect without density: at density 1 everything is kept"
        yield ("genome", "epsilon"), problem


def _labels(parameter: str, setting: PerModel, known: list[str]) -> Iterator[Conflict]:
    for label, _ in setting.models:
        if label not in known:
            yield ("genome", parameter, label), unknown_key(label, [*known, DEFAULT])
    missing = [label for label in known if setting.of(label) is None]
    if missing:
        problem = f"says nothing for {', '.join(missing)}; name each model, or give a {DEFAULT}"
        yield ("genome", parameter), problem


def _varies(genome: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether any model has a gene; a default that no model falls back to is none."""
    settings = [genome[_field(parameter)] for parameter in PARAMETERS]
    per_model = [one.of(name) for one in settings if isinstance(one, PerModel) for name in names]
    return any(isinstance(setting, Range) for setting in (*settings, *per_model))


def _field(key: str) -> str:
    return "lambda_" if key == "lambda" else key


def _tasks(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    tasks = [dict(task) for task in fields.get("tasks", ())]
    seen: dict[tuple[str, str], int] = {}
    for index, task in enumerate(tasks):
        if "task" not in task or "metric" not in task:
            continue
        first = seen.setdefault((task["task"], task["metric"]), index)
        if first != index:
            name = f"{task['task']!r} with {task['metric']}"
            yield ("tasks", index), f"{name} stands twice; it is tasks[{first}] already"
    if tasks and all(task.get("weight") == 0 for task in tasks):
        yield ("tasks",), "every weight is 0, so that no candidate is better than another"


def _tokenizer(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    source = fields.get("tokenizer_source")
    if source is None or source == "union":
        return
    if source != "base":
        try:
            ModelReference.parse(source)
        except ValueError as error:
            yield ("tokenizer_source",), f"{shown(source)} is refused: {error}"
        return
    method = METHODS.get(fields.get("merge_method", ""))
    base, models = fields.get("base_model", ""), fields.get("models")
    if base is None and (method is None or not method.needs_base):
        yield ("tokenizer_source",), "'base' is refused: there is no base_model; name a model"
    elif method and not method.needs_base and base and models and base not in models:
        problem = f"'base' is refused: {fields['merge_method']} blends only models, and base_model"
        yield ("tokenizer_source",), f"{problem} is not among them; name one of them"
