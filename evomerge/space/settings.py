"""How a space says what a parameter may be: fixed, a range, or different for each model.

``0.5`` is fixed; ``[0.0, 1.0]`` is a gene between these bounds, and so is
``{low: 0.0, high: 1.0, initial: 0.3}``, which says where a search begins; ``{math: [0, 2], default:
[0, 1]}`` says it for each fine-tuned model by its label.

Two parameters depend on the density for what they may be, and can be said as a share of what it
leaves room for: ``epsilon: {share: [0, 1]}`` of min(density, 1 - density), ``gamma: {share: …}``
of 1 - density. Parameters that the models share have one value for the whole model,
``{whole: [0, 1]}``, or one for each layer group and filter, ``{each: [0, 1]}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.documents import shown, unknown_key
from evomerge.space.strict import Conflict, errors_at

DEFAULT = "default"
SHARE_OF, WHOLE, EACH = "share", "whole", "each"
_RANGE_KEYS = ("low", "high", "initial")


@dataclass(frozen=True)
class Range:
    """What a gene may be.

    Args:
        low, high: the bounds, both allowed; low < high.
        initial: where a search may begin, within the bounds; None leaves it to the sampler.
    """

    low: float
    high: float
    initial: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value lies within the bounds."""
        return self.low <= value <= self.high

    def nearest(self, value: float) -> float:
        """The allowed value that is closest to ``value``."""
        return min(max(value, self.low), self.high)


Setting = float | Range
"""A fixed value, or a range."""


@dataclass(frozen=True)
class PerModel:
    """A parameter that each fine-tuned model has its own value of.

    Args:
        default: for the models that are not named.
        models: label and setting of those that are.
        share: values are shares of what the density leaves room for.
    """

    default: Setting | None
    models: tuple[tuple[str, Setting], ...] = ()
    share: bool = False

    def of(self, label: str) -> Setting | None:
        """The setting of a model; None if it is not covered."""
        return dict(self.models).get(label, self.default)


@dataclass(frozen=True)
class Common:
    """A parameter that all models of a tensor share.

    Args:
        setting: what a value may be.
        each: each layer group and filter has a value of its own; else there is one for all.
    """

    setting: Setting
    each: bool


