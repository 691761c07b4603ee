"""lm-eval's tasks → a fixed set of items, built and tokenised once.

The prompts come from lm-eval's own ``Task`` objects, few-shot examples included, for exactly the
documents that ``lm_eval.simple_evaluate(samples=…)`` would be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jinja2

from evomerge.errors import Fault, TaskError
from evomerge.evaluation import judging
from evomerge.evaluation.choosing import DocIds, choose, choose_all_or_some
from evomerge.evaluation.items import ItemSet
from evomerge.evaluation.judging import TaskItems
from evomerge.evaluation.queries import Encoder, Query, QueryError
from evomerge.evaluation.scores import find_metric
from evomerge.evaluation.spec import MetricName, Part, Setting, TaskRequest
from evomerge.evaluation.tasks import (
    Loaded,
    TaskLibrary,
    document_count,
    quiet,
    refusal,
    set_fewshot,
)


def build_items(
    requests: Sequence[TaskRequest],
    setting: Setting,
    tokenizer: Any,
    *,
    max_length: int,
    part: Part = "search",
    holdout_items: int | None = None,
) -> ItemSet:
    """Load the tasks, choose their documents, build and tokenise the requests.

    Args:
        requests: at least one; the same task may be asked for several metrics on the same items.
        setting: how the questions are put.
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's longest input in tokens (:func:`context_length`).
        part: ``holdout`` for documents that the search part of the same requests leaves over, or
            for those of each request's ``holdout_task``.
        holdout_items: per request; ``None`` for all that there are.

    Raises:
        TaskError: everything that is wrong with the requests, at once.
    """
    build = _Build(setting, tokenizer, max_length, part, holdout_items)
    return build.items(requests)


class _Faults:
    """Gathers what is wrong, so that it is said at once."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def add(self, place: str, problem: str) -> None:
        self.found.append(Fault(place, problem))

    def attempt(self, step: Callable[[], Any], place: str = "") -> Any:
        """The step's result, or ``None`` and its faults kept, placed under ``place``."""
        try:
            return step()
        except TaskError as error:
            for fault in error.faults:
                self.add(f"{place}: {fault.place}" if place else fault.place, fault.problem)
            return None

    def check(self) -> None:
        """Raise what was found."""
        if self.found:
            raise TaskError(dict.fromkeys(self.found))


