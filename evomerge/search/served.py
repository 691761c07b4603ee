"""Candidates scored by a server: merged here, streamed into vLLM's engine, which answers.

The counterpart of ``evaluator``, whose live model is in the worker's own process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import Fault, RecipeError
from evomerge.evaluation import ItemSet, context_length
from evomerge.evaluation.rungs import RungScorer
from evomerge.evaluation.serving.agreement import check_agreement
from evomerge.evaluation.serving.pieces import Named
from evomerge.evaluation.serving.serving import ServedScorer, Server
from evomerge.evaluation.serving.vllm_server import ServerPlan, VllmServer
from evomerge.evaluation.serving.vllm_support import check_vllm
from evomerge.merging import DTYPES, MergeEngine, staged_engine
from evomerge.recipe import Recipe, read_recipes
from evomerge.references import ModelReference
from evomerge.search.evaluator import EvaluatorPlan, items_of, staged_engine_of
from evomerge.search.pool import Job, Outcome

Stream = Generator[Named, None, None]


class LoadingServer(Server, Protocol):
    """A server that takes other weights."""

    def load(self, tensors: Stream) -> None:
        """Give the model other weights; forget what was cached under those before."""
        ...

    def close(self) -> None:
        """End it."""
        ...


Start = Callable[[ServerPlan], LoadingServer]


class ServedEvaluator:
    """Merges candidates into a running server and scores them. Nothing is loaded twice.

    Args:
        plan: what the worker is to do.
        start: starts a server.

    Raises:
        CheckpointError: a model cannot be read.
        TaskError: a task cannot be built, or asks for what servers do not know.
        InputError: vLLM is missing, cannot run the model, or gives it other answers than
            transformers does.
    """

    def __init__(self, plan: EvaluatorPlan, start: Start = VllmServer) -> None:
        if plan.threads:
            torch.set_num_threads(plan.threads)
        self._plan = plan
        recipes = read_recipes(plan.vocabulary_of) if plan.vocabulary_of else None
        # The engine first: what does not fit is refused before anything is started.
        self._engine = staged_engine_of(plan, recipes, device=_device(plan.device))
        target = self._engine.target_of(recipes)
        base = Checkpoint.open(plan.base, trust_remote_code=plan.trust_remote_code)
        self._config = base.model_config()
        self._tokenizer = target.vocabulary.tokenizer.load()
        whole = ServerPlan(
            folder=base.folder,
            tokenizer=self._tokenizer,
            dtype=plan.dtype,
            length=context_length(self._config, self._tokenizer),
            gpus=_gpus(plan.device, spread=plan.spread),
            changes=target.vocabulary.changes(base),
            threads=plan.threads,
            trust_remote_code=plan.trust_remote_code,
        )
        self._server = start(whole)
        self._scorers: dict[str, RungScorer] = {}
        self._scorer("search")
        if recipes is not None:
            self._prove(recipes, whole.length)

    def _prove(self, recipes: Sequence[Recipe], length: int) -> None:
        """Compare the server with a live model of the same recipe, which is then let go."""
        engine, dtype = self._engine.engine_of(recipes), self._plan.dtype
        _check(engine, recipes[-1], DTYPES[dtype])
        live = engine.load_model(dtype=DTYPES[dtype])
        engine.merge_into(live, recipes[-1])
        self._load(engine, recipes[-1])
        check_agreement(self._server, live, dtype, length, str(self._plan.base))

    def _load(self, engine: MergeEngine, recipe: Recipe) -> None:
        with closing(engine.tensors(recipe)) as tensors:
            self._server.load(tensors)

    def run(self, job: Job) -> Outcome:
        """Merge a job's recipe into the server's model and score it on the part's items.

        Raises:
            RecipeError: the recipe does not fit the models, or the model that runs.
            TrialError: the merged model or its scores are not finite.
        """
        scorer = self._scorer(job.part)
        recipes = read_recipes(job.recipe)
        began = time.perf_counter()
        engine = self._engine.engine_of(recipes)
        _check(engine, recipes[-1], DTYPES[self._plan.dtype])
        self._load(engine, recipes[-1])
        merged = time.perf_counter()
        scored = scorer.score(job.incumbent)
        seconds = {"merge": merged - began, "score": time.perf_counter() - merged}
        return Outcome(job, scored.scores, seconds, items=scored.items, estimate=scored.estimate)

    def close(self) -> None:
        """End the server."""
        self._server.close()

    def _scorer(self, part: str) -> RungScorer:
        if part not in self._scorers:
            items = items_of(self._plan, self._tokenizer, self._config, part)

            def scorer(places: Sequence[int] | None) -> ServedScorer:
                return ServedScorer(self._server, self._tokenizer, items, places=places)

            self._scorers[part] = RungScorer(items, *self._plan.rungs_of(part), scorer)
        return self._scorers[part]


@dataclass(frozen=True)
class ServedModel:
    """A model that was found and can be served; nothing runs yet.

    Args:
        plan: of its server.
        config: transformers' configuration.
        tensors: its tensors, or the merge's, one after the other.
    """

    plan: ServerPlan
    config: Any
    tensors: Callable[[], Stream]

    @property
    def tokenizer(self) -> Any:
        """Hugging Face's."""
        return self.plan.tokenizer

    @contextmanager
    def scorer(self, items: ItemSet) -> Iterator[ServedScorer]:
        """Its scorer for these items; the server runs for that time.

        Raises:
            InputError: vLLM cannot run the model.
        """
        server = VllmServer(self.plan)
        try:
            scorer = ServedScorer(server, self.tokenizer, items)
            with closing(self.tensors()) as tensors:
                server.load(tensors)
            yield scorer
        finally:
            server.close()


