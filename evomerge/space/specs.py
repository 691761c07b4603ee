"""The sections of a search space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from evomerge.documents import shown
from evomerge.references import ModelReference
from evomerge.space.fields import (
    DensitySetting,
    EpsilonSetting,
    GammaSetting,
    LambdaSetting,
    TopkSetting,
    TrimSetting,
    TSetting,
    WeightSetting,
)
from evomerge.space.limits import LimitSetting
from evomerge.space.methods import SWITCHES, field_of, method_problem
from evomerge.space.settings import Common, PerModel, Range
from evomerge.space.strict import Conflict, Strict

Real = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Count = Annotated[StrictInt, Field(ge=1)]
AUTO = "auto"
Share = Annotated[StrictFloat, Field(ge=0, le=1)]
Natural = Annotated[StrictInt, Field(ge=0)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]  # what every generator takes
Text = Annotated[StrictStr, Field(min_length=1)]


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


def _rungs(value: Any) -> str | tuple[float, ...]:
    """``auto``, ``none``, or shares of the items."""
    if value in ("auto", "none"):
        return str(value)
    several = isinstance(value, list | tuple) and len(value) > 0
    shares = list(value) if several else []
    numbers = all(isinstance(one, float) and 0 < one < 1 for one in shares)
    if not several or not numbers or shares != sorted(set(shares)):
        allowed = "auto, none, or shares of the items, ascending, in (0, 1), such as [0.25, 0.5]"
        raise ValueError(f"{shown(value)} is refused; allowed: {allowed}")
    return tuple(shares)


def _known_methods(value: Any) -> str | tuple[str, ...]:
    """A method's name, or several names to choose from."""
    several = isinstance(value, list | tuple)
    names = list(value) if several else [value]
    problems = [problem for name in names if (problem := method_problem(name))]
    if several and len(set(map(str, names))) < max(len(names), 2):
        problems.append(f"{shown(value)} is refused: a list names at least 2 different methods")
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(names) if several else value


def _metric(value: Any) -> str:
    """lm-eval's ``metric`` or ``metric,filter``, without spaces around the names."""
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if len(names) not in (1, 2) or not all(re.fullmatch(r"\S+", name) for name in names):
        raise ValueError(f"{shown(value)} is refused: must be a metric, or metric,filter")
    return ",".join(names)


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    # Unlike Field(min_length=1), this is not reached where an entry is faulty.
    if not value:
        raise ValueError("[] is refused: must have at least 1 entry")
    return value


