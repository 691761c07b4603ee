"""The vLLM backend against a stand-in for vLLM: what is asked, what is loaded, what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError, TaskError, TrialError
from evomerge.evaluation import ItemSet, MetricName, Scorer, Setting, TaskRequest, build_items
from evomerge.evaluation.serving.pieces import pieces, shared
from evomerge.evaluation.serving.serving import ServedScorer
from evomerge.evaluation.serving.vllm_server import ServerPlan, VllmServer
from evomerge.evaluation.serving.vllm_support import check_vllm
from tests.evaluation import stand_in, worlds
from tests.evaluation.worlds import TaskFolder

LENGTH = 96


@pytest.fixture
def llms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[stand_in.LLM]:
    return stand_in.install(monkeypatch, tmp_path / "site")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("model")
    worlds.make_model(tokenizer, length=LENGTH).save_pretrained(folder)
    return folder


@pytest.fixture
def server(llms: Any, stored: Path, tokenizer: Any) -> Iterator[VllmServer]:
    running = VllmServer(ServerPlan(stored, tokenizer, "float32", LENGTH))
    yield running
    running.close()


def items_of(folder: TaskFolder, tokenizer: Any, *requests: TaskRequest) -> ItemSet:
    return build_items(requests, Setting(include_path=(folder.path,)), tokenizer, max_length=LENGTH)


@pytest.fixture
def items(folder: TaskFolder, tokenizer: Any) -> ItemSet:
    """Choices of several tokens and of one, perplexities, texts of several windows, writing."""
    exact = MetricName("exact_match", "whole")
    return items_of(
        folder,
        tokenizer,
        TaskRequest(worlds.add_choices(folder, "choices", count=8), MetricName("acc_norm")),
        TaskRequest(worlds.add_one_letter(folder, "letter"), items=4),
        TaskRequest(worlds.add_last_word(folder, "last", count=6), MetricName("perplexity")),
        TaskRequest(worlds.add_rolling(folder, "rolling", count=3), MetricName("bits_per_byte")),
        TaskRequest(worlds.add_writing(folder, "writing", count=6), exact),
    )


def named(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.state_dict().items()


def assert_same(mine: list[list[Any]], theirs: list[list[Any]], atol: float) -> None:
    for one, other in zip(mine, theirs, strict=True):
        for answer, wanted in zip(one, other, strict=True):
            if isinstance(wanted, str):
                assert answer == wanted
            else:
                np.testing.assert_allclose(answer, wanted, atol=atol, rtol=1e-6)


def moved(model: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_answers_are_a_live_model_s_for_whatever_weights_came_last(
    server: VllmServer, items: ItemSet, model: Any, tokenizer: Any
) -> None:
    """Asked again after each load: what was cached under the weights before would show."""
    served, live = ServedScorer(server, tokenizer, items), Scorer(model, tokenizer, items)
    before = None
    for seed in (None, 1):
        if seed is not None:
            moved(model, seed)
        server.load(named(model))
        assert_same(served.respond(), live.respond(), atol=1e-4)
        mine, theirs = served.score(), live.score()
        for task, score in theirs.tasks.items():
            for metric, value in score.metrics.items():
                assert mine.tasks[task].metrics[metric].value == pytest.approx(value.value, 1e-5)
        assert mine.to_json() != before
        before = mine.to_json()


def test_what_a_token_follows_is_asked_once(
    llms: Any, server: VllmServer, folder: TaskFolder, tokenizer: Any, model: Any, monkeypatch: Any
) -> None:
    """Two one-token choices of each question are one request, which scores no prompt token."""
    letters = {"doc_to_choice": ["A", "B"], "doc_to_target": "{{label % 2}}"}
    task = worlds.add_choices(folder, "letters", **letters, target_delimiter="")
    items = items_of(folder, tokenizer, TaskRequest(task))
    served = ServedScorer(server, tokenizer, items)
    server.load(named(model))
    asked: list[Any] = []
    generate = llms.generate

    def counted(self: Any, prompts: Any, params: Any, **options: Any) -> Any:
        asked.extend(params)
        return generate(self, prompts, params, **options)

    monkeypatch.setattr(llms, "generate", counted)
    served.score()
    assert len(asked) == len(items) == len(items.queries) / 2
    assert all(one.prompt_logprobs is None and len(one.logprob_token_ids) == 2 for one in asked)


def test_a_load_that_breaks_off_is_made_good_by_the_next(
    llms: Any, server: VllmServer, items: ItemSet, model: Any, tokenizer: Any
) -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(named(model))
        raise TrialError("the merged tensor holds NaN or infinity")

    with pytest.raises(TrialError, match="NaN or infinity"):
        server.load(broken())
    assert llms.started[-1].updates[-1] == {"abandoned": True}
    server.load(named(model))
    served = ServedScorer(server, tokenizer, items)
    assert_same(served.respond(), Scorer(model, tokenizer, items).respond(), atol=1e-4)


def test_tensors_that_do_not_fill_the_running_model_are_refused(
    server: VllmServer, model: Any
) -> None:
    state = dict(named(model))
    state["model.stranger.weight"] = state.pop("model.norm.weight")
    with pytest.raises(InputError) as caught:
        server.load(iter(state.items()))
    assert [fault.problem for fault in caught.value.faults] == [
        "the model in vLLM does not take model.stranger.weight",
        "model.norm.weight of the model in vLLM would stay as it is",
    ]


def test_logits_that_are_no_numbers_fail_the_trial_and_name_the_task(
    server: VllmServer, model: Any, tokenizer: Any, folder: TaskFolder, items: ItemSet
) -> None:
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    server.load(named(model))
    with pytest.raises(TrialError, match=r"task choices: .*NaN"):
        ServedScorer(server, tokenizer, items).score()
    writing = items_of(
        folder, tokenizer, TaskRequest("writing", MetricName("exact_match", "whole"))
    )
    with pytest.raises(TrialError, match=r"task writing: .*NaN"):
        ServedScorer(server, tokenizer, writing).score()


def test_sampled_texts_differ_and_come_again(
    server: VllmServer, model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    options = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 8, "until": []}
    task = worlds.add_writing(folder, "sampled", repeats=3, generation_kwargs=options)
    request = TaskRequest(task, MetricName("exact_match", "whole"), items=4)
    served = ServedScorer(server, tokenizer, items_of(folder, tokenizer, request))
    server.load(named(model))
    answers = served.respond()
    assert all(len(given) == 3 for given in answers)
    assert any(len(set(given)) > 1 for given in answers)
    assert served.respond() == answers


def test_ways_of_generating_that_vllm_does_not_know_are_refused(
    server: VllmServer, tokenizer: Any, folder: TaskFolder
) -> None:
    options = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False, "penalty_alpha": 0.6}
    task = worlds.add_writing(folder, "odd", generation_kwargs=options)
    items = items_of(folder, tokenizer, TaskRequest(task, MetricName("exact_match", "whole")))
    with pytest.raises(TaskError, match=r"task odd: .*'penalty_alpha' is not known .*top_p"):
        ServedScorer(server, tokenizer, items)


def test_vllm_that_cannot_start_tells_its_reason(
    llms: Any, stored: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise RuntimeError("Unsupported CPU attention configuration: head_dim=8")

    monkeypatch.setattr(llms, "generate", generate)
    with pytest.raises(InputError, match=r"cannot run this model: Unsupported CPU .*head_dim=8"):
        VllmServer(ServerPlan(stored, tokenizer, "float32", LENGTH))


def test_models_that_vllm_does_not_know_are_refused(llms: Any) -> None:
    check_vllm("here", ["LlamaForCausalLM"])
    with pytest.raises(InputError, match=r"here: 'vllm' is refused: .*does not know Strange; use"):
        check_vllm("here", ["Strange"])


def test_vllm_that_cannot_be_imported_is_refused_with_the_reason(llms: Any, tmp_path: Path) -> None:
    (tmp_path / "site" / "vllm.py").write_text("raise RuntimeError('torchvision::nms is missing')")
    with pytest.raises(InputError, match=r"cannot be imported: RuntimeError: torchvision::nms"):
        check_vllm("here", ["LlamaForCausalLM"])


def test_releases_of_vllm_that_were_not_tried_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in.install(monkeypatch, tmp_path / "site", release="0.11.2")
    with pytest.raises(InputError, match=r"vllm 0\.11\.2 is installed; >=0\.32,<0\.33 is needed"):
        check_vllm("here")


SIZES = st.lists(st.integers(0, 40), max_size=12)


@given(sizes=SIZES, most=st.integers(1, 100))
def test_pieces_keep_the_order_and_the_bound(sizes: list[int], most: int) -> None:
    tensors = [(str(n), torch.full((size,), n, dtype=torch.uint8)) for n, size in enumerate(sizes)]
    cut = list(pieces(iter(tensors), most))
    assert [one for piece in cut for one in piece] == tensors
    assert all(sum(t.nbytes for _, t in piece) <= most or len(piece) == 1 for piece in cut)
    for piece, following in itertools.pairwise(cut):
        assert sum(t.nbytes for _, t in piece) + following[0][1].nbytes > most


def test_a_piece_is_shared_bit_for_bit_and_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(4, 6).half().T,
        "whole": torch.arange(9),
    }
    with shared(tensors.items()) as told:
        path = Path(told["path"])
        held = torch.from_file(told["path"], True, told["size"], dtype=torch.uint8)
    assert not path.exists()
    for name, kind, shape, start in told["tensors"]:
        dtype = getattr(torch, kind)
        nbytes = tensors[name].numel() * dtype.itemsize
        found = held[start : start + nbytes].view(dtype).view(shape)
        assert torch.equal(found, tensors[name])
        assert found.dtype == tensors[name].dtype
