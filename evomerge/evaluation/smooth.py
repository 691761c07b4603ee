"""Metrics that say more of an item than right or wrong, from the likelihoods of right answers.

They are not lm-eval's, but are made of the same answers: a multiple choice's log-likelihoods say by
how much it is right. A written answer says nothing of the kind, so the likelihood of the gold
solution is asked for besides, after the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from evomerge.errors import Fault, TaskError
from evomerge.evaluation.choices import Choices, choices_of
from evomerge.evaluation.queries import Encoder, Query, QueryError

FILTER = "none"
"""They judge no texts, so no filter of the task has a part in them."""

ItemValues = Callable[[Choices, np.ndarray], np.ndarray]
"""Choices and their log-likelihoods ``[items, most]`` → ``[items]``, or ``[items, 2]`` pairs."""


def _per(unit: str, choices: Choices, likelihoods: np.ndarray) -> np.ndarray:
    """Log-likelihoods as ``acc``, ``acc_norm`` (per character) or ``acc_bytes`` compare them."""
    lengths = {"": None, "_norm": choices.chars, "_bytes": choices.utf8}[unit]
    with np.errstate(divide="ignore"):  # an empty choice is as unlikely as in lm-eval
        return likelihoods if lengths is None else likelihoods / lengths


def _gold_prob(unit: str, choices: Choices, likelihoods: np.ndarray) -> np.ndarray:
    compared = _per(unit, choices, likelihoods)
    weights = np.exp(compared - compared.max(axis=1, keepdims=True))
    return np.asarray((weights * choices.right).sum(axis=1) / weights.sum(axis=1))


def _margin(unit: str, choices: Choices, likelihoods: np.ndarray) -> np.ndarray:
    compared = _per(unit, choices, likelihoods)
    right = np.where(choices.right, compared, -np.inf).max(axis=1)
    return np.asarray(right - np.where(choices.right, -np.inf, compared).max(axis=1))


def _gold_likelihood(choices: Choices, likelihoods: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(choices.right, likelihoods, -np.inf).max(axis=1))


def _gold_bits(choices: Choices, likelihoods: np.ndarray) -> np.ndarray:
    found = np.where(choices.right, likelihoods, -np.inf)
    best = found.argmax(axis=1)
    rows = np.arange(len(found))
    return np.stack([found[rows, best], choices.scored[rows, best]], axis=1)


@dataclass(frozen=True)
class Metric:
    """One smooth metric.

    Args:
        values: item values from choices.
        of_texts: whether a single text's likelihood gives it, without choices to compare.
        aggregation: lm-eval's name of what turns item values into a score.
        higher_is_better: which way is better.
        share: whether it lies in [0, 1], whatever the answers.
    """

    values: ItemValues
    of_texts: bool = False
    aggregation: str = "mean"
    higher_is_better: bool = True
    share: bool = False


GOLD_LIKELIHOOD, BITS_PER_BYTE = "gold_loglikelihood", "bits_per_byte"
_UNITS = ("", "_norm", "_bytes")

SMOOTH: Mapping[str, Metric] = {
    **{f"gold_prob{unit}": Metric(partial(_gold_prob, unit), share=True) for unit in _UNITS},
    **{f"margin{unit}": Metric(partial(_margin, unit)) for unit in _UNITS},
    GOLD_LIKELIHOOD: Metric(_gold_likelihood, of_texts=True),
    BITS_PER_BYTE: Metric(_gold_bits, True, BITS_PER_BYTE, higher_is_better=False),
}
"""``gold_prob``: the right answer's share of the choices' probabilities, in [0, 1]; of several
right answers the sum. ``margin``: log-likelihood of the likeliest right answer minus that of the
likeliest wrong one, in nats; above 0 where ``acc`` is 1, ties aside. Both with ``_norm`` per
character, as ``acc_norm``, and with ``_bytes`` per byte, as ``acc_bytes``. ``gold_loglikelihood``:
of the likeliest right answer, in nats. ``bits_per_byte``: that of all items over the bytes of their
texts, in bits, what stands between question and answer included."""


@dataclass(frozen=True)
class SmoothPlan:
    """What a task's items need for the smooth metrics that are asked of it; made once.

    Args:
        metrics: their names.
        choices: of a multiple choice. Where there are no choices, a single right one per item: the
            text that the task scores, or the gold solution.
        queries: put to the model after the task's own: the gold solutions.
    """

    metrics: tuple[str, ...]
    choices: Choices
    queries: tuple[Query, ...] = ()

    def values(self, answers: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
        """Per metric the item values.

        Args:
            answers: to the task's queries, those to ``queries`` last.
        """
        if self.queries:
            answers = answers[-len(self.queries) :]
        likelihoods = self.choices.likelihoods([_as_pair(given) for given in answers])
        return {name: SMOOTH[name].values(self.choices, likelihoods) for name in self.metrics}


def _as_pair(given: Sequence[Any]) -> Sequence[Any]:
    return given if isinstance(given[0], tuple) else [(given[0], False)]


def available(task: Any) -> tuple[str, ...]:
    """The smooth metrics that a leaf task's type of request allows."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return tuple(SMOOTH)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return (BITS_PER_BYTE,)
    return tuple(name for name, metric in SMOOTH.items() if metric.of_texts)


