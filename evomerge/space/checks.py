"""What must hold of a space's keys taken together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.documents import shown, unknown_key
from evomerge.references import ModelReference, labels
from evomerge.space.methods import METHODS, PARAMETERS, SWITCHES, Method, field_of, names_of
from evomerge.space.settings import DEFAULT, Common, PerModel, Range
from evomerge.space.strict import Conflict


def stage_conflicts(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """What is wrong with a stage's fields taken together.

    Args:
        fields: those that are right by themselves; the others are not looked at.
    """
    yield from _models(fields)
    yield from _base(fields)
    yield from _number(fields)
    yield from _keys(fields)
    yield from _genome(fields)
    yield from _sums(fields)
    yield from _tokenizer(fields)


def _named(fields: Mapping[str, Any]) -> dict[str, Method]:
    """The methods that a stage names, if it names them right."""
    return {name: METHODS[name] for name in names_of(fields.get("merge_method", ()))}


def _models(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    models: tuple[ModelReference, ...] = fields.get("models", ())
    for index, model in enumerate(models):
        if model in models[:index]:
            first = models.index(model)
            yield ("models", index), f"'{model}' stands twice; it is models[{first}] already"


def _base(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    methods = _named(fields)
    if "base_model" not in fields:
        return
    base, models = fields["base_model"], fields.get("models", ())
    needing = [name for name, method in methods.items() if method.needs_base]
    if base is None and needing:
        what = "adds task vectors to a base model"
        what = "leads from a base model to another" if needing[0] == "slerp" else what
        yield ("base_model",), f"is missing and required: {needing[0]} {what}"
    if base is None or not any(method.takes_base for method in methods.values()):
        return
    for index, model in enumerate(models):
        if model == base:
            problem = f"'{model}' is the base model, whose task vector is 0; leave it out"
            yield ("models", index), problem


def _number(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """As many models as each of the methods merges."""
    number = len(fields.get("models", ()))
    for name, method in _named(fields).items() if number else ():
        least, most = method.least, method.most
        if number < least or (most is not None and number > most):
            wanted = f"exactly {least}" if least == most else f"at least {least}"
            problem = f"{number} models are refused: {name} merges {wanted}, the base not counted"
            yield ("models",), problem


def _keys(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """A variant and ablations that at least one of the methods has."""
    methods = _named(fields)
    if not methods:
        return
    having = {
        "variant": [name for name, method in METHODS.items() if method.paper is not None],
        "mask_by": [name for name, method in METHODS.items() if method.masks == "dare"],
    }
    having["mask_of"] = having["mask_by"]
    plain = {"variant": "mergekit", "mask_by": "random", "mask_of": "task_vectors"}
    for key, names in having.items():
        value = fields.get(key, plain[key])
        if value != plain[key] and not set(methods) & set(names):
            what = " and ".join(methods)
            yield (key,), f"{value!r} is refused: {what} has none; allowed for {', '.join(names)}"


def _genome(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    genome = fields.get("genome")
    if genome is None:
        return
    known = dict(genome)
    if "merge_method" in fields:
        yield from _unread(known, fields)
    models = fields.get("models")
    if not models or len(set(models)) != len(models):
        return
    names = list(labels(models).values())
    for parameter in PARAMETERS:
        if isinstance(known.get(field_of(parameter)), PerModel):
            yield from _labels(parameter, known[field_of(parameter)], names)


def _unread(genome: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """Keys that none of the methods reads, and those without which one of them cannot be."""
    methods, variant = _named(fields), fields.get("variant", "mergekit")
    reads = dict.fromkeys(key for one in methods.values() for key in one.reads_in(variant))
    names = " and ".join(methods)
    if variant != "mergekit" and any(method.paper for method in methods.values()):
        names += f" with variant {variant}"
    if "t" in reads and "t" in genome and genome["t"] is None:
        yield ("genome", "t"), "is missing, and slerp requires it; write t: [0.0, 1.0] to search it"
    for key in (*PARAMETERS, *SWITCHES):
        value = genome.get(field_of(key))
        # A weight that is the default's may be nobody's wish.
        if value is None or key in reads or (key == "weight" and value == _ANY_WEIGHT):
            continue
        readers = [other for other, spec in METHODS.items() if key in spec.reads] or ["dare_ties"]
        also = " with variant paper" if key == "trim" else ""
        problem = f"has no effect: {names} reads {', '.join(reads)}"
        yield ("genome", key), f"{problem}; {key} is read by {', '.join(readers)}{also}"
    without_density = "density" in genome and genome["density"] is None
    for key in ("epsilon", "gamma"):
        if genome.get(key) is not None and without_density and key in reads:
            problem = "has no effect without density: at density 1 everything is kept"
            yield ("genome", key), problem


_ANY_WEIGHT = PerModel(Range(0.0, 1.0))


def _sums(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """A normalized blend of weights that are fixed, and sum to 0."""
    genome, models = dict(fields.get("genome") or {}), fields.get("models", ())
    weight = genome.get("weight")
    divides = "linear" in _named(fields) and genome.get("normalize") is not False
    if not divides or not isinstance(weight, PerModel) or len(set(models)) != len(models):
        return
    values = [weight.of(label) for label in labels(models).values()]
    fixed = [value for value in values if isinstance(value, float)]
    if values and len(fixed) == len(values) and abs(sum(fixed)) < 1e-12:
        yield ("genome", "weight"), "the weights sum to 0, and linear divides by their sum"


def _labels(parameter: str, setting: PerModel, known: list[str]) -> Iterator[Conflict]:
    for label, _ in setting.models:
        if label not in known:
            yield ("genome", parameter, label), unknown_key(label, [*known, DEFAULT])
    missing = [label for label in known if setting.of(label) is None]
    if missing:
        problem = f"says nothing for {', '.join(missing)}; name each model, or give a {DEFAULT}"
        yield ("genome", parameter), problem


def constant(fields: Mapping[str, Any]) -> str | None:
    """What could be given a range in a stage that surely has no gene, in words; None where there is
    a gene, or where too little of it is right to say."""
    methods, models, genome = _named(fields), fields.get("models"), fields.get("genome")
    if len(methods) != 1 or not models or genome is None or len(set(models)) != len(models):
        return None
    known = dict(genome)
    (method,) = methods.values()
    reads = [key for key in method.reads_in(fields.get("variant", "mergekit")) if key in PARAMETERS]
    settings = {key: known.get(field_of(key), _FAULTY) for key in reads}
    if _FAULTY in settings.values() or settings.get("t", 0) is None:
        return None
    if any(_ranges(setting, models) for setting in settings.values()):
        return None
    if not reads:
        return f"{next(iter(methods))} has no parameter to search; name several methods"
    return f"give at least one parameter a range, such as {reads[0]}: [0.0, 1.0]"


_FAULTY = object()


def _ranges(setting: Any, models: tuple[ModelReference, ...]) -> bool:
    """Whether a parameter has a gene; a default that no model falls back to is none."""
    if isinstance(setting, Common):
        return isinstance(setting.setting, Range)
    if isinstance(setting, PerModel):
        return any(isinstance(setting.of(name), Range) for name in labels(models).values())
    return False


def task_conflicts(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """What is wrong with the tasks of a space taken together."""
    tasks = [dict(task) for task in fields.get("tasks", ())]
    seen: dict[tuple[str, str], int] = {}
    for index, task in enumerate(tasks):
        if "task" not in task or "metric" not in task:
            continue
        first = seen.setdefault((task["task"], task["metric"]), index)
        if first != index:
            name = f"{task['task']!r} with {task['metric']}"
            yield ("tasks", index), f"{name} stands twice; it is tasks[{first}] already"
    held_out = fields.get("holdout")
    for index, task in enumerate(tasks):
        elsewhere = task.get("holdout_task") is not None
        if task.get("order") != "balanced" or "holdout" not in fields or elsewhere:
            continue
        if held_out is None or held_out.items is None:
            problem = (
                "'balanced' chooses from the items that are not held out: say how many are "
                "(holdout: {items: 300}), or name a holdout_task"
            )
            yield ("tasks", index, "order"), problem
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
    methods = _named(fields)
    base, models = fields.get("base_model", ""), fields.get("models")
    without = [name for name, method in methods.items() if not method.takes_base]
    if base is None and not any(method.needs_base for method in methods.values()):
        yield ("tokenizer_source",), "'base' is refused: there is no base_model; name a model"
    elif without and base and models and base not in models:
        problem = f"'base' is refused: {without[0]} blends only models, and base_model"
        yield ("tokenizer_source",), f"{problem} is not among them; name one of them"
