"""Candidates merged here and scored by the stand-in for vLLM: a live model's outcomes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge import evaluate
from evomerge.errors import InputError, SpaceError
from evomerge.search.baselines import baselines
from evomerge.search.evaluator import CandidateEvaluator
from evomerge.search.pool import Job, LocalPool
from evomerge.search.preparation import prepare
from evomerge.space import SearchSpace
from tests.evaluation import stand_in
from tests.search.test_preparation import quickstart, variant  # noqa: F401 - a fixture

TASKS = [{"task": "quickstart_most", "items": 12}, {"task": "quickstart_add", "items": 6}]


@pytest.fixture
def llms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[stand_in.LLM]:
    return stand_in.install(monkeypatch, tmp_path / "site")


def served(space: SearchSpace, tmp_path: Path, **changes: Any) -> SearchSpace:
    changes = {"search": {"backend": "vllm"}, "tasks": TASKS, **changes}
    return variant(space, tmp_path, **changes)


def test_outcomes_are_those_of_the_live_model(
    llms: Any,
    quickstart: SearchSpace,  # noqa: F811
    tmp_path: Path,
) -> None:
    space = served(quickstart, tmp_path)
    prepared = prepare(space, hold_out=False)
    evaluator = prepared.plan()
    assert not isinstance(evaluator, CandidateEvaluator)
    live = CandidateEvaluator(prepared.plan)
    scores = []
    for number, planned in enumerate(prepared.baselines[1:4]):
        job = Job(number, planned.recipe)
        mine, theirs = evaluator.run(job), live.run(job)
        assert mine.scores is not None
        assert theirs.scores is not None
        assert mine.scores.to_json() == theirs.scores.to_json()
        scores.append(mine.scores.to_json())
    assert len(set(scores)) > 1
    assert len(llms.started) == 1
    assert llms.started[0].options["tensor_parallel_size"] == 1


def test_an_engine_that_keeps_something_of_earlier_weights_is_refused(
    llms: Any,
    quickstart: SearchSpace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As vLLM's packed output head would be kept on CPUs, were it not made anew."""
    start = llms.__init__

    def with_kept_head(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        kept = self.model.lm_head.weight.detach().clone()
        head = self.model.lm_head
        head.forward = lambda hidden: torch.nn.functional.linear(hidden, kept)

    monkeypatch.setattr(llms, "__init__", with_kept_head)
    plan = prepare(served(quickstart, tmp_path), hold_out=False).plan
    with pytest.raises(InputError, match=r"other log-probabilities than transformers: .* nats"):
        plan()


def test_a_recipe_that_the_running_model_cannot_hold_fails_its_trial_alone(
    llms: Any,
    quickstart: SearchSpace,  # noqa: F811
    tmp_path: Path,
) -> None:
    prepared = prepare(served(quickstart, tmp_path, dtype="bfloat16"), hold_out=False)
    recipe = prepared.baselines[0].recipe
    pool = LocalPool(prepared.plan)
    pool.submit(Job(0, recipe.replace("dtype: bfloat16", "dtype: float32")))
    (outcome,) = pool.wait(0)
    assert "torch.bfloat16, which does not hold torch.float32" in str(outcome.failure)
    pool.submit(Job(1, recipe))
    (outcome,) = pool.wait(0)
    assert outcome.failure is None


def test_a_share_of_a_gpu_is_refused(
    llms: Any,
    quickstart: SearchSpace,  # noqa: F811
    tmp_path: Path,
) -> None:
    space = served(quickstart, tmp_path, resources={"gpus": 0.5})
    with pytest.raises(SpaceError, match=r"resources\.gpus: 0\.5 is refused: vLLM needs whole"):
        prepare(space, hold_out=False)


def test_a_dead_engine_s_worker_is_replaced(
    llms: Any,
    quickstart: SearchSpace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class EngineDeadError(Exception):
        """vLLM's, by its name."""

    prepared = prepare(served(quickstart, tmp_path), hold_out=False)
    pool = LocalPool(prepared.plan)
    pool.submit(Job(0, prepared.baselines[0].recipe))
    assert not pool.wait(0)[0].poisoned

    def dead(*_: Any, **__: Any) -> None:
        raise EngineDeadError("EngineCore encountered an issue")

    monkeypatch.setattr(llms, "start_weight_update", dead)
    pool.submit(Job(1, prepared.baselines[0].recipe))
    (outcome,) = pool.wait(0)
    assert outcome.poisoned
    assert "EngineCore encountered" in str(outcome.failure)


@pytest.mark.parametrize("what", ["model", "recipe"])
def test_evaluate_gives_the_same_scores_and_ends_the_server(
    llms: Any,
    quickstart: SearchSpace,  # noqa: F811
    tmp_path: Path,
    what: str,
) -> None:
    source = str(quickstart.models[0])
    if what == "recipe":
        planned = {one.label: one.recipe for one in baselines(quickstart, 6)}
        path = tmp_path / "recipe.yaml"
        path.write_text(planned["uniform"], encoding="utf-8")
        source = str(path)
    options = {"items": 8, "include_path": quickstart.include_path, "device": "cpu"}
    mine = evaluate(source, ["quickstart_most"], backend="vllm", **options)
    theirs = evaluate(source, ["quickstart_most"], **options)
    assert mine.to_json() == theirs.to_json()
    (llm,) = llms.started
    assert llm.closed


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_there_is_refused_at_its_key(
    quickstart: SearchSpace,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=r"search\.backend: 'vllm' is refused: .*not installed"):
        prepare(served(quickstart, tmp_path))
    with pytest.raises(InputError, match=r"backend: 'vllm' is refused: .*evomerge\[vllm\]"):
        evaluate(str(quickstart.base_model), ["quickstart_most"], backend="vllm")
    with pytest.raises(InputError, match=r"backend: 'tgi' is refused; allowed: hf, vllm"):
        evaluate(str(quickstart.base_model), ["quickstart_most"], backend="tgi")
    with pytest.raises(SpaceError, match=r"search\.backend: .*'tgi'.*'hf'.*'vllm'"):
        served(quickstart, tmp_path, search={"backend": "tgi"})