class _Build:
    """The steps of :func:`build_items`; they gather faults, and stop only where none can go on."""

    def __init__(
        self,
        setting: Setting,
        tokenizer: Any,
        max_length: int,
        part: Part,
        holdout_items: int | None,
    ) -> None:
        self._setting = setting
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._part = part
        self._holdout_items = holdout_items
        self._faults = _Faults()

    def items(self, requests: Sequence[TaskRequest]) -> ItemSet:
        faults = self._faults
        encoder = faults.attempt(self._encoder)
        self._check_requests(requests)
        library = faults.attempt(partial(TaskLibrary, self._setting.include_path))
        if library is None:
            faults.check()
        loaded = self._load(library, [self._scored_name(request) for request in requests])
        chosen = self._choose(requests, loaded)
        faults.check()
        firsts = {self._scored_name(request): request for request in reversed(requests)}
        tasks = [
            self._build_task(name, task, chosen[name], firsts[owner], encoder)
            for owner, found in loaded.items()
            for name, task in found.tasks.items()
        ]
        faults.check()
        return self._finish(requests, tuple(tasks), loaded)

    def _finish(
        self,
        requests: Sequence[TaskRequest],
        tasks: tuple[TaskItems, ...],
        loaded: Mapping[str, Loaded],
    ) -> ItemSet:
        reported = {task.name: judging.reported_metrics(task) for task in tasks}
        sizes = {task.name: len(task.doc_ids) for task in tasks}
        groups = _groups(loaded.values(), reported)
        names: dict[str, Iterable[MetricName]] = dict(reported)
        names |= {group.name: judging.group_shares(group, reported, sizes) for group in groups}
        resolved = []
        for request in requests:
            name = self._scored_name(request)
            known = dict.fromkeys(names[name])
            metric = self._faults.attempt(
                partial(find_metric, request.metric, known), f"task {name}"
            )
            resolved.append(replace(request, task=name, metric=metric or request.metric))
        self._faults.check()
        return ItemSet(tuple(resolved), tasks, groups)

    def _encoder(self) -> Encoder:
        if self._setting.apply_chat_template and not self._tokenizer.chat_template:
            raise TaskError.at(
                "apply_chat_template", "the tokenizer has no chat template; write false"
            )
        try:
            return Encoder(self._tokenizer, self._max_length)
        except QueryError as error:
            raise TaskError.at("tokenizer", str(error)) from error

    def _scored_name(self, request: TaskRequest) -> str:
        if self._part == "holdout" and request.holdout_task:
            return request.holdout_task
        return request.task

    def _check_requests(self, requests: Sequence[TaskRequest]) -> None:
        if not requests:
            self._faults.add("tasks", "none given; at least one is needed")
        searched = {request.task for request in requests}
        firsts: dict[str, TaskRequest] = {}
        for request in requests:
            first = firsts.setdefault(request.task, request)
            if replace(request, metric=first.metric, weight=first.weight) != first:
                self._faults.add(
                    f"task {request.task}",
                    "is asked for twice with different items, examples, seed, order or "
                    "holdout_task; only metric and weight may differ",
                )
            held_out = request.holdout_task
            if held_out and held_out != request.task and held_out in searched:
                self._faults.add(
                    f"task {request.task}: holdout_task",
                    f"{held_out!r} is itself searched on; name one that is not",
                )

    def _load(self, library: TaskLibrary, names: Sequence[str]) -> dict[str, Loaded]:
        loaded: dict[str, Loaded] = {}
        owners: dict[str, str] = {}
        for name in dict.fromkeys(names):
            found = self._faults.attempt(partial(library.load, name))
            if found is None:
                continue
            loaded[name] = found
            for leaf, task in found.tasks.items():
                fault = refusal(leaf, task, self._setting.confirm_unsafe)
                if fault:
                    self._faults.found.append(fault)
                if owners.setdefault(leaf, name) != name:
                    self._faults.add(
                        f"task {leaf}",
                        f"is asked for by {owners[leaf]!r} and by {name!r}; ask for it once",
                    )
        return loaded

    def _choose(
        self, requests: Sequence[TaskRequest], loaded: Mapping[str, Loaded]
    ) -> dict[str, DocIds]:
        chosen: dict[str, DocIds] = {}
        for request in requests:
            found = loaded.get(self._scored_name(request))
            if found is None:
                continue
            sizes = {name: document_count(task) for name, task in found.tasks.items()}
            chosen.update(self._faults.attempt(partial(self._choose_of, request, sizes)) or {})
        return chosen

    def _choose_of(self, request: TaskRequest, sizes: Mapping[str, int]) -> dict[str, DocIds]:
        name = self._scored_name(request)
        if name != request.task:
            return choose_all_or_some(sizes, self._holdout_items, request.seed, name)
        return choose(sizes, request, self._part, self._holdout_items)

    def _build_task(
        self, name: str, task: Any, doc_ids: DocIds, request: TaskRequest, encoder: Encoder
    ) -> TaskItems:
        set_fewshot(task, request.num_fewshot, self._setting.fewshot_seed)
        try:
            self._build_requests(task, doc_ids)
        except Exception as error:  # templates and samplers of the task's author
            reason = f"requests could not be built: {type(error).__name__}: {error}"
            self._faults.add(f"task {name}", reason)
            return TaskItems(name, task, doc_ids, ())
        queries: list[Query] = []
        try:  # the first bad document says enough of a task
            queries.extend(encoder.query(it.request_type, it.args) for it in task.instances)
        except QueryError as error:
            document = doc_ids[task.instances[len(queries)].doc_id]
            self._faults.add(f"task {name}: document {document}", str(error))
        return TaskItems(name, task, doc_ids, tuple(queries))

    def _build_requests(self, task: Any, doc_ids: DocIds) -> None:
        chat = self._setting.apply_chat_template
        with quiet():
            task.build_all_requests(
                samples=list(doc_ids),
                rank=0,
                world_size=1,
                system_instruction=self._setting.system_instruction,
                apply_chat_template=chat,
                fewshot_as_multiturn=self._setting.fewshot_as_multiturn,
                chat_template=partial(_render_chat, self._tokenizer) if chat else None,
                tokenizer_name=str(self._tokenizer.name_or_path) if chat else "",
            )


def _groups(
    loaded: Iterable[Loaded], reported: Mapping[str, Sequence[MetricName]]
) -> tuple[Any, ...]:
    """The groups to be scored; a tag, or a group without aggregation, becomes a plain mean."""
    groups: dict[str, Any] = {}
    for found in loaded:
        groups |= {name: group for name, group in found.groups.items() if group.has_aggregation}
        if not found.is_task and found.name not in groups:
            first, *others = (reported[leaf] for leaf in found.tasks)
            shared = [metric for metric in first if all(metric in other for other in others)]
            groups[found.name] = judging.averaging_group(found.name, found.tasks, shared)
    return tuple(groups.values())


def _render_chat(
    tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    """A conversation as text; templates that know no system turn get none, as in lm-eval."""
    render = partial(
        tokenizer.apply_chat_template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )
    try:
        return str(render(history))
    except jinja2.exceptions.TemplateError:
        return str(render([turn for turn in history if turn["role"] != "system"]))
