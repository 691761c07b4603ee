"""What is to be scored: a task, one of its metrics, how many documents, and how they are put.

Nothing here loads lm-eval; the words mean what lm-eval means by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Part = Literal["search", "holdout", "race", "climb"]
Order = Literal["random", "first", "balanced"]
Split = Literal["auto", "train", "validation", "test", "evaluation"]
Round = tuple[int, int]
"""Which round of a race, from 0, of how many."""

LM_EVAL_FEWSHOT_SEED = 1234
"""``lm_eval.simple_evaluate``'s own default."""


@dataclass(frozen=True, order=True)
class MetricName:
    """A metric of a task, and the filter whose answers it judges.

    Args:
        name: ``acc``, ``acc_norm``, ``exact_match``…
        filter: the name of one of the task's filters (``none`` is lm-eval's own default filter), or
            ``None`` for "the only one that reports this metric".
    """

    name: str
    filter: str | None = None

    @classmethod
    def parse(cls, text: str) -> MetricName:
        """``acc`` or lm-eval's ``exact_match,strict-match``."""
        name, _, filter_name = text.partition(",")
        return cls(name.strip(), filter_name.strip() or None)

    def __str__(self) -> str:
        return f"{self.name},{self.filter}" if self.filter else self.name


@dataclass(frozen=True)
class TaskRequest:
    """One task (or group, or tag) to be scored by one of its metrics.

    Args:
        task: a name that lm-eval knows, or that a folder of ``Setting.include_path`` defines.
        metric: what is read off; a metric without a filter must be reported by one filter only.
            A smooth metric (``smooth.SMOOTH``) is reported when it is asked for.
        weight: its share of the fitness; any finite number.
        items: how many documents, at least 1; ``None`` for all. In a group or tag they are shared
            out over the member tasks in proportion to their sizes.
        num_fewshot: examples before each question; ``None`` for what the task says.
        order: ``random`` draws the documents by ``seed`` and the task's name; ``first`` takes the
            first ``items`` documents of every member task, as lm-eval's ``limit`` does;
            ``balanced`` are those ``chosen``, and as ``random`` while none are.
        seed: of the draw, not negative.
        holdout_task: the task whose documents are held out, where it is not this one.
        chosen: leaf tasks and positions of their documents, ascending, instead of a draw.
        split: whose documents are searched on. ``evaluation`` is the split that lm-eval evaluates
            the task on (and held-out documents always are of that one); ``train``, ``validation``
            and ``test`` name one; ``auto`` is the validation split, else the training split, where
            the task has one besides, and where no ``holdout_task`` says what is held out.
    """

    task: str
    metric: MetricName = field(default=MetricName("acc"))
    weight: float = 1.0
    items: int | None = None
    num_fewshot: int | None = None
    order: Order = "random"
    seed: int = 0
    holdout_task: str | None = None
    chosen: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    split: Split = "evaluation"

    @property
    def held_out_elsewhere(self) -> bool:
        """Whether the held-out documents are another task's."""
        return self.holdout_task not in (None, self.task)


@dataclass(frozen=True)
class Counts:
    """How many documents there are of the parts other than the search's.

    Args:
        holdout_items: per request; ``None`` for all that there are.
        race_items: per request, in all rounds; ``None`` for as many as are searched on, or all that
            are left.
        race_round: which of the rounds.
    """

    holdout_items: int | None = None
    race_items: int | None = None
    race_round: Round = (0, 1)


@dataclass(frozen=True)
class Setting:
    """How questions are put to the model; every field has ``lm_eval.simple_evaluate``'s meaning.

    Args:
        apply_chat_template: render every prompt with the tokenizer's chat template.
        fewshot_as_multiturn: examples as turns of a conversation (with a chat template only).
        system_instruction: put before the task's own description.
        include_path: folders with task definitions; later ones win, all win over lm-eval's own.
        fewshot_seed: seeds the choice of examples, per task.
        confirm_unsafe: allow tasks that run the code which the model writes. It also says yes to
            the metric behind most of them, which looks for ``HF_ALLOW_CODE_EVAL`` in the
            environment.
    """

    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    include_path: tuple[Path, ...] = ()
    fewshot_seed: int = LM_EVAL_FEWSHOT_SEED
    confirm_unsafe: bool = False
