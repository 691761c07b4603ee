"""``order: balanced``: the search items are chosen once, from what the baselines score on a pool.

The pool of a task is all that is not held out. The choice is part of the study: it is remembered,
and a study that goes on takes it as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from evomerge.errors import EvomergeWarning, TrialError
from evomerge.evaluation import MetricName, Scores, TaskRequest
from evomerge.evaluation.balancing import choose_balanced
from evomerge.evaluation.choosing import DocIds
from evomerge.search.evaluator import EvaluatorPlan, items_of
from evomerge.search.parts import race_items
from evomerge.search.plans import targets_of
from evomerge.search.pool import Job, Pool
from evomerge.search.preparation import Preparation
from evomerge.search.storage import StudyStore, has_study, open_store

_KEY = "balanced_items"


def balanced_items(
    prepared: Preparation, name: str, url: str, make_pool: Callable[[EvaluatorPlan], Pool]
) -> Preparation:
    """The preparation with the study's own choice of items; as it is where none is balanced.

    Args:
        prepared: a space, checked.
        name: of the study; what it remembers is taken.
        url: of its storage.
        make_pool: starts workers, where the baselines have yet to be scored on the pool.

    Raises:
        TrialError: no baseline could be scored.
    """
    if not any(request.order == "balanced" for request in prepared.plan.requests):
        return prepared
    known = open_store(name, url).facts.get(_KEY) if has_study(name, url) else None
    if known is None:
        known = _choose(prepared, make_pool)
    return _with_choice(prepared, {task: tuple(documents) for task, documents in known.items()})


def remember_items(store: StudyStore, prepared: Preparation) -> None:
    """Keep the choice in the study."""
    chosen = {task: ids for r in prepared.plan.requests for task, ids in (r.chosen or ())}
    if chosen and _KEY not in store.facts:
        store.remember(**{_KEY: chosen})


def _with_choice(prepared: Preparation, chosen: Mapping[str, DocIds]) -> Preparation:
    documents = tuple(sorted(chosen.items()))
    requests = tuple(
        replace(request, chosen=documents) if request.order == "balanced" else request
        for request in prepared.plan.requests
    )
    plan = replace(prepared.plan, requests=requests)
    tokenizer = targets_of(plan)[-1].vocabulary.tokenizer.load()
    config = prepared.checkpoints[0].model_config()
    items = items_of(plan, tokenizer, config, "search")
    raced = race_items(plan, tokenizer, config) if prepared.race_items is not None else None
    return replace(prepared, plan=plan, search_items=items, race_items=raced)


def _choose(prepared: Preparation, make_pool: Callable[[EvaluatorPlan], Pool]) -> dict[str, DocIds]:
    whole = tuple(_pool_of(request) for request in prepared.plan.requests)
    pool = make_pool(replace(prepared.plan, requests=whole))
    try:
        scores = _score_baselines(prepared, pool)
    finally:
        pool.close()
    metrics = _metrics(prepared)
    counts = {
        task.name: len(task.doc_ids) for task in prepared.search_items.tasks if task.name in metrics
    }
    return choose_balanced(scores, counts, metrics, prepared.space.search.seed)


def _pool_of(request: TaskRequest) -> TaskRequest:
    """A balanced request asks for all that is not held out; any other for as little as can be."""
    balanced = request.order == "balanced"
    return replace(request, items=None, order="random") if balanced else request


def _metrics(prepared: Preparation) -> dict[str, list[MetricName]]:
    """Leaf task of a balanced request → the metrics that are asked of it."""
    items = prepared.search_items
    members = {
        group.name: [task.task_name for task in group.get_all_tasks()] for group in items.groups
    }
    metrics: dict[str, list[MetricName]] = {}
    for request in items.requests:
        if request.order == "balanced":
            for leaf in members.get(request.task, [request.task]):
                metrics.setdefault(leaf, []).append(request.metric)
    return metrics


def _score_baselines(prepared: Preparation, pool: Pool) -> list[Scores]:
    waiting = [Job(planned.label, planned.recipe) for planned in prepared.baselines]
    found: dict[Any, Scores] = {}
    reasons: list[str] = []
    while waiting or pool.busy:
        while waiting and pool.busy < pool.size:
            pool.submit(waiting.pop(0))
        for outcome in pool.wait(1.0):
            if outcome.scores is not None:
                found[outcome.job.key] = outcome.scores
            else:
                reasons.append(f"{outcome.job.key}: {outcome.failure}")
    if not found:
        raise TrialError(f"no baseline could be scored to choose the items by: {reasons[0]}")
    if reasons:
        told = f"the items are chosen without {'; '.join(reasons)}"
        warnings.warn(told, EvomergeWarning, stacklevel=2)
    # In the baselines' order, whichever came first: the choice must not depend on it.
    return [found[planned.label] for planned in prepared.baselines if planned.label in found]