def served_model(
    source: ModelReference | Sequence[Recipe],
    dtype: str | None = None,
    device: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> ServedModel:
    """A stored model, or the one that a recipe's stages make.

    Args:
        source: a model, or the stages of a recipe.
        dtype: a key of ``merging.DTYPES``; None is the checkpoint's or the recipe's type.
        device: ``cpu``, ``cuda``; None is the accelerator where there is one.
        trust_remote_code: whether models may bring their own code.

    Raises:
        InputError: a model or a recipe is wrong, vLLM is missing, or does not know the model.
    """
    check_vllm("backend")
    where = _device(device)
    if isinstance(source, ModelReference):
        like = Checkpoint.open(source, trust_remote_code=trust_remote_code)
        made, kind, changes = lambda: _stored(like), like.torch_dtype, {}
        tokenizer = like.tokenizer()
    else:
        recipe = source[-1]
        engine = staged_engine(source, {}, trust_remote_code=trust_remote_code, device=where)
        like, kind = engine.like, engine.dtype(recipe)
        made = lambda: engine.tensors(recipe)  # noqa: E731 - it has a name for its two meanings
        changes = dict(engine.target.vocabulary.changes(like))
        tokenizer = engine.target.vocabulary.tokenizer.load()
        _check(engine, recipe, kind)
    check_vllm("backend", like.config.get("architectures") or ())
    config = like.model_config()
    plan = ServerPlan(
        folder=like.folder,
        tokenizer=tokenizer,
        dtype=dtype or str(kind).removeprefix("torch."),
        length=context_length(config, tokenizer),
        gpus=_gpus(where, spread=False),
        changes=changes,
        trust_remote_code=trust_remote_code,
    )
    return ServedModel(plan, config, made)


def _stored(like: Checkpoint) -> Stream:
    for name in like.names:
        yield name, like.tensor(name, check=True, mapped=True)


def _check(engine: MergeEngine, recipe: Recipe, dtype: torch.dtype) -> None:
    """Refuse what the running model cannot hold; its shapes are those of the recipe's models."""
    faults = []
    if engine.layers(recipe) is not None:
        problem = "changes the layers, which a running model cannot; write it with `evomerge merge`"
        faults.append(Fault(recipe.place, problem))
    kind = engine.dtype(recipe)
    if torch.promote_types(kind, dtype) != dtype:
        problem = f"the model in vLLM is {dtype}, which does not hold {kind}"
        faults.append(Fault(recipe.place, problem))
    if faults:
        raise RecipeError(faults)


def _device(wanted: str | None) -> str:
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def _gpus(device: str | None, *, spread: bool) -> int:
    if not _device(device).startswith("cuda"):
        return 0
    return torch.cuda.device_count() if spread else 1
