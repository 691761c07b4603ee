"""The verbs, for Python: what the command line calls, and nothing but."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.arguments import (
    begun_fingerprints,
    check_device,
    check_patience,
    read_recipes,
    read_space,
    tell_beyond_mergekit,
    write_new,
)
from evomerge.assessing import evaluate as evaluate
from evomerge.errors import EvomergeWarning

if TYPE_CHECKING:
    from evomerge.merging import MergeSummary
    from evomerge.recipe import Recipe
    from evomerge.report import StudyReport
    from evomerge.search.budget import Budget, Observer, Progress
    from evomerge.search.estimate import Estimate
    from evomerge.search.evaluator import EvaluatorPlan
    from evomerge.search.preparation import Preparation
    from evomerge.search.records import TrialRecord
    from evomerge.search.session import SearchOutcome
    from evomerge.space import SearchSpace

TRIALS = 200
"""How many trials a search has, where nobody says when it is to stop."""


@dataclass(frozen=True)
class SearchResult:
    """A run of a study and where its files are.

    Args:
        study: the study, to read.
        folder: its files.
        outcome: how the run ended.
    """

    study: StudyReport
    folder: Path
    outcome: SearchOutcome


def check(space: SearchSpace | str | Path, *, include_path: Sequence[Path] = ()) -> Preparation:
    """Find a space's models and tasks and check that they fit; nothing is merged or scored.

    Raises:
        InputError: everything that is wrong.
    """
    from evomerge.search.preparation import prepare

    return prepare(read_space(space, include_path))


def load_study(study: str | Path, storage: str | None = None) -> StudyReport:
    """A study by its name, its folder, or its name in a storage elsewhere (an Optuna URL)."""
    from evomerge.report import open_study

    return open_study(study, storage)


def export(
    study: str | Path,
    out: Path | None = None,
    *,
    trial: int | None = None,
    storage: str | None = None,
) -> Recipe | tuple[Recipe, ...]:
    """The recipe of a trial (the best one by default), written to ``out`` if that is given.

    Returns:
        The recipe, or the stages of a staged one in their order: what ``merge`` takes.

    Raises:
        StudyError: there is no such study or trial, or ``out`` exists.

    Warns:
        EvomergeWarning: mergekit's own command would make another model of the recipe.
    """
    from evomerge.recipe import write_recipes

    recipes = load_study(study, storage).recipes(trial)
    tell_beyond_mergekit(recipes)
    if out is not None:
        write_new(out, write_recipes(recipes))
    return recipes if len(recipes) > 1 else recipes[0]


def merge(
    recipe: str | Path | Recipe | Sequence[Recipe],
    out: str | Path,
    *,
    trust_remote_code: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    device: str = "cpu",
) -> MergeSummary:
    """Merge a recipe and write the model, ready for ``from_pretrained``.

    Args:
        recipe: a recipe, a file of one or several, or several in the order of their stages.
        out: the model's folder; must not exist, or be empty.
        trust_remote_code: whether models may bring their own code.
        max_shard_bytes: size of a weight file at most.
        device: where the arithmetic is done.

    Raises:
        InputError: a recipe or a model is wrong, or ``out`` is taken.

    Warns:
        EvomergeWarning: mergekit's own command would make another model of the recipe.
    """
    recipes = read_recipes(recipe)
    with begun_fingerprints(recipes) as fingerprints:
        # Only now: the import of torch and the sums of the files go on side by side.
        from evomerge.merging import write_merge

        check_device(device)
        tell_beyond_mergekit(recipes)
        return write_merge(
            recipes,
            Path(out),
            trust_remote_code=trust_remote_code,
            max_shard_bytes=max_shard_bytes,
            device=device,
            fingerprints=fingerprints,
        )


def search(
    space: SearchSpace | str | Path,
    *,
    trials: int | None = None,
    workers: int | None = None,
    study: str | None = None,
    storage: str | None = None,
    seed: int | None = None,
    timeout: float | None = None,
    items: int | None = None,
    patience: int | None = None,
    ray_address: str | None = None,
    include_path: Sequence[Path] = (),
    fresh: bool = False,
    resources: Mapping[str, float | str | None] | None = None,
    backend: str | None = None,
    observer: Observer | None = None,
    announce: Callable[[Preparation, StudyReport], None] | None = None,
) -> SearchResult:
    """Search a space; go on with its study if there is one.

    Args:
        space: a space, or its file.
        trials: how many trials the study is to have in all; None is :data:`TRIALS`, or no limit
            where ``timeout`` or ``items`` says when to stop.
        workers: how many run at once; None is as many as there is room for.
        study: the study's name; None is the space's.
        storage: an Optuna storage URL; None is SQLite in the study's folder.
        seed: instead of the space's.
        timeout: seconds after which no trial is started.
        items: how many items may be scored in all, by all runs of the study: no trial is started
            once they are spent.
        patience: the search ends once the searched trials have scored so many times the search
            items without a gain beyond noise; None is the space's.
        ray_address: of a running Ray cluster.
        include_path: further folders of task definitions.
        fresh: begin anew; an earlier study of that name is set aside, not deleted.
        resources: ``cpus``, ``gpus`` and ``residency`` of each worker, instead of the space's.
        backend: ``hf`` or ``vllm``, instead of the space's.
        observer: is told of each finished trial.
        announce: is called once everything is checked, before the first trial.

    Raises:
        EvomergeError: see the rooms'.
    """
    from evomerge.checkpoints.sharing import sweep
    from evomerge.report import StudyFiles, StudyReport
    from evomerge.search.informed import balanced_items
    from evomerge.search.itemscores import item_log
    from evomerge.search.opening import open_for_search, set_aside, study_folder
    from evomerge.search.plans import with_resources, worker_resources
    from evomerge.search.preparation import prepare
    from evomerge.search.residence import with_residency
    from evomerge.search.session import Session
    from evomerge.search.workers import RayPool

    space = read_space(space, include_path, seed, resources, backend)
    check_patience(space, patience)
    folder = study_folder(name := space.name if study is None else study)
    prepared = prepare(space)
    share = worker_resources(space, workers)
    if ray_address is None:  # else each worker plans for the machine that it is on
        prepared = with_residency(prepared, share)

    def pool(plan: EvaluatorPlan) -> RayPool:
        return RayPool(with_resources(plan, share), share, address=ray_address)

    with folder.lock():
        if fresh:
            set_aside(folder, name, storage)
            folder.make()
        prepared = balanced_items(prepared, name, storage or folder.url, pool)
        store = open_for_search(prepared, folder, name, storage)
        files, log = StudyFiles(folder, store), item_log(folder.items, store)
        if announce:
            announce(prepared, StudyReport(store))

        def observed(record: TrialRecord | None, progress: Progress) -> None:
            if record is not None:
                files.update(progress)
            if observer:
                observer(record, progress)

        try:
            outcome = Session(
                prepared,
                store,
                partial(pool, prepared.plan),
                _budget(trials, timeout, items, patience or space.search.patience),
                observed,
                log.append,
            ).run()
        finally:
            log.close()
            sweep()  # what the workers shared; they may have been killed
        files.finish(outcome.progress)
    return SearchResult(StudyReport(store, folder), folder.path, outcome)


def _budget(
    trials: int | None, seconds: float | None, items: int | None, patience: int | None
) -> Budget:
    from evomerge.search.budget import Budget

    endless = trials is None and seconds is None and items is None
    return Budget(TRIALS if endless else trials, seconds, items, patience)


def estimate_search(
    prepared: Preparation, *, trials: int = TRIALS, workers: int | None = None
) -> tuple[Estimate, int]:
    """Lower limits of memory and time, and the number of workers that they are for."""
    import torch

    from evomerge.search.estimate import estimate
    from evomerge.search.plans import with_resources, worker_resources

    share = worker_resources(prepared.space, workers)
    plan = with_resources(prepared.plan, share)
    count = share.workers or max(1, int((os.cpu_count() or 1) / share.cpus))
    device = plan.device or "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        told = "this machine has no GPU, as the workers are to have; times are for its CPU"
        warnings.warn(told, EvomergeWarning, stacklevel=2)
        device = "cpu"
    limits = estimate(
        prepared,
        trials=trials,
        workers=count,
        device=device,
        threads=plan.threads or 1,
    )
    return limits, count


def plan_search(prepared: Preparation, *, workers: int | None = None) -> Preparation:
    """The same, with where the workers will hold the models.

    Raises:
        InputError: they fit nowhere, or not where the space wants them.
    """
    from evomerge.search.plans import worker_resources
    from evomerge.search.residence import with_residency

    return with_residency(prepared, worker_resources(prepared.space, workers))
