"""One worker's work: hold the models, merge a recipe into the live one, score it.

It knows neither Ray nor Optuna; ``workers`` runs it in an actor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints import Checkpoint, spread
from evomerge.errors import TrialError
from evomerge.evaluation import (
    ItemSet,
    Scorer,
    Setting,
    TaskRequest,
    build_items,
    context_length,
)
from evomerge.evaluation.rungs import RungScorer
from evomerge.evaluation.spec import Part
from evomerge.merging import DTYPES, StagedEngine, Target, devices_of
from evomerge.merging.placing import Device
from evomerge.merging.residency import Wish
from evomerge.recipe import Recipe, read_recipes
from evomerge.references import ModelReference
from evomerge.search.climbing import SLOPE_COST, Place, Walk, steps_of_leg, walk
from evomerge.search.pool import Evaluator, Job, Outcome, reason
from evomerge.search.slopes import Neighbourhood, Slopes

if TYPE_CHECKING:
    import torch


_LOGGER = logging.getLogger(__name__)

_PARTS: Mapping[str, Part] = {
    "search": "search",
    "holdout": "holdout",
    "race": "race",
    "climb": "climb",
}


@dataclass(frozen=True)
class EvaluatorPlan:
    """Everything a worker needs to know; small, and it pickles.

    Args:
        base: the model whose shape the live model has, vocabulary apart: the one that task vectors
            are taken from, or the first where there is none.
        models: the other stored models that recipes name.
        dtype: of the live model: ``float32``, ``bfloat16``, ``float16``.
        requests: what is scored.
        setting: how questions are put.
        holdout_items: how many held-out items per task; None for all that there are.
        race_items: how many race items per task; None for as many as are searched on, or what is
            left.
        device: ``cpu``, ``cuda``; None for the accelerator where there is one.
        spread: the live model lies over all the GPUs that the worker sees; each tensor is merged
            where it lies.
        residency: where the models are held: ``device``, ``host``, ``auto``.
        threads: CPU threads; None leaves torch's own number.
        trust_remote_code: whether models may bring their own code.
        vocabulary_of: any of the recipes that are to come (YAML): the live model and the tokenizer
            have the vocabulary that they all ask for. None is the base's.
        backend: what runs the merged models: ``hf`` or ``vllm``.
        neighbourhood: what slopes are taken in; None where none will be asked for.
        rungs: the shares of the search items after which a candidate may be stopped; see
            ``evaluation.rungs``.
    """

    base: ModelReference
    models: tuple[ModelReference, ...]
    dtype: str
    requests: tuple[TaskRequest, ...]
    setting: Setting
    holdout_items: int | None = None
    race_items: int | None = None
    device: str | None = None
    spread: bool = False
    residency: Wish = "auto"
    threads: int | None = None
    trust_remote_code: bool = False
    vocabulary_of: str | None = None
    backend: str = "hf"
    neighbourhood: Neighbourhood | None = None
    rungs: tuple[float, ...] = ()

    def rungs_of(self, part: str) -> tuple[tuple[float, ...], int]:
        """The shares of a part's items, and the seed of their order."""
        return self.rungs if part == "search" else (), self.requests[0].seed

    def __call__(self) -> Evaluator:
        """Build the evaluator; called in the worker's process."""
        if self.backend == "vllm":
            from evomerge.search.served import ServedEvaluator

            return ServedEvaluator(self)
        return CandidateEvaluator(self)


