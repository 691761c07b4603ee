"""What each worker builds for a space, and what it gets of the machine."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.errors import SpaceError
from evomerge.evaluation import MetricName, Setting, TaskRequest
from evomerge.recipe import read_recipes
from evomerge.search.evaluator import EvaluatorPlan, staged_engine_of
from evomerge.search.slopes import Neighbourhood
from evomerge.search.workers import Resources

if TYPE_CHECKING:
    import torch

    from evomerge.checkpoints import Checkpoint
    from evomerge.merging import Target
    from evomerge.space import SearchSpace


def evaluator_plan(space: SearchSpace, base: Checkpoint) -> EvaluatorPlan:
    """What each worker builds for a space."""
    first, *others = space.stored_models
    return EvaluatorPlan(
        base=first,
        models=tuple(others),
        dtype=space.dtype or type_name(base.torch_dtype),
        requests=task_requests(space),
        setting=Setting(
            apply_chat_template=space.apply_chat_template,
            fewshot_as_multiturn=space.fewshot_as_multiturn,
            system_instruction=space.system_instruction,
            include_path=space.include_path,
            confirm_unsafe=space.confirm_unsafe,
        ),
        holdout_items=space.holdout.items if space.holdout else None,
        race_items=space.finals.items,
        residency=space.resources.residency,
        trust_remote_code=space.trust_remote_code,
        backend=space.search.backend,
        neighbourhood=_neighbourhood(space, base),
    )


def _neighbourhood(space: SearchSpace, base: Checkpoint) -> Neighbourhood | None:
    asks = space.search.sampler == "ascent" and space.search.backend == "hf"
    return Neighbourhood(space, base.num_layers) if asks else None


def task_requests(space: SearchSpace) -> tuple[TaskRequest, ...]:
    """The space's tasks in the evaluation room's words."""
    return tuple(
        TaskRequest(
            task=task.task,
            metric=MetricName.parse(task.metric),
            weight=task.weight,
            items=task.items,
            num_fewshot=task.num_fewshot,
            order=task.order,
            seed=space.search.seed,
            holdout_task=task.holdout_task,
            split=task.split,
        )
        for task in space.tasks
    )


def worker_resources(space: SearchSpace, workers: int | None = None) -> Resources:
    """What each worker gets: the space's wishes, else one GPU each, else one core each.

    Raises:
        SpaceError: a worker is to have more than one GPU, but not a whole number of them.
    """
    import torch

    gpus = space.resources.gpus
    if gpus is None:
        gpus = 1.0 if torch.cuda.is_available() else 0.0
    if gpus > 1 and gpus != int(gpus):
        problem = f"{gpus:g} is refused: a share of one GPU, or a whole number of them"
        raise SpaceError([space.fault(("resources", "gpus"), problem)])
    cores = os.cpu_count() or 1
    wanted = workers or space.resources.workers
    cpus = space.resources.cpus
    if cpus is None:
        cpus = max(1.0, cores // wanted) if wanted else 1.0
    return Resources(workers=wanted, cpus=cpus, gpus=gpus)


def with_resources(plan: EvaluatorPlan, resources: Resources) -> EvaluatorPlan:
    """The plan with the device and the threads that the resources allow."""
    device = "cuda" if resources.gpus > 0 else "cpu"
    threads = max(1, int(resources.cpus))
    return replace(plan, device=device, spread=resources.gpus > 1, threads=threads)


def targets_of(plan: EvaluatorPlan) -> list[Target]:
    """The vocabularies of the merged models, stage by stage, planned from the files alone."""
    recipes = read_recipes(plan.vocabulary_of) if plan.vocabulary_of else None
    engine = staged_engine_of(plan, recipes, resident=False)
    if recipes is None:
        return [engine.target_of(None)]
    return [engine.target_of(recipes[: number + 1]) for number in range(len(recipes))]


def type_name(dtype: torch.dtype) -> str:
    """torch's name of a type, as recipes write it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")
