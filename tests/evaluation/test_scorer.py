"""What the scorer does between two candidates, and when things go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import TrialError
from evomerge.evaluation import ItemSet, MetricName, Scorer, Setting, TaskRequest, build_items
from tests.evaluation import worlds
from tests.evaluation.worlds import TaskFolder


@pytest.fixture
def items(folder: TaskFolder, tokenizer: Any) -> ItemSet:
    requests = [
        TaskRequest(worlds.add_choices(folder, "choices")),
        TaskRequest(worlds.add_rolling(folder, "rolling"), MetricName("bits_per_byte")),
        TaskRequest(worlds.add_writing(folder, "writing"), MetricName("exact_match", "whole")),
    ]
    return build_items(requests, Setting(include_path=(folder.path,)), tokenizer, max_length=96)


def counted(calls: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return function(*args, **kwargs)

    return call


def test_nothing_is_built_or_tokenised_once_scoring_has_begun(
    items: ItemSet, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.utils
    from lm_eval.api.task import ConfigurableTask

    scorer = Scorer(model, tokenizer, items)
    calls: list[str] = []
    scorer.score()
    # The targets' templates were rendered then.
    render = counted(calls, "apply_template", lm_eval.utils.apply_template)
    monkeypatch.setattr(lm_eval.utils, "apply_template", render)
    for owner, names in (
        (type(tokenizer), ("encode", "__call__", "_encode_plus", "apply_chat_template")),
        (ConfigurableTask, ("build_all_requests", "construct_requests", "fewshot_context")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, counted(calls, name, getattr(owner, name)))
    tokenizer.encode("a cat")
    assert calls  # the counting counts
    calls.clear()
    first = scorer.score()
    second = scorer.score()
    assert calls == []
    assert first.to_json() == second.to_json()


def test_scores_follow_the_live_weights(items: ItemSet, model: Any, tokenizer: Any) -> None:
    scorer = Scorer(model, tokenizer, items)
    before = scorer.score()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = scorer.score()
    assert before.to_json() != after.to_json()
    fresh = Scorer(model, tokenizer, items).score()
    assert fresh.to_json() == after.to_json()


@pytest.mark.parametrize(("batch_tokens", "batch_size"), [(1, None), (200, None), (4096, 3)])
def test_the_batches_do_not_matter(
    items: ItemSet, model: Any, tokenizer: Any, batch_tokens: int, batch_size: int | None
) -> None:
    plain = Scorer(model, tokenizer, items).respond()
    other = Scorer(
        model, tokenizer, items, batch_tokens=batch_tokens, batch_size=batch_size
    ).respond()
    for one, two in zip(plain, other, strict=True):
        for mine, theirs in zip(one, two, strict=True):
            if isinstance(mine, str):
                assert mine == theirs
            else:
                np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_positions_that_nobody_scores_are_not_projected(
    items: ItemSet, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_choice = Scorer(model, tokenizer, items).respond()
    full = type(model).forward

    def forward(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return full(self, input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)  # its signature shows no logits_to_keep
    without = Scorer(model, tokenizer, items).respond()
    for one, two in zip(with_choice, without, strict=True):
        if not isinstance(one[0], str):
            np.testing.assert_allclose(one, two, atol=1e-5)


def test_nan_weights_fail_the_trial_and_name_the_task(
    items: ItemSet, model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    scorer = Scorer(model, tokenizer, items)
    healthy = scorer.score().to_json()
    weight = model.model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with pytest.raises(TrialError, match=r"task choices: .*NaN"):
        scorer.score()
    writing = build_items(
        [TaskRequest("writing", MetricName("exact_match", "whole"))],
        Setting(include_path=(folder.path,)),
        tokenizer,
        max_length=96,
    )
    with pytest.raises(TrialError, match=r"task writing: .*NaN"):
        Scorer(model, tokenizer, writing).score()
    with torch.no_grad():
        weight.copy_(kept)
    assert scorer.score().to_json() == healthy


class _SmallMemory:
    """Lets a model run out of memory on batches of more than so many tokens."""

    def __init__(self, model: Any, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        full = type(model).forward

        def forward(
            this: Any, input_ids: torch.Tensor, *args: Any, logits_to_keep: Any = 0, **kwargs: Any
        ) -> Any:
            self.sizes.append(input_ids.numel())
            if input_ids.numel() > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
            return full(this, input_ids, *args, logits_to_keep=logits_to_keep, **kwargs)

        monkeypatch.setattr(type(model), "forward", forward)


def test_out_of_memory_halves_the_batch_and_remembers(
    items: ItemSet, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Scorer(model, tokenizer, items).score()
    memory = _SmallMemory(model, 200, monkeypatch)
    scorer = Scorer(model, tokenizer, items, batch_tokens=2000)
    got = scorer.score()
    for task, score in expected.tasks.items():
        for metric, value in score.metrics.items():
            assert got.tasks[task].metrics[metric].value == pytest.approx(value.value, rel=1e-5)
    assert max(memory.sizes) > 200
    memory.sizes.clear()
    scorer.score()
    assert max(memory.sizes) <= 200


def test_out_of_memory_with_one_sequence_fails_the_trial(
    items: ItemSet, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _SmallMemory(model, 3, monkeypatch)
    with pytest.raises(TrialError, match="out of memory with a single sequence"):
        Scorer(model, tokenizer, items).score()


def test_other_errors_of_the_model_are_not_taken_for_memory(
    items: ItemSet, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Scorer(model, tokenizer, items).score()


def test_sampled_texts_are_seeded_and_leave_the_world_s_randomness_alone(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    task = worlds.add_writing(
        folder,
        "sampled",
        repeats=3,
        generation_kwargs={"do_sample": True, "temperature": 2.0, "max_gen_toks": 8, "until": []},
    )
    request = TaskRequest(task, MetricName("exact_match", "whole"), items=4)
    items = build_items([request], Setting(include_path=(folder.path,)), tokenizer, max_length=96)
    scorer = Scorer(model, tokenizer, items)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    answers = scorer.respond()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(len(given) == 3 for given in answers)
    assert any(len(set(given)) > 1 for given in answers)
    assert scorer.respond() == answers


def test_a_task_s_failing_code_fails_the_trial_and_names_the_task(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    (folder.path / "bad.py").write_text(
        "def judge(doc, results):\n    return {'acc': 1.0 if not results[0] else 1 / 0}\n"
    )
    task = worlds.add_writing(folder, "bad", metric_list=worlds.metrics("acc"))
    file = folder.path / "bad.yaml"
    file.write_text(file.read_text() + "process_results: !function bad.judge\n")
    request = TaskRequest(task, MetricName("acc", "whole"))
    items = build_items([request], Setting(include_path=(folder.path,)), tokenizer, max_length=96)
    with pytest.raises(TrialError, match="task bad: answers could not be judged: ZeroDivision"):
        Scorer(model, tokenizer, items).score()


def test_batch_sizes_are_checked(items: ItemSet, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="batch_tokens: 0; write at least 1"):
        Scorer(model, tokenizer, items, batch_tokens=0)
