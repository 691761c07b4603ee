"""A fixed set of items: lm-eval's requests for chosen documents, tokenised, ready for any model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evomerge.evaluation import judging
from evomerge.evaluation.groups import judge_group
from evomerge.evaluation.judging import TaskItems
from evomerge.evaluation.queries import Query
from evomerge.evaluation.scores import Scores, TaskScore
from evomerge.evaluation.spec import TaskRequest

One = TypeVar("One")


@dataclass(frozen=True)
class ItemSet:
    """Items ready to be put to any model with the same tokenizer.

    Args:
        requests: what was asked for, as it stands for this part: every metric has its filter, and
            in the held-out part a task's name is that of its ``holdout_task``. These, with the
            scores of these items, go to :func:`fitness` and :func:`compare`.
        tasks: the leaf tasks.
        groups: lm-eval groups, those made for tags included.
        notes: what a user should know of these items, one sentence each.
    """

    requests: tuple[TaskRequest, ...]
    tasks: tuple[TaskItems, ...]
    groups: tuple[Any, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(task.doc_ids) for task in self.tasks)

    @property
    def samples(self) -> dict[str, list[int]]:
        """Leaf task → its documents, as ``simple_evaluate(samples=…)`` takes them.

        They are positions in :attr:`splits`.
        """
        return {task.name: list(task.doc_ids) for task in self.tasks}

    @property
    def splits(self) -> dict[str, str | None]:
        """Leaf task → the data set's split of its documents; None where it does not say."""
        return {task.name: task.split for task in self.tasks}

    def splits_of(self, task: str) -> tuple[str, ...]:
        """The splits that the items of a task, a group or a tag are of, each once."""
        groups = {group.name: group.get_all_tasks() for group in self.groups}
        leaves = [leaf.task_name for leaf in groups[task]] if task in groups else [task]
        return tuple(dict.fromkeys(self.splits[leaf] or "" for leaf in leaves))

    @property
    def versions(self) -> dict[str, str]:
        """Leaf task → the version that its definition states."""
        return {task.name: str(task.task.VERSION) for task in self.tasks}

    def higher_is_better(self, request: TaskRequest) -> bool:
        """Which way the metric of one of the set's own requests is better."""
        return {task.higher_is_better(request.metric) for task in self._of(request)} != {False}

    def is_share(self, request: TaskRequest) -> bool:
        """Whether the metric of one of the set's own requests is known to lie in [0, 1]."""
        return all(task.is_share(request.metric) for task in self._of(request))

    def _of(self, request: TaskRequest) -> list[TaskItems]:
        """A request's leaf tasks."""
        groups = {group.name: group.get_all_tasks() for group in self.groups}
        leaves = {leaf.task_name for leaf in groups.get(request.task, ())} or {request.task}
        return [task for task in self.tasks if task.name in leaves]

    def digest(self) -> str:
        """A hash of what is asked and of what counts as right: documents, prompts, tokens."""
        whole = hashlib.sha256()
        for task in self.tasks:
            documents = [instance.doc for instance in task.task.instances]
            where = [] if task.evaluated else [task.split]
            told = [task.name, task.doc_ids, documents, *where]
            whole.update(json.dumps(told, default=str, sort_keys=True).encode())
            whole.update(repr(task.queries).encode())
        return whole.hexdigest()

    @property
    def queries(self) -> tuple[Query, ...]:
        """Everything to be put to the model, task after task."""
        return tuple(query for task in self.tasks for query in task.queries)

    @property
    def repeats(self) -> tuple[int, ...]:
        """How many answers each query needs (more than one only where the task says so)."""
        return tuple(repeats for task in self.tasks for repeats in task.repeats)

    @property
    def owners(self) -> tuple[str, ...]:
        """The leaf task of each query."""
        return tuple(task.name for task in self.tasks for _ in task.queries)

    def judge(self, answers: Sequence[Sequence[Any]], *, bootstrap: int = 0) -> Scores:
        """Scores from a model's answers.

        Args:
            answers: per query the answers to its repeats.
            bootstrap: resamples for the standard errors of metrics that are no mean; 0 for none.

        Raises:
            TrialError: a task's own code fails on the answers.
        """
        scores: dict[str, TaskScore] = {}
        start = 0
        for task in self.tasks:
            end = start + len(task.queries)
            scores[task.name] = judging.judge(task, answers[start:end], bootstrap=bootstrap)
            start = end
        for group in self.groups:
            scores[group.name] = judge_group(group, scores)
        return Scores(scores)


def picked(of: Sequence[One], places: Sequence[int]) -> list[One]:
    """What lies at these places."""
    return [of[place] for place in places]
