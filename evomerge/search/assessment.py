"""Scoring models as they are: everything is checked before the first one's weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from evomerge.evaluation import (
    Comparison,
    ItemSet,
    Scores,
    Setting,
    TaskRequest,
    build_items,
    compare,
    context_length,
)
from evomerge.evaluation.tasks import TaskLibrary
from evomerge.search.gathering import Faults

_RESAMPLES = 1000  # for the standard errors of metrics that are no mean


class AnyScorer(Protocol):
    """Puts fixed items to one model."""

    def score(self, *, bootstrap: int = 0) -> Scores:
        """The model's scores."""
        ...


class Scorable(Protocol):
    """A model that was found; nothing of it is loaded yet."""

    @property
    def tokenizer(self) -> Any:
        """Hugging Face's."""
        ...

    @property
    def config(self) -> Any:
        """transformers' configuration."""
        ...

    def scorer(self, items: ItemSet) -> AbstractContextManager[AnyScorer]:
        """Its scorer for these items, and the model itself for as long."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """One model's scores, and on what.

    Args:
        scores: every metric, task by task and item by item.
        requests: what was asked for: each task, group or tag with each of its metrics.
        versions: leaf task → the version that its definition states.
        shots: leaf task → how many examples stand before each question.
        digest: a hash of the items: documents, prompts, tokens.
        notes: what a user should know of the items.
    """

    scores: Scores
    requests: tuple[TaskRequest, ...]
    versions: Mapping[str, str]
    shots: Mapping[str, int]
    digest: str
    notes: tuple[str, ...]

    def against(self, other: Evaluation) -> Comparison:
        """How much better this model is than the other, paired item by item.

        The requests that both have, as the tasks of a model may report what another's do not.

        Raises:
            TaskError: the two were not scored on the same items.
        """
        shared = [request for request in self.requests if request in other.requests]
        return compare(other.scores, self.scores, shared)


def assess(
    models: Sequence[Callable[[], Scorable]],
    requests: Sequence[TaskRequest],
    setting: Setting,
    faults: Faults,
    *,
    every_metric: bool,
) -> list[Evaluation]:
    """Score models on the same items, one after another.

    Args:
        models: each finds one.
        requests: what is scored.
        setting: how questions are put.
        faults: what is wrong already; raised with what is found here.
        every_metric: whether the tasks' own metrics are wanted, whatever the requests say.

    Raises:
        InputError: everything that is wrong with models and tasks.
        TrialError: a model's answers are no numbers.
    """
    opened = [faults.gather(find) for find in models]
    build = partial(_items, requests, setting, every_metric)
    items = [model and faults.gather(build, model) for model in opened]
    if not any(opened):  # without a tokenizer only names can be looked at
        faults.gather(_find_tasks, requests, setting)
    faults.check()
    wanted = requests if every_metric else None
    return [_score(*pair, wanted) for pair in zip(opened, items, strict=True)]


def _items(
    requests: Sequence[TaskRequest], setting: Setting, every_metric: bool, model: Scorable
) -> ItemSet:
    return build_items(
        requests,
        setting,
        model.tokenizer,
        max_length=context_length(model.config, model.tokenizer),
        every_metric=every_metric,
    )


def _find_tasks(requests: Sequence[TaskRequest], setting: Setting) -> None:
    library = TaskLibrary(setting.include_path)
    faults = Faults()
    for name in dict.fromkeys(request.task for request in requests):
        faults.gather(library.load, name)
    faults.check()


def _score(model: Scorable, items: ItemSet, asked: Sequence[TaskRequest] | None) -> Evaluation:
    """Load and score; ``asked`` are the requests for every metric there is, or None."""
    with model.scorer(items) as scorer:
        scores = scorer.score(bootstrap=_RESAMPLES)
    requests = items.requests
    if asked is not None:
        requests = tuple(
            replace(request, metric=metric)
            for request in asked
            for metric in scores.task(request.task).metrics
        )
    return Evaluation(
        scores=scores,
        requests=requests,
        versions=items.versions,
        shots={task.name: task.task.get_config("num_fewshot") or 0 for task in items.tasks},
        digest=items.digest(),
        notes=items.notes,
    )