@dataclass(frozen=True)
class Limits:
    """Which values a parameter can have at all.

    Args:
        low, high: the bounds.
        text: them in words.
        open_low, open_high: the bound itself is not allowed.
    """

    low: float
    high: float
    text: str
    open_low: bool = False
    open_high: bool = False

    def hold(self, value: float) -> bool:
        """Whether a value is possible; NaN and infinities never are."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below


ANY = Limits(-math.inf, math.inf, "a finite number")
DENSITY = Limits(0.0, 1.0, "in (0, 1]; to leave a model out, fix its weight at 0", open_low=True)
EPSILON = Limits(
    0.0,
    0.5,
    "in [0, 0.5); {share: [0, 1]} is a share of what density leaves room for",
    open_high=True,
)
GAMMA = Limits(
    0.0,
    1.0,
    "in [0, 1); {share: [0, 1]} is a share of what density leaves room for",
    open_high=True,
)
TRIM = Limits(0.0, 1.0, "in (0, 1]; 1 trims nothing", open_low=True)
TOPK = Limits(0.0, 1.0, "in (0, 1]; 1 merges every element", open_low=True)
SHARE = Limits(0.0, 1.0, "in [0, 1], a share of what density leaves room for")


def read_setting(value: Any, limits: Limits) -> Setting:
    """A number, ``[low, high]`` or ``{low, high, initial}``.

    Raises:
        ValueError: it is none of these, or goes beyond the limits; says what is allowed.
    """
    if isinstance(value, Range):
        return value
    if isinstance(value, Mapping):
        return _read_mapping(value, limits)
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError(f"{shown(value)} is refused: a range is [low, high]")
        return _range(_number(value[0], limits), _number(value[1], limits), None)
    return _number(value, limits)


def read_per_model(value: Any, limits: Limits) -> PerModel:
    """A setting for all models, or a mapping from labels (and ``default``) to settings.

    Raises:
        ValueError: as ``read_setting`` does; a ValidationError where several entries are wrong.
    """
    if isinstance(value, PerModel):
        return value
    if not isinstance(value, Mapping) or _is_range(value):
        return PerModel(read_setting(value, limits))
    found: dict[str, Setting] = {}
    faults: list[Conflict] = []
    for key, item in value.items():
        setting = _setting_or_problem(item, limits)
        if isinstance(setting, str):
            faults.append(((str(key),), setting))
        else:
            found[str(key)] = setting
    if faults:
        raise errors_at(faults, "setting", None)
    default = found.pop(DEFAULT, None)
    return PerModel(default, tuple(found.items()))


def read_shared(value: Any, limits: Limits) -> PerModel:
    """As ``read_per_model``, or ``{share: …}`` of it.

    Raises:
        ValueError: as ``read_per_model`` does.
    """
    if isinstance(value, Mapping) and set(value) == {SHARE_OF}:
        shares = read_per_model(value[SHARE_OF], SHARE)
        return PerModel(shares.default, shares.models, share=True)
    return read_per_model(value, limits)


def read_common(value: Any, limits: Limits, *, each: bool) -> Common:
    """A setting, ``{whole: setting}`` or ``{each: setting}``.

    Args:
        value: plain data.
        limits: of the values.
        each: what a setting alone means.

    Raises:
        ValueError: as ``read_setting`` does.
    """
    if isinstance(value, Common):
        return value
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in (WHOLE, EACH):
        ((word, inner),) = value.items()
        return Common(read_setting(inner, limits), word == EACH)
    return Common(read_setting(value, limits), each)


def _setting_or_problem(value: Any, limits: Limits) -> Setting | str:
    try:
        return read_setting(value, limits)
    except ValueError as problem:
        return str(problem)


def plain(setting: Setting) -> Any:
    """A setting as plain data that ``read_setting`` reads."""
    if not isinstance(setting, Range):
        return setting
    if setting.initial is None:
        return [setting.low, setting.high]
    return {"low": setting.low, "high": setting.high, "initial": setting.initial}


def plain_per_model(setting: PerModel) -> Any:
    """A parameter as plain data that ``read_shared`` reads."""
    if setting.share:
        return {SHARE_OF: plain_per_model(PerModel(setting.default, setting.models))}
    if not setting.models and setting.default is not None:
        return plain(setting.default)
    entries = {label: plain(one) for label, one in setting.models}
    return entries if setting.default is None else {**entries, DEFAULT: plain(setting.default)}


def _is_range(value: Mapping[Any, Any]) -> bool:
    return "low" in value and "high" in value


def _read_mapping(value: Mapping[Any, Any], limits: Limits) -> Range:
    unknown = [key for key in value if key not in _RANGE_KEYS]
    if unknown:
        raise ValueError(f"{unknown[0]}: {unknown_key(str(unknown[0]), _RANGE_KEYS)}")
    missing = [key for key in ("low", "high") if key not in value]
    if missing:
        raise ValueError(f"{missing[0]} is missing; a range has low, high and, if wanted, initial")
    low, high = _number(value["low"], limits), _number(value["high"], limits)
    initial = value.get("initial")
    return _range(low, high, None if initial is None else _number(initial, limits))


def _range(low: float, high: float, initial: float | None) -> Range:
    if low == high:
        raise ValueError(f"[{low}, {high}] is refused: write {low} alone to fix it")
    if low > high:
        raise ValueError(f"[{low}, {high}] is refused: low is above high; write [{high}, {low}]")
    if initial is not None and not low <= initial <= high:
        raise ValueError(f"initial {initial} is refused: it must be in [{low}, {high}]")
    return Range(low, high, initial)


def _number(value: Any, limits: Limits) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(value)} is refused: write a number or a range [low, high]")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not limits.hold(number):
        raise ValueError(f"{shown(value)} is refused: must be {limits.text}")
    return number
