"""Pydantic models that report everything at once: fields, misspelt keys, keys that disagree.

Pydantic stops before a model's own checks when a field is wrong. Here they still see the fields
that are right, so that a user mends a file once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from evomerge.documents import UNKNOWN_KEY, KeyPath, unknown_key

Conflict = tuple[KeyPath, str]
"""A key path and what is wrong with it."""

_FAULTY: Any = object()
"""Stands for a value that is not right; None is one that may be."""


class Strict(BaseModel):
    """A frozen model without unknown keys, whose errors name all faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    hidden: ClassVar[tuple[str, ...]] = ()
    """Fields that are not a user's to write, so that no message offers them."""

    @classmethod
    def conflicts(cls, fields: Mapping[str, Any]) -> Iterator[Conflict]:
        """What is wrong with the fields taken together.

        Args:
            fields: the fields that are right by themselves, by name; of a nested model that has
                faults, a mapping of its right fields.
        """
        return iter(())

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        errors: list[InitErrorDetails] = []
        made: Self | None = None
        try:
            made = handler(data)
        except ValidationError as problem:
            errors = [_restated(cls, detail) for detail in problem.errors()]
        fields = salvage(cls, data) if made is None else dict(made)
        errors += [_error("conflict", path, text, None) for path, text in cls.conflicts(fields)]
        if errors or made is None:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return made


def salvage(model: type[BaseModel], data: Any) -> dict[str, Any]:
    """The fields of faulty data that are right by themselves (and defaults of absent ones).

    Of a faulty field that is a model, or a tuple of them, a mapping of *its* right fields.
    """
    if not isinstance(data, Mapping):
        return {}
    right: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = field.alias if field.alias in data else name
        if key in data:
            kind: Any = field.annotation
            for extra in field.metadata:
                kind = Annotated[kind, extra]
            value = _right(kind, data[key])
            if value is _FAULTY:
                value = _salvaged(field.annotation, data[key])
            if value is not _FAULTY:
                right[name] = value
        elif not field.is_required():
            right[name] = field.get_default(call_default_factory=True)
    return right


def _right(kind: Any, value: Any) -> Any:
    """The validated value, or ``_FAULTY``."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return _FAULTY


def _salvaged(kind: Any, value: Any) -> Any:
    """What is right in a faulty value; ``_FAULTY`` if its type has no parts."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return salvage(kind, value) if isinstance(value, Mapping) else _FAULTY
    inner = get_args(kind)[0] if get_origin(kind) is tuple else None
    if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, list):
        found = [(_right(inner, item), item) for item in value]
        return [salvage(inner, item) if right is _FAULTY else right for right, item in found]
    return _FAULTY


def errors_at(faults: Iterable[Conflict], title: str, found: Any) -> ValidationError:
    """One error of several faults, each at a path below the value that is being validated."""
    return ValidationError.from_exception_data(
        title, [_error("value_error", path, text, found) for path, text in faults]
    )


def _restated(model: type[Strict], detail: Any) -> InitErrorDetails:
    kind, path, text = detail["type"], detail["loc"], detail["msg"]
    if kind == "extra_forbidden" and len(path) == 1:
        keys = [
            field.alias or name
            for name, field in model.model_fields.items()
            if name not in model.hidden
        ]
        kind, text = UNKNOWN_KEY, unknown_key(str(path[0]), keys)
    return _error(kind, path, text, detail.get("input"))


def _error(kind: Any, path: KeyPath, text: str, found: Any) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(kind, text), loc=path, input=found)
