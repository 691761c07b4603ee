"""A genome's parameters as fields of a pydantic model: which values each can have at all."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from evomerge.space.settings import (
    ANY,
    DENSITY,
    EACH,
    EPSILON,
    GAMMA,
    TOPK,
    TRIM,
    WHOLE,
    Common,
    Limits,
    PerModel,
    plain,
    plain_per_model,
    read_common,
    read_per_model,
    read_shared,
)


def _per_model(limits: Limits) -> Any:
    return PlainValidator(lambda value: read_per_model(value, limits))


def _shared(limits: Limits) -> Any:
    return PlainValidator(lambda value: read_shared(value, limits))


def _common(limits: Limits, each: bool) -> Any:
    return PlainValidator(lambda value: read_common(value, limits, each=each))


def _of_models(value: PerModel | None) -> Any:
    return None if value is None else plain_per_model(value)


def _of_all(value: Common | None) -> Any:
    """``{each: …}``, whether or not that is what a setting alone would mean."""
    return None if value is None else {EACH if value.each else WHOLE: plain(value.setting)}


def _of_lambda(value: Common | None) -> Any:
    """A setting alone where it can be: a study's digest is of what spaces have always said."""
    return plain(value.setting) if value is not None and not value.each else _of_all(value)


WeightSetting = Annotated[PerModel, _per_model(ANY), PlainSerializer(_of_models)]
DensitySetting = Annotated[PerModel, _per_model(DENSITY), PlainSerializer(_of_models)]
EpsilonSetting = Annotated[PerModel, _shared(EPSILON), PlainSerializer(_of_models)]
GammaSetting = Annotated[PerModel, _shared(GAMMA), PlainSerializer(_of_models)]
TrimSetting = Annotated[PerModel, _per_model(TRIM), PlainSerializer(_of_models)]
LambdaSetting = Annotated[Common, _common(ANY, each=False), PlainSerializer(_of_lambda)]
TSetting = Annotated[Common, _common(ANY, each=True), PlainSerializer(_of_all)]
TopkSetting = Annotated[Common, _common(TOPK, each=True), PlainSerializer(_of_all)]
