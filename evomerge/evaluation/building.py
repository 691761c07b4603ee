"""lm-eval's tasks → a fixed set of items, built and tokenised once.

The prompts come from lm-eval's own ``Task`` objects, few-shot examples included, for exactly the
documents that ``lm_eval.simple_evaluate(samples=…)`` would be given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from evomerge.errors import TaskError
from evomerge.evaluation import judging
from evomerge.evaluation.asking import build_requests
from evomerge.evaluation.drawing import Drawn, draw
from evomerge.evaluation.gathering import Faults
from evomerge.evaluation.groups import declared_groups, group_shares, groups_of
from evomerge.evaluation.items import ItemSet
from evomerge.evaluation.judging import TaskItems
from evomerge.evaluation.queries import Encoder, Query, QueryError
from evomerge.evaluation.scores import find_metric
from evomerge.evaluation.smooth import SMOOTH, available, plan_smooth
from evomerge.evaluation.spec import Counts, MetricName, Part, Round, Setting, TaskRequest
from evomerge.evaluation.splits import ask_on, search_notes
from evomerge.evaluation.tasks import (
    Loaded,
    TaskLibrary,
    fewshot_notes,
    refusal,
    set_fewshot,
    unsafe_fault,
)

_NAMED = 3  # of the tasks that a note is about


def build_items(
    requests: Sequence[TaskRequest],
    setting: Setting,
    tokenizer: Any,
    *,
    max_length: int,
    part: Part = "search",
    holdout_items: int | None = None,
    race_items: int | None = None,
    race_round: Round = (0, 1),
    every_metric: bool = False,
) -> ItemSet:
    """Load the tasks, choose their documents, build and tokenise the requests.

    Args:
        requests: at least one; the same task may be asked for several metrics on the same items.
        setting: how the questions are put.
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's longest input in tokens (:func:`context_length`).
        part: ``holdout`` for documents that the search part of the same requests leaves over, or
            for those of each request's ``holdout_task``; ``race`` for some of the search's split
            that neither of the two uses, of the requests that leave any; ``climb`` for the search's
            and others that no part uses.
        holdout_items: per request; ``None`` for all that there are. A request for all items leaves
            so many for the held-out part.
        race_items, race_round: see :class:`Counts`.
        every_metric: the requests' metrics are not looked at; for scores that nobody sums up.

    Raises:
        TaskError: everything that is wrong with the requests, at once.
    """
    counts = Counts(holdout_items, race_items, race_round)
    return _Build(setting, tokenizer, max_length, part, counts, every_metric).items(requests)


class _Build:
    """The steps of :func:`build_items`; they gather faults, and stop only where none can go on."""

    def __init__(
        self,
        setting: Setting,
        tokenizer: Any,
        max_length: int,
        part: Part,
        counts: Counts,
        every_metric: bool,
    ) -> None:
        self._setting = setting
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._part = part
        self._counts = counts
        self._every_metric = every_metric
        self._faults = Faults()
        self._notes: dict[tuple[str, str], list[str]] = {}
        self._metrics: dict[str, list[str]] = {}

    def items(self, requests: Sequence[TaskRequest]) -> ItemSet:
        encoder = self._faults.attempt(self._encoder)
        self._check_requests(requests)
        asked = [self._standing(request) for request in requests]
        self._check_agreement(asked)
        library = self._faults.attempt(partial(TaskLibrary, self._setting.include_path))
        if library is None or encoder is None:
            self._faults.check()
        loaded = self._load(library, [request.task for request in asked])
        drawn = self._draw(requests, asked, loaded)
        by_name = {request.task: request for request in asked}
        for request in asked:
            self._metrics.setdefault(request.task, []).append(request.metric.name)
        # What is wrong with one task does not keep the others from being looked at.
        built = {
            name: self._build_task(name, task, drawn[name], by_name[owner], encoder)
            for owner, found in loaded.items()
            for name, task in found.tasks.items()
            if name in drawn
        }
        sound = {
            name: found
            for name, found in loaded.items()
            if all(built.get(leaf) is not None for leaf in found.tasks)
        }
        tasks = tuple(task for task in built.values() if task is not None)
        return self._finish([r for r in asked if r.task in sound], tasks, sound)

    def _finish(
        self,
        requests: Sequence[TaskRequest],
        tasks: tuple[TaskItems, ...],
        loaded: Mapping[str, Loaded],
    ) -> ItemSet:
        reported = {task.name: judging.reported_metrics(task) for task in tasks}
        sizes = {task.name: len(task.doc_ids) for task in tasks}
        groups = groups_of(loaded.values(), reported, self._metrics)
        plain = [
            group.name for group in groups if group.name not in declared_groups(loaded.values())
        ]
        names: dict[str, Iterable[MetricName]] = dict(reported)
        names |= {group.name: group_shares(group, reported, sizes) for group in groups}
        resolved = []
        for request in requests if not self._every_metric else ():
            leaves = loaded[request.task].tasks.values()
            also = [m for m in SMOOTH if all(m in available(leaf) for leaf in leaves)]
            reports = dict.fromkeys(names[request.task])
            find = partial(find_metric, request.metric, reports, also)
            metric = self._faults.attempt(find, f"task {request.task}")
            resolved.append(replace(request, metric=metric or request.metric))
        self._faults.check()
        notes = [*self._told(loaded)]
        notes += [f"task {name}: scored as the plain mean of its tasks" for name in plain]
        return ItemSet(tuple(resolved), tasks, groups, tuple(notes))

    def _encoder(self) -> Encoder:
        if self._setting.apply_chat_template and not self._tokenizer.chat_template:
            raise TaskError.at(
                "apply_chat_template", "the tokenizer has no chat template; write false"
            )
        try:
            return Encoder(self._tokenizer, self._max_length)
        except QueryError as error:
            raise TaskError.at("tokenizer", str(error)) from error

    def _standing(self, request: TaskRequest) -> TaskRequest:
        """The request as it stands for this part."""
        if self._part != "holdout" or not request.held_out_elsewhere:
            return request
        return replace(
            request,
            task=request.holdout_task or request.task,
            items=self._counts.holdout_items,
            order="random",
            chosen=None,
            holdout_task=None,
            split="evaluation",
        )

    def _check_requests(self, requests: Sequence[TaskRequest]) -> None:
        if not requests:
            self._faults.add("tasks", "none given; at least one is needed")
        searched = {request.task for request in requests}
        for request in requests:
            place = f"task {request.task}"
            if not math.isfinite(request.weight):
                self._faults.add(f"{place}: weight", f"{request.weight}; write a finite number")
            for key, value in (("seed", request.seed), ("num_fewshot", request.num_fewshot or 0)):
                if value < 0:
                    self._faults.add(f"{place}: {key}", f"{value}; write 0 or more")
            if request.held_out_elsewhere and request.holdout_task in searched:
                reason = f"{request.holdout_task!r} is itself searched on; name one that is not"
                self._faults.add(f"{place}: holdout_task", reason)

    def _check_agreement(self, asked: Sequence[TaskRequest]) -> None:
        firsts: dict[str, TaskRequest] = {}
        for request in asked:
            first = firsts.setdefault(request.task, request)
            if replace(request, metric=first.metric, weight=first.weight) != first:
                self._faults.add(
                    f"task {request.task}",
                    "is asked for twice with different items, examples, seed, order, split or "
                    "holdout_task; only metric and weight may differ",
                )

    def _load(self, library: TaskLibrary, names: Sequence[str]) -> dict[str, Loaded]:
        loaded: dict[str, Loaded] = {}
        owners: dict[str, str] = {}
        for name in dict.fromkeys(names):
            if not self._confirmed(library, name):
                continue
            found = self._faults.attempt(partial(library.load, name))
            if found is None:
                continue
            refused = [
                fault
                for leaf, task in found.tasks.items()
                if (fault := refusal(leaf, task, self._setting.confirm_unsafe))
            ]
            self._faults.found += refused
            if not refused:
                loaded[name] = found
            for leaf in found.tasks:
                if owners.setdefault(leaf, name) != name:
                    self._faults.add(
                        f"task {leaf}",
                        f"is asked for by {owners[leaf]!r} and by {name!r}; ask for it once",
                    )
        return loaded

    def _confirmed(self, library: TaskLibrary, name: str) -> bool:
        """Whether a name may be loaded: some tasks run code as soon as their definition is."""
        unsafe = library.unsafe(name)
        if unsafe and not self._setting.confirm_unsafe:
            self._faults.found += map(unsafe_fault, unsafe)
            return False
        if unsafe:
            # The metric of most of them asks for this, too; one explicit yes is enough.
            os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")
        return True

    def _told(self, loaded: Mapping[str, Loaded]) -> Iterator[str]:
        """The notes, one for all the members of a group that it is true of."""
        for (owner, text), leaves in self._notes.items():
            if len(leaves) == len(loaded[owner].tasks):
                yield f"task {owner}: {text}"
                continue
            more = f" and {len(leaves) - _NAMED} more" if len(leaves) > _NAMED else ""
            yield f"task {', '.join(leaves[:_NAMED])}{more}: {text}"

    def _draw(
        self,
        requests: Sequence[TaskRequest],
        asked: Sequence[TaskRequest],
        loaded: Mapping[str, Loaded],
    ) -> dict[str, Drawn]:
        drawn: dict[str, Drawn] = {}
        for original, request in zip(requests, asked, strict=True):
            if request.task not in loaded:
                continue
            tasks = loaded[request.task].tasks
            for task in tasks.values():
                set_fewshot(task, request.num_fewshot, self._setting.fewshot_seed)
            # Nothing is searched on in a holdout_task: all its documents may be drawn.
            part: Part = self._part if request.task == original.task else "search"
            step = partial(draw, tasks, request, part, self._counts)
            drawn.update(self._faults.attempt(step) or {})
        return drawn

    def _build_task(
        self, name: str, task: Any, drawn: Drawn, request: TaskRequest, encoder: Encoder
    ) -> TaskItems | None:
        doc_ids, source = drawn.doc_ids, drawn.source
        ask_on(task, drawn.split)
        told = list(fewshot_notes(task, request.num_fewshot, apart=source.apart))
        told += search_notes(task, source) if not self._every_metric else ()
        for text in told:
            self._notes.setdefault((request.task, text), []).append(name)
        try:
            build_requests(task, doc_ids, self._setting, self._tokenizer)
        except Exception as error:  # templates and samplers of the task's author
            reason = f"requests could not be built: {type(error).__name__}: {error}"
            self._faults.add(f"task {name}", reason)
            return None
        queries: list[Query] = []
        try:  # the first bad document says enough of a task
            queries.extend(encoder.query(it.request_type, it.args) for it in task.instances)
        except QueryError as error:
            document = doc_ids[task.instances[len(queries)].doc_id]
            self._faults.add(f"task {name}: document {document}", str(error))
            return None
        evaluated = drawn.split == source.evaluated
        plain = TaskItems(
            name, task, doc_ids, tuple(queries), split=drawn.split, evaluated=evaluated
        )
        return self._faults.attempt(partial(self._with_smooth, plain, request.task, encoder))

    def _with_smooth(self, items: TaskItems, owner: str, encoder: Encoder) -> TaskItems:
        own = {metric.name for metric in items.own_metrics}
        asked = [name for name in self._metrics[owner] if name not in own]
        chat = self._setting.apply_chat_template
        smooth = plan_smooth(items.name, items.task, items.doc_ids, asked, encoder, chat=chat)
        return replace(items, smooth=smooth)
