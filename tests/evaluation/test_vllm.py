"""The vLLM backend with vLLM itself; skipped where it is not installed.

Measured against the plain scorer in float32 on a CPU: log-likelihoods differ by some 1e-6 (nats),
texts and metrics not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.errors import InputError, TrialError
from evomerge.evaluation import ItemSet, MetricName, Scorer, Setting, TaskRequest, build_items
from evomerge.evaluation.serving.serving import ServedScorer
from evomerge.evaluation.serving.vllm_server import ServerPlan, VllmServer
from evomerge.evaluation.serving.vllm_support import check_vllm
from tests.evaluation import worlds
from tests.evaluation.test_serving import assert_same, moved, named
from tests.evaluation.worlds import TaskFolder

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]

LENGTH = 384
LONG = " ".join(["cat sees dog likes"] * 66) + "\n"
"""A description that fills more than one block (128 tokens on CPUs) of vLLM's cache of prefixes."""


WORLDS = {"one process": (1, False), "shared head": (1, True), "two processes": (2, True)}


def make_model(tokenizer: Any, *, tied: bool) -> Any:
    """Heads of 32, the narrowest that vLLM has CPU kernels for; queries share keys and values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=tied,
    )
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(12.0)
    return made


@dataclass(frozen=True)
class World:
    """A running server, and what it was started with."""

    plan: ServerPlan
    server: VllmServer
    tied: bool


@pytest.fixture(scope="module", params=WORLDS.values(), ids=WORLDS)
def world(
    request: Any, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("model")
    ranks, tied = request.param
    make_model(tokenizer, tied=tied).save_pretrained(folder)
    plan = ServerPlan(folder, tokenizer, "float32", LENGTH, ranks=ranks, threads=1)
    server = VllmServer(plan)
    yield World(plan, server, tied)
    server.close()


@pytest.fixture
def server(world: World) -> VllmServer:
    return world.server


@pytest.fixture
def model(world: World, tokenizer: Any) -> Any:
    return make_model(tokenizer, tied=world.tied)


def stored(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds: a head that shares the embeddings is not there."""
    tied = model.config.tie_word_embeddings
    return (one for one in named(model) if not (tied and one[0] == "lm_head.weight"))


@pytest.fixture
def items(folder: TaskFolder, tokenizer: Any) -> ItemSet:
    letters = {"doc_to_choice": ["A", "B"], "doc_to_target": "{{label % 2}}"}
    letter = worlds.add_choices(folder, "letter", **letters, target_delimiter="", description=LONG)
    requests = [
        TaskRequest(worlds.add_choices(folder, "choices"), MetricName("acc_norm")),
        TaskRequest(letter),
        TaskRequest(worlds.add_last_word(folder, "last"), MetricName("perplexity")),
        TaskRequest(worlds.add_rolling(folder, "rolling"), MetricName("bits_per_byte")),
        TaskRequest(worlds.add_writing(folder, "writing"), MetricName("exact_match", "whole")),
        TaskRequest(
            worlds.add_writing(folder, "on", description=LONG), MetricName("exact_match", "whole")
        ),
    ]
    setting = Setting(include_path=(folder.path,))
    return build_items(requests, setting, tokenizer, max_length=LENGTH)


def test_same_items_same_metrics_under_whatever_weights_came_last(
    server: VllmServer, items: ItemSet, model: Any, tokenizer: Any
) -> None:
    assert any(
        len(query.window.tokens) > 256
        for task in items.tasks
        for query in task.queries[:1]
        if task.name == "letter"
    ), "nothing would be read from the cache of prefixes"
    served, live = ServedScorer(server, tokenizer, items), Scorer(model, tokenizer, items)
    seen = set()
    for seed in (None, 1, 2):
        if seed is not None:
            moved(model, seed)
        server.load(stored(model))
        assert_same(served.respond(), live.respond(), atol=1e-4)
        mine, theirs = served.score(), live.score()
        for task, score in theirs.tasks.items():
            for metric, value in score.metrics.items():
                assert mine.tasks[task].metrics[metric].value == pytest.approx(value.value, 1e-5)
        seen.add(mine.to_json())
    assert len(seen) == 3


def test_a_load_that_breaks_off_is_made_good_by_the_next(
    server: VllmServer, items: ItemSet, model: Any, tokenizer: Any
) -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        stream = stored(moved(model, 5))
        for _ in range(4):
            yield next(stream)
        raise TrialError("the merged tensor holds NaN or infinity")

    with pytest.raises(TrialError, match="NaN or infinity"):
        server.load(broken())
    server.load(stored(moved(model, 6)))
    served = ServedScorer(server, tokenizer, items)
    assert_same(served.respond(), Scorer(model, tokenizer, items).respond(), atol=1e-4)


def test_what_the_model_does_not_take_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model(tokenizer, tied=False)
    model.save_pretrained(tmp_path)
    server = VllmServer(ServerPlan(tmp_path, tokenizer, "float32", LENGTH, threads=1))
    try:
        state = dict(named(model))
        del state["model.layers.1.input_layernorm.weight"]
        with pytest.raises(InputError, match=r"layers\.1\.input_layernorm\.weight .* would stay"):
            server.load(iter(state.items()))
    finally:
        server.close()


def test_a_model_that_vllm_has_no_kernels_for_is_refused_with_its_reason(
    tokenizer: Any, tmp_path: Path
) -> None:
    check_vllm("here", ["LlamaForCausalLM"])
    with pytest.raises(InputError, match="does not know Strange"):
        check_vllm("here", ["Strange"])
    worlds.make_model(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="vLLM cannot run this model"):
        VllmServer(ServerPlan(tmp_path, tokenizer, "float32", 96, threads=1))