class CandidateEvaluator:
    """Merges candidates into one live model and scores them. Nothing is loaded twice.

    Raises:
        CheckpointError: a model cannot be read.
        TaskError: a task cannot be built.
    """

    def __init__(self, plan: EvaluatorPlan) -> None:
        import torch

        if plan.threads:
            torch.set_num_threads(plan.threads)
        self._plan = plan
        self._device = plan.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._engine, self._model, target = self._build()
        self._tokenizer = target.vocabulary.tokenizer.load()
        self._scorers: dict[str, RungScorer] = {}
        self._slopes: Slopes | None = None
        self._way = ""
        self._scorer("search")

    def _build(self) -> tuple[StagedEngine, torch.nn.Module, Target]:
        """The engine, the live model and its vocabulary."""
        plan = self._plan
        recipes = read_recipes(plan.vocabulary_of) if plan.vocabulary_of else None
        # From the models' headers: how tall the live model has to be.
        target = staged_engine_of(plan, recipes, resident=False).target_of(recipes)
        base = Checkpoint.open(plan.base, trust_remote_code=plan.trust_remote_code)

        def live(device: str) -> torch.nn.Module:
            model = base.load_model(dtype=DTYPES[plan.dtype], device=device)
            return target.vocabulary.fitted(model, base)

        if plan.spread:
            model = spread(live("cpu"), str(plan.base))
            return staged_engine_of(plan, recipes, device=devices_of(model, base)), model, target
        # The engine first: what does not fit is refused before anything is loaded.
        engine = staged_engine_of(plan, recipes, device=self._device)
        return engine, live(self._device), target

    def run(self, job: Job) -> Outcome:
        """Merge a job's recipe into the live model and score it on the part's items.

        A slope that cannot be had costs a warning; the scores are kept.

        Raises:
            TrialError: the merged model or its scores are not finite.
        """
        scorer = self._scorer(job.part)
        recipes = read_recipes(job.recipe)
        began = time.perf_counter()
        self._engine.merge_into(self._model, recipes)
        self._synchronize()
        merged = time.perf_counter()
        found = scorer.score(job.incumbent)
        scored = time.perf_counter()
        seconds = {"merge": merged - began, "score": scored - merged}
        outcome = Outcome(job, found.scores, seconds, items=found.items, estimate=found.estimate)
        if job.leg is None:
            return outcome
        walked = self._walk(job, job.leg)
        seconds["walk"] = time.perf_counter() - scored
        if isinstance(walked, str):
            return replace(outcome, no_slope=walked)
        # A leg's blocks hold as many items as a trial scores.
        items = outcome.items + SLOPE_COST * len(scorer.items)
        return replace(outcome, items=items, walk=walked.to_json())

    def _walk(self, job: Job, leg: Mapping[str, Any]) -> Walk | str:
        """What came of a leg, or why nothing did: whatever it is, the scores are kept."""
        try:
            slopes = self.slopes()
            steps = steps_of_leg(len(self._scorer("search").items))
            seed = (self._plan.requests[0].seed, int(job.key))
            return walk(slopes, Place.from_json(leg), steps, seed)
        except Exception as problem:
            _LOGGER.warning("trial %s: no slope: %s", job.key, problem)
            return reason(problem)

    def slopes(self) -> Slopes:
        """Takes slopes on the live model.

        Raises:
            TaskError: the items that they are taken on cannot be built.
            TrialError: there are none.
        """
        neighbourhood = self._plan.neighbourhood
        if neighbourhood is None:
            raise TrialError("this plan takes no slopes")
        if self._slopes is None:
            searched = len(self._scorer("search").items)
            items = items_of(self._plan, self._tokenizer, self._model.config, "climb")
            blocks = round(steps_of_leg(searched) * len(items) / searched)
            self._slopes = Slopes(
                neighbourhood,
                self._engine,
                self._model,
                items,
                self._tokenizer,
                device=self._device,
                tree=self._way == "prefix tree",
                blocks=blocks,
            )
        return self._slopes

    def _scorer(self, part: str) -> RungScorer:
        if part not in self._scorers:
            items = items_of(self._plan, self._tokenizer, self._model.config, part)

            def scorer(places: Sequence[int] | None) -> Scorer:
                model, tokenizer = self._model, self._tokenizer
                made = Scorer(model, tokenizer, items, device=self._device, places=places)
                self._way = made.way
                return made

            self._scorers[part] = RungScorer(items, *self._plan.rungs_of(part), scorer)
        return self._scorers[part]

    def _synchronize(self) -> None:
        # Without it the merge's kernels would be counted as scoring time.
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()


def staged_engine_of(
    plan: EvaluatorPlan,
    recipes: Sequence[Recipe] | None,
    *,
    device: Device = "cpu",
    resident: bool = True,
) -> StagedEngine:
    """The engine of a plan: its models, and one that only gives a tokenizer.

    Args:
        plan: what to build.
        recipes: the stages of ``plan.vocabulary_of``.
        device: see :class:`MergeEngine`.
        resident: whether the models are held in memory.

    Raises:
        InputError: a model cannot be read, or the models' tokens do not fit.
    """
    stages = {ModelReference(str(recipe.name)) for recipe in (recipes or ())[:-1]}
    named = [model for recipe in recipes or () for model in recipe.models_named]
    models = [
        Checkpoint.open(one, trust_remote_code=plan.trust_remote_code)
        for one in dict.fromkeys([plan.base, *plan.models, *named])
        if one not in stages
    ]
    return StagedEngine(
        models,
        device=device,
        resident=resident,
        residency=plan.residency,
        vocabulary_of=recipes,
    )


def items_of(plan: EvaluatorPlan, tokenizer: Any, config: Any, part: str) -> ItemSet:
    """The items of one part (see :class:`Job`): the same in every worker."""
    name, *numbers = part.split()
    number, rounds = map(int, numbers[0].split("/")) if numbers else (1, 1)
    return build_items(
        plan.requests,
        plan.setting,
        tokenizer,
        max_length=context_length(config, tokenizer),
        part=_PARTS.get(name, "search"),
        holdout_items=plan.holdout_items,
        race_items=plan.race_items,
        race_round=(number - 1, rounds),
    )
