"""Multiple-choice questions as arrays: which choices are right, how long they are, how likely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.task import ConfigurableTask

from evomerge.errors import TaskError


@dataclass(frozen=True)
class Choices:
    """The choices of a task's documents, one row per document, short rows filled up.

    Args:
        query: ``[items, most]`` the position of each choice among the task's queries, -1 where a
            document has no such choice.
        right: ``[items, most]`` which choices are right; a document may have several.
        chars, utf8: ``[items, most]`` the lengths that lm-eval divides by for ``acc_norm`` and
            ``acc_bytes``: characters and bytes of the choice, without what stands before it.
        scored: ``[items, most]`` bytes of the text whose likelihood is asked for.
    """

    query: np.ndarray
    right: np.ndarray
    chars: np.ndarray
    utf8: np.ndarray
    scored: np.ndarray

    @property
    def there(self) -> np.ndarray:
        """``[items, most]`` which choices there are."""
        return np.asarray(self.query >= 0)

    def likelihoods(self, answers: Sequence[Sequence[Any]]) -> np.ndarray:
        """``[items, most]`` log-likelihoods in nats; minus infinity where there is no choice.

        Args:
            answers: per query of the task the answers to its repeats.
        """
        found = np.array([given[0][0] for given in answers], dtype=np.float64)
        return np.where(self.there, found[self.query], -np.inf)


def choices_of(name: str, task: Any) -> Choices:
    """The choices of a leaf task whose requests are built, in the order of its documents.

    Args:
        name: the task's.
        task: lm-eval's, of the type ``multiple_choice``.

    Raises:
        TaskError: the task judges its answers by code of its own, so that only that code knows
            which choices are right.
    """
    if not judged_by_lm_eval(task):
        reason = (
            "judges its answers by code of its own (process_results), and only that knows which "
            "choices are right; ask for a metric that it reports"
        )
        raise TaskError.at(f"task {name}", reason)
    rows: list[list[int]] = []
    for place, instance in enumerate(task.instances):
        while len(rows) <= instance.doc_id:
            rows.append([])
        rows[instance.doc_id].append(place)
    return _filled([_Row.of(task, places) for places in rows])


def judged_by_lm_eval(task: Any) -> bool:
    """Whether lm-eval's own code makes item values of a leaf task's answers, not the task's."""
    stock = type(task).process_results is getattr(ConfigurableTask, "process_results", None)
    return stock and not callable(task.get_config("process_results"))


def refuse_uneven(name: str, task: Any) -> None:
    """Refuse ``brier_score`` of documents with differing numbers of choices.

    lm-eval takes the probabilities of all documents' choices as one matrix, and fails there.

    Args:
        name: the task's.
        task: lm-eval's, its requests built.

    Raises:
        TaskError: the task reports it and has such documents.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or "brier_score" not in task.aggregation():
        return
    numbers = sorted(set(Counter(instance.doc_id for instance in task.instances).values()))
    if len(numbers) > 1:
        reason = (
            f"reports brier_score, which wants as many choices of every document; these have "
            f"{numbers[0]} to {numbers[-1]}: take the metric out of the task's metric_list"
        )
        raise TaskError.at(f"task {name}", reason)


@dataclass(frozen=True)
class _Row:
    """One document's choices."""

    places: list[int]
    right: set[int]
    texts: list[str]
    scored: list[str]

    @classmethod
    def of(cls, task: Any, places: Sequence[int]) -> _Row:
        instances = sorted((task.instances[place].idx, place) for place in places)
        document = task.instances[places[0]].doc
        texts = [str(choice) for choice in task.doc_to_choice(document)]
        # With acc_mutual_info the same choices follow once more, without the question.
        places = [place for _, place in instances][: len(texts)]
        return cls(
            places=places,
            right=_right(task, document, texts),
            texts=texts,
            scored=[task.instances[place].args[1] for place in places],
        )


def _right(task: Any, document: Any, texts: Sequence[str]) -> set[int]:
    """The numbers of the right choices, read as lm-eval reads them; empty where it finds none."""
    read = task.doc_to_text if task.multiple_input else task.doc_to_target
    given = read(document)
    if isinstance(given, str):
        return {texts.index(given)} if given in texts else set()
    numbers = given if isinstance(given, list) else [given]
    return {number for number in numbers if isinstance(number, int) and 0 <= number < len(texts)}


def _filled(rows: Sequence[_Row]) -> Choices:
    shape = len(rows), max(len(row.places) for row in rows)
    query = np.full(shape, -1, dtype=np.int64)
    right = np.zeros(shape, dtype=bool)
    chars, utf8, scored = np.ones(shape), np.ones(shape), np.ones(shape)
    for number, row in enumerate(rows):
        width = len(row.places)
        query[number, :width] = row.places
        right[number, sorted(row.right)] = True
        chars[number, :width] = [len(text) for text in row.texts]
        utf8[number, :width] = [len(text.encode()) for text in row.texts]
        scored[number, :width] = [len(text.encode()) for text in row.scored]
    return Choices(query, right, chars, utf8, scored)
