"""What the loop knows of what it searches: recipes, scores, goals, floors; no models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.errors import EvomergeError
from evomerge.search.floors import Floor

if TYPE_CHECKING:
    from evomerge.evaluation import Scores
    from evomerge.evaluation.incumbent import Incumbent


class SearchError(EvomergeError):
    """The search cannot go on."""


class Problem(Protocol):
    """What is searched."""

    @property
    def items(self) -> int:
        """How many items a trial is scored on."""
        ...

    @property
    def distributions(self) -> Mapping[str, Any]:
        """The genes' distributions, by name."""
        ...

    def recipe(self, genome: Mapping[str, float]) -> str:
        """The recipe (YAML) that a genome stands for."""
        ...

    def fitness(self, scores: Scores) -> float:
        """The number to maximise."""
        ...

    def error(self, scores: Scores) -> float | None:
        """The fitness's standard error; None where it is not known."""
        ...

    def goals(self, scores: Scores) -> tuple[float, ...]:
        """The numbers to maximise, where there are several; empty where fitness is the one goal."""
        ...

    @property
    def floors(self) -> tuple[Floor, ...]:
        """What scores have to keep to."""
        ...

    @property
    def prunes(self) -> bool:
        """Whether a candidate that cannot win is stopped."""
        ...

    def incumbent(self, trial: int, fitness: float, scores: Scores) -> Incumbent | None:
        """A trial, item by item; None where its fitness is no sum over items."""
        ...


Keeper = Callable[[int, "Scores"], None]
"""Called with each successful trial's number and scores before the study is told of it."""


def nothing_kept(_trial: int, _scores: Scores) -> None:
    """The keeper who keeps nothing."""


def summary(scores: Scores) -> dict[str, dict[str, list[float | None]]]:
    """Task → metric → [value, standard error], as the study keeps it."""
    return {
        task: {str(metric): [value.value, value.stderr] for metric, value in score.metrics.items()}
        for task, score in scores.tasks.items()
    }