def _groups(value: Any) -> int | str:
    """``auto``, or how many."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value != AUTO and not (whole and value >= 1):
        rule = "must be at least 1" if whole else f"must be a whole number, or {AUTO}"
        raise ValueError(f"{shown(value)} is refused: {rule}")
    return value if value == AUTO else int(value)


Groups = Annotated[int | str, PlainValidator(_groups)]
Rungs = Annotated[str | tuple[float, ...], PlainValidator(_rungs)]
NotEmpty = AfterValidator(_not_empty)
Model = Annotated[
    ModelReference, PlainValidator(ModelReference.parse), PlainSerializer(ModelReference.as_data)
]
MethodNames = Annotated[
    str | tuple[str, ...],
    PlainValidator(_known_methods),
    PlainSerializer(lambda names: names if isinstance(names, str) else list(names)),
]
MetricText = Annotated[str, PlainValidator(_metric)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_one_or_more)]


def _layers(value: Any) -> Any:
    """``auto`` in its long form."""
    return {"groups": AUTO} if value == AUTO else value


class LayerSpec(Strict):
    """How values may differ along the depth of a model. At most one of the first two is given.

    Args:
        groups: how many layer groups have values of their own (with ``smooth``: knots); ``auto``
            for as many as the ascent can fit, at most one for each layer. ``layers: auto`` says the
            same.
        size: instead, how many layers are in a group; must divide the number of layers.
        smooth: values between the knots are interpolated, instead of constant in each group.
    """

    groups: Groups | None = None
    size: Count | None = None
    smooth: StrictBool = False

    @classmethod
    def conflicts(cls, fields: Mapping[str, Any]) -> Iterator[Conflict]:
        if fields.get("groups") is not None and fields.get("size") is not None:
            yield ("size",), "groups is given too; write one of the two"


class GenomeSpec(Strict):
    """What may vary. A parameter that is absent keeps the method's default everywhere.

    Args:
        layers: along the depth.
        filters: parts of tensor names whose tensors have values of their own; the first that
            matches holds, and the tensors that match none share a set ("rest").
        weight: of each fine-tuned model; may be negative.
        density: share of a task vector that is kept, in (0, 1].
        lambda_: factor of the summed task vectors (``lambda`` in YAML); one for the whole model,
            or with ``{each: …}`` one for each layer group and filter.
        epsilon: half-width of DELLA's keep probabilities. ``{share: [0, 1]}`` searches it as a
            share of min(density, 1 - density), the most that DELLA allows: no sample is illegal,
            and none means the same as another. A number or a plain range in [0, 0.5) is the
            half-width itself; where 0 < density - epsilon and density + epsilon < 1 do not hold, it
            is cut down until they do.
        gamma: share of a task vector, its largest elements, that breadcrumbs removes, in [0, 1);
            with ``{share: [0, 1]}`` a share of 1 - density. Where density + gamma > 1, the merge
            keeps the density and removes fewer.
        trim: share that is kept after DARE's mask (``dare_ties`` with ``variant: paper``); one for
            all of a model, as is the density of ``ties`` with that variant.
        t: how far slerp goes from the base to the other model; a value for each layer group and
            filter, or one for all with ``{whole: …}``.
        select_topk: share of elements that sce merges, in (0, 1]; as ``t``.
        normalize, rescale, nuslerp_flatten, nuslerp_row_wise, filter_wise: as in recipes; None is
            the method's default.
    """

    layers: Annotated[LayerSpec, BeforeValidator(_layers)] = LayerSpec()
    filters: tuple[Text, ...] = ()
    weight: WeightSetting = PerModel(Range(0.0, 1.0))
    density: DensitySetting | None = None
    lambda_: LambdaSetting | None = Field(default=None, alias="lambda")
    epsilon: EpsilonSetting | None = None
    gamma: GammaSetting | None = None
    trim: TrimSetting | None = None
    t: TSetting | None = None
    select_topk: TopkSetting | None = None
    normalize: StrictBool | None = None
    rescale: StrictBool | None = None
    nuslerp_flatten: StrictBool | None = None
    nuslerp_row_wise: StrictBool | None = None
    filter_wise: StrictBool | None = None

    def parameter(self, name: str) -> PerModel | Common | None:
        """A parameter by the name that recipes give it."""
        found: PerModel | Common | None = getattr(self, field_of(name))
        return found

    @property
    def switches(self) -> dict[str, bool]:
        """The switches that are set."""
        values = {name: getattr(self, name) for name in SWITCHES}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def conflicts(cls, fields: Mapping[str, Any]) -> Iterator[Conflict]:
        filters = fields.get("filters", ())
        for index, name in enumerate(filters):
            earlier = next((other for other in filters[:index] if other in name), None)
            if name == "*":
                yield ("filters", index), "'*' is refused: tensors without a filter are 'rest'"
            elif "/" in name:
                yield ("filters", index), f"{name!r} is refused: names of tensors have no '/'"
            elif earlier is not None:
                reason = f"{name!r} has no effect: {earlier!r} before it takes all its tensors"
                yield ("filters", index), reason


class TaskSpec(Strict):
    """One task of the fitness. In YAML a task's bare name will do.

    Args:
        task: a name that lm-eval knows or that a folder of ``include_path`` defines.
        metric: what the task reports, such as ``acc`` or ``acc_norm``, with one of its filters
            ``exact_match,strict-match``; or a smooth one that says more per item: ``gold_prob``,
            ``margin`` (both also with ``_norm`` or ``_bytes``), ``gold_loglikelihood``,
            ``bits_per_byte``.
        weight: its share of the fitness; negative to minimise.
        items: how many items the search sees; None is all that are not held out.
        num_fewshot: examples before each question; None is what the task says.
        holdout_task: the task whose items are held out, where it is not this one.
        order: ``random`` is a seeded subset, ``first`` the first items as lm-eval's ``limit``;
            ``balanced`` the subset of the items that are not held out on which the baselines score
            most nearly as on all of them: these are scored once, before the search.
        split: whose documents the search sees. ``auto`` is the validation split, else the training
            split, of a task that is evaluated on another, unless a ``holdout_task`` is named; held-
            out items are of the split that lm-eval evaluates on, which ``evaluation`` names.
        min_: (``min`` in YAML) what the metric has to reach, absolute or relative to the base model
            (``base - 0.02``) or to the best fine-tuned model in this task (``best``); candidates
            that reach it come before all that do not.
        max_: (``max``) what it must not exceed; for metrics that are to be low.
    """

    task: Text
    metric: MetricText = "acc"
    weight: Real = 1.0
    items: Count | None = None
    num_fewshot: Natural | None = None
    holdout_task: Text | None = None
    order: Literal["random", "first", "balanced"] = "random"
    split: Literal["auto", "train", "validation", "test", "evaluation"] = "auto"
    min_: LimitSetting | None = Field(default=None, alias="min")
    max_: LimitSetting | None = Field(default=None, alias="max")

    @classmethod
    def conflicts(cls, fields: Mapping[str, Any]) -> Iterator[Conflict]:
        if fields.get("min_") is not None and fields.get("max_") is not None:
            yield ("max",), "min is given too; a metric that is to be high has min, others max"
        if fields.get("order") == "balanced" and fields.get("items") is None:
            yield ("order",), "'balanced' chooses so many items: say how many (items: 100)"

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"task": data} if isinstance(data, str) else data

    @property
    def metric_name(self) -> str:
        """The metric without its filter."""
        return self.metric.partition(",")[0]

    @property
    def metric_filter(self) -> str | None:
        """The filter whose answers are judged; None where the metric names none."""
        return self.metric.partition(",")[2] or None


class HoldoutSpec(Strict):
    """The items that the search never sees.

    Args:
        items: how many of each task; None is all that the search leaves.
    """

    items: Count | None = None


class FinalsSpec(Strict):
    """How the best candidates are raced at the end, on items that the search did not use.

    Args:
        items: how many of each task; None is as many as the search's, or what is left.
        candidates: how many searched candidates are raced; 0 is no race.
        mask_seeds: under how many seeds each is scored, where the method draws masks.
    """

    items: Count | None = None
    candidates: Natural = 6
    mask_seeds: Count = 3


class SearchSettings(Strict):
    """How the space is searched.

    Args:
        sampler: who proposes the candidates; ``ascent`` climbs along the slope of a smooth fitness
            first, where there is one, and is ``cmaes`` then. With several goals a space's file that
            names none has ``nsga2``.
        seed: of the sampler and of the choice of items.
        n_startup_trials, multivariate, constant_liar, deterministic_objective, mutation_prob,
        crossover_prob: settings of Optuna's samplers, by its names; None is its default (of
            ``tpe``: multivariate). Who reads which: ``space.searching.READERS``.
        sigma: CMA-ES's first standard deviation as a share of a gene's range, in (0, 1].
        population: candidates per generation, at least 2; None leaves it to the sampler.
        random_init: genes begin at random places (seeded), not where the space says.
        rungs: the shares of the search items, ascending, in (0, 1), after which a candidate that
            cannot win is stopped (a baseline only where that is almost certain); ``auto`` chooses
            them by the number of items, ``none`` scores every candidate on all of them.
        patience: the search ends once so many times the search items were scored without a gain
            beyond noise; None leaves it to the budget.
        scan: the uniform blend is a baseline at other lambdas and densities too.
        backend: what runs the merged models: ``hf`` (transformers, in the worker) or ``vllm`` (an
            engine that the worker starts and writes each candidate into; an extra).
    """

    sampler: Literal["ascent", "cmaes", "tpe", "gp", "random", "nsga2"] = "ascent"
    n_startup_trials: Count | None = None
    multivariate: StrictBool | None = None
    constant_liar: StrictBool | None = None
    deterministic_objective: StrictBool | None = None
    mutation_prob: Share | None = None
    crossover_prob: Share | None = None
    seed: Seed = 0
    sigma: Annotated[Real, Field(gt=0, le=1)] = 0.25
    population: Annotated[StrictInt, Field(ge=2)] | None = None
    random_init: StrictBool = False
    rungs: Rungs = "auto"
    patience: Count | None = None
    scan: StrictBool = True
    backend: Literal["hf", "vllm"] = "hf"