def plan_smooth(
    name: str,
    task: Any,
    doc_ids: Sequence[int],
    asked: Iterable[str],
    encoder: Encoder,
    *,
    chat: bool,
) -> SmoothPlan | None:
    """The plan of the smooth metrics that are asked of a leaf task.

    Args:
        name: the task's.
        task: lm-eval's, its requests built.
        doc_ids: the chosen documents.
        asked: names of metrics; those that are not smooth are passed over.
        encoder: of the study.
        chat: whether prompts are rendered with a chat template.

    Raises:
        TaskError: everything that keeps the task from them.
    """
    wanted = tuple(dict.fromkeys(metric for metric in asked if metric in SMOOTH))
    if not wanted:
        return None
    possible = available(task)
    faults = [
        Fault(
            f"task {name}: metric",
            f"{metric!r} compares choices, and the task ({task.OUTPUT_TYPE}) has none; allowed: "
            f"what it reports, and {', '.join(possible)}",
        )
        for metric in wanted
        if metric not in possible
    ]
    if faults:
        raise TaskError(faults)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = choices_of(name, task)
        _check_choices(name, choices, doc_ids, wanted)
        return SmoothPlan(wanted, choices)
    if len(task.instances) != len(doc_ids):
        reason = f"puts several requests for each document, so that {', '.join(wanted)} say nothing"
        raise TaskError.at(f"task {name}: metric", reason)
    if task.OUTPUT_TYPE == "generate_until":
        texts, queries = _solutions(name, task, doc_ids, encoder, chat)
        return SmoothPlan(wanted, _texts(texts), queries)
    return SmoothPlan(wanted, _texts([instance.args[-1] for instance in task.instances]))


def _check_choices(
    name: str, choices: Choices, doc_ids: Sequence[int], wanted: Sequence[str]
) -> None:
    found = choices.right.any(axis=1), (choices.there & ~choices.right).any(axis=1)
    missing = {"right": ~found[0]}
    if any(metric.startswith("margin") for metric in wanted):
        missing["wrong"] = ~found[1]
    faults = [
        Fault(
            f"task {name}",
            f"{int(lacking.sum())} of its documents have no {word} choice (the first is document "
            f"{doc_ids[int(lacking.argmax())]}), so that {', '.join(wanted)} mean nothing there",
        )
        for word, lacking in missing.items()
        if lacking.any()
    ]
    if faults:
        raise TaskError(faults)


def _texts(texts: Sequence[str]) -> Choices:
    """One right choice per item, and none that is wrong."""
    lengths = np.array([[float(len(text.encode()))] for text in texts])
    ones = np.ones_like(lengths)
    places = np.arange(len(texts))[:, None]
    return Choices(places, ones.astype(bool), ones, lengths, lengths)


def _solutions(
    name: str, task: Any, doc_ids: Sequence[int], encoder: Encoder, chat: bool
) -> tuple[list[str], tuple[Query, ...]]:
    """The gold solution of each document after its prompt, and the query for its likelihood."""
    if getattr(task, "UNSAFE_CODE", False):
        reason = "its targets are the code of tests, no solutions; ask for a metric that it reports"
        raise TaskError.at(f"task {name}: metric", reason)
    texts: list[str] = []
    queries: list[Query] = []
    for document, instance in zip(doc_ids, task.instances, strict=True):
        text = _delimiter(task, chat) + _gold_text(name, task, instance.doc)
        try:
            queries.append(encoder.query("loglikelihood", (instance.args[0], text)))
        except QueryError as error:  # the first bad one says enough
            place = f"task {name}: document {document}"
            raise TaskError.at(place, f"its gold solution: {error}") from error
        texts.append(text)
    return texts, tuple(queries)


def _gold_text(name: str, task: Any, document: Any) -> str:
    """What lm-eval would show as the answer if the document were an example."""
    gold = task.doc_to_target(document)
    if task.get_config("doc_to_choice") is not None and isinstance(gold, int):
        gold = task.doc_to_choice(document)[gold]
    if isinstance(gold, list) and gold:
        gold = gold[0]
    # A number is text only where the task's own metric would compare it as text.
    if isinstance(gold, (int, float)) and not callable(task.get_config("process_results")):
        gold = str(gold)
    if not isinstance(gold, str) or not gold.strip():
        reason = (
            f"has no gold solution: its target (doc_to_target) is {gold!r}; ask for a metric that "
            "it reports"
        )
        raise TaskError.at(f"task {name}: metric", reason)
    return gold


def _delimiter(task: Any, chat: bool) -> str:
    """What lm-eval puts between a prompt and a choice; after a chat template's prompt nothing."""
    delimiter = str(task.get_config("target_delimiter"))
    prefix = task.get_config("gen_prefix")
    return delimiter if not chat or (prefix and not prefix[-1:].isspace()) else ""
