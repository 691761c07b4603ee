"""A search without models: an analytic problem, evaluators that fail on command, a real storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from optuna.distributions import FloatDistribution

from evomerge.errors import TrialError
from evomerge.evaluation import MetricName, Scores, TaskScore, Value
from evomerge.evaluation.incumbent import Incumbent
from evomerge.search.floors import Floor
from evomerge.search.pool import Job, Outcome
from evomerge.search.records import PlannedBaseline
from evomerge.search.sampler import make_sampler
from evomerge.search.storage import StudyStore, create_store
from tests.search.landscapes import Objective, sphere

ACC = MetricName("acc", "none")


class AnalyticProblem:
    """Genes in [0, 1]; a recipe is the genome as YAML; the fitness is the one score."""

    items = 10

    def __init__(self, genes: int = 4) -> None:
        self.distributions = {f"weight/{i}": FloatDistribution(0.0, 1.0) for i in range(genes)}

    def recipe(self, genome: Mapping[str, float]) -> str:
        return yaml.safe_dump(dict(genome))

    prunes = False
    floors: tuple[Floor, ...] = ()

    def goals(self, scores: Scores) -> tuple[float, ...]:
        return ()

    def incumbent(self, trial: int, fitness: float, scores: Scores) -> Incumbent | None:
        return None

    def fitness(self, scores: Scores) -> float:
        return scores.value("landscape", ACC).value

    def error(self, scores: Scores) -> float | None:
        return scores.value("landscape", ACC).stderr

    def point(self, value: float) -> dict[str, float]:
        return dict.fromkeys(self.distributions, value)

    def baselines(self) -> list[PlannedBaseline]:
        """Two inside the genome, one outside of it."""
        inside = [("base", 0.0), ("uniform", 0.4)]
        planned = [
            PlannedBaseline(label, self.recipe(self.point(v)), self.point(v)) for label, v in inside
        ]
        return [*planned, PlannedBaseline("outside", self.recipe(self.point(0.1)), None)]


class AnalyticEvaluator:
    """Reads the genome back from the recipe and evaluates the objective there."""

    def __init__(self, objective: Objective | None = None) -> None:
        self.objective = objective or sphere()
        self.jobs: list[Job] = []

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        value = self.objective(yaml.safe_load(job.recipe))
        score = TaskScore({ACC: Value(value, 0.01)}, {ACC: np.array([value])}, (0,))
        return Outcome(job, Scores({"landscape": score}), {"merge": 0.0, "score": 0.0}, items=10)


def failing(objective: Objective, when: Callable[[int], bool]) -> Objective:
    """The objective, but call i raises where ``when(i)``."""
    calls = iter(range(10**9))

    def value(genome: Mapping[str, float]) -> float:
        if when(next(calls)):
            raise TrialError("tensor model.norm.weight: not finite")
        return objective(genome)

    return value


@pytest.fixture
def problem() -> AnalyticProblem:
    return AnalyticProblem()


@pytest.fixture
def store(tmp_path: Path, problem: AnalyticProblem) -> StudyStore:
    return make_store(tmp_path / "study.db", problem)


def make_store(path: Path, problem: AnalyticProblem, sampler: str = "cmaes") -> StudyStore:
    """Open (or go on with) a study in a SQLite file."""
    store = create_store("test", f"sqlite:///{path}")
    start = problem.point(0.5)
    store.use(make_sampler(sampler, problem.distributions, start, seed=3, sigma=0.15))
    store.plan(problem.baselines())
    return store
