"""The three parts of a space's items: searched on, held out, and for the race of the finalists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evomerge.checkpoints import Checkpoint, MergedVocabulary
from evomerge.errors import Fault, InputError
from evomerge.evaluation import ItemSet
from evomerge.evaluation.queries import Continuation, Query, Rolling
from evomerge.evaluation.slopes.questions import SmoothFitness
from evomerge.search.evaluator import EvaluatorPlan, items_of
from evomerge.search.gathering import Faults

ROUNDS = 3
"""A race has so many rounds, if every task has an item for each."""

MANY = 0.02
"""The share of an unseen part's questions that may be known without a word: a data set's own."""

Parts = tuple[Any, ItemSet | None, ItemSet | None]
"""Searched on (None after a fault), held out, raced on."""

AtKey = Callable[[tuple[str, ...], str], Fault]
"""A fault at a key of the space."""

_KEYS = {"held-out items": ("holdout", "items"), "race items": ("finals", "items")}
"""What the evaluation room calls a number of items → the key that says it for all tasks."""

_HELD_OUT_KEYS = {**_KEYS, "items": ("holdout", "items")}
"""The same of the held-out part: items of a ``holdout_task`` are drawn as if they were searched
on."""


def parts_of(
    plan: EvaluatorPlan,
    vocabulary: MergedVocabulary,
    base: Checkpoint,
    faults: Faults,
    notes: list[str],
    at_key: AtKey,
    *,
    hold_out: bool,
    race: bool,
) -> Parts:
    """Build the items of each part that there is; what is wrong or missing is told.

    Args:
        plan: of the workers.
        vocabulary: of the merged models.
        base: whose configuration they have.
        faults: what is wrong is added.
        notes: what the user should know is added.
        at_key: names the keys of the space.
        hold_out, race: whether these parts are wanted.
    """
    tokenizer = faults.gather(vocabulary.tokenizer.load)
    if tokenizer is None:
        return None, None, None
    config = base.model_config()
    searched = faults.gather(items_of, plan, tokenizer, config, "search")
    held_out = raced = None
    if hold_out and searched is not None:
        held_out = _held_out(plan, tokenizer, config, faults, notes, at_key)
    if race and searched is not None:
        try:
            raced = race_items(plan, tokenizer, config, notes)
        except InputError as problem:
            faults.add([_at_its_key(fault, at_key) for fault in problem.faults], type(problem))
    if searched is None:
        return None, held_out, raced
    learnt = [searched]
    if plan.neighbourhood is not None:
        smooth = plan.neighbourhood.fitness(searched, tokenizer, config)
        notes += _sloping(smooth)
        if hold_out and smooth.no_slope is None:
            learnt += _climbed(plan, tokenizer, config, notes)
    notes += _known(learnt, raced, "race", "come fresh to it")
    notes += _known(learnt, held_out, "held-out", "prove what they should")
    return searched, held_out, raced


def _climbed(plan: EvaluatorPlan, tokenizer: Any, config: Any, notes: list[str]) -> list[ItemSet]:
    """What the climb learns from. Where that cannot be built no leg is walked, and the search goes
    on without: no reason to refuse it."""
    try:
        return [items_of(plan, tokenizer, config, "climb")]
    except InputError as problem:
        why = "; ".join(map(str, problem.faults))
        notes.append(f"no slope can be taken: {why}; CMA-ES searches by the fitness alone")
        return []


def _sloping(fitness: SmoothFitness) -> list[str]:
    """Notes of what the ascent does not see."""
    if fitness.no_slope is not None:
        return [f"{fitness.no_slope}; CMA-ES searches by the fitness alone"]
    return [f"the slope is taken without {one}" for one in fitness.left_out_words]


def _known(searched: Sequence[ItemSet], apart: ItemSet | None, name: str, but: str) -> list[str]:
    """A note where items that should be new ask what search items ask, or those that the climb
    learns from: parts are drawn apart task by task, but two tasks may have the same documents, and
    a data set may have them twice."""
    if apart is None:
        return []
    seen = {asked for items in searched for asked in map(_asked, items.queries)}
    again = sum(asked <= seen for asked in _questions(apart))
    if again <= MANY * len(apart):
        return []
    others = " or those that the climb learns from" if len(searched) > 1 else ""
    return [
        f"{again} of the {len(apart)} {name} items are also among the search items{others}, so "
        f"that the {name} items do not {but}; are two tasks, or a holdout_task, made of the same "
        "documents?"
    ]


def _questions(items: ItemSet) -> list[set[object]]:
    """What each item asks; without contexts only where it has none at all: " A" alone is asked in
    every item of some tasks."""
    found = []
    for task in items.tasks:
        asked: dict[int, dict[bool, set[object]]] = {}
        for instance, query in zip(task.task.instances, task.own_queries, strict=True):
            bare = isinstance(query, Continuation) and not str(instance.args[0]).strip()
            asked.setdefault(instance.doc_id, {}).setdefault(bare, set()).add(_asked(query))
        found += [of.get(False) or of[True] for of in asked.values()]
    return found


def _asked(query: Query) -> object:
    if isinstance(query, Continuation):
        return query.window
    return query.windows if isinstance(query, Rolling) else query.tokens


def _at_its_key(fault: Fault, at_key: AtKey, keys: Mapping[str, tuple[str, str]] = _KEYS) -> Fault:
    """A fault in a number of items that the space gives for all tasks, where it stands there."""
    task, _, what = fault.place.rpartition(": ")
    return at_key(keys[what], f"{task}: {fault.problem}") if what in keys else fault


def race_items(
    plan: EvaluatorPlan, tokenizer: Any, config: Any, notes: list[str] | None = None
) -> ItemSet | None:
    """The items of the race; None if nothing is left for it.

    Raises:
        TaskError: there are fewer than the space asks for.
    """
    notes = [] if notes is None else notes
    items = items_of(plan, tokenizer, config, "race")
    raced = {request.task for request in items.requests}
    without = [task for r in plan.requests if (task := r.task) not in raced]
    how = "search on fewer (items: N of the task), or hold out fewer (holdout: {items: N})"
    if not any(request.weight for request in items.requests):
        notes.append(
            "no items are left to race the finalists on, so the best score on the search items "
            f"decides, which is partly luck; {how}"
        )
        return None
    if without:
        named = ", ".join(dict.fromkeys(without))
        notes.append(f"finalists are raced without {named}, of which no items are left; {how}")
    return items


def rounds_of(items: ItemSet) -> int:
    """How many rounds a race on these items has."""
    enough = all(len(task.doc_ids) >= ROUNDS for task in items.tasks)
    return ROUNDS if enough else 1


def _held_out(
    plan: EvaluatorPlan,
    tokenizer: Any,
    config: Any,
    faults: Faults,
    notes: list[str],
    at_key: AtKey,
) -> ItemSet | None:
    try:
        return items_of(plan, tokenizer, config, "holdout")
    except InputError as problem:
        if plan.holdout_items is not None:
            found = [_at_its_key(fault, at_key, _HELD_OUT_KEYS) for fault in problem.faults]
            faults.add(found, type(problem))
        elif any(r.holdout_task for r in plan.requests):
            faults.add(problem.faults, type(problem))
        else:
            notes.append(
                "no items are left to hold out, so the outcome cannot be proved: "
                + "; ".join(str(fault) for fault in problem.faults)
            )
    return None
