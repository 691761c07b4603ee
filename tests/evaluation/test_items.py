"""Which items are chosen, how they are kept apart, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import XLNetConfig

from evomerge.errors import TaskError
from evomerge.evaluation import (
    ItemSet,
    MetricName,
    Setting,
    TaskRequest,
    build_items,
    context_length,
)
from evomerge.evaluation.choosing import choose, choose_race, proportional
from evomerge.evaluation.spec import Counts
from tests.evaluation import worlds
from tests.evaluation.worlds import TaskFolder

sizes_of_members = st.lists(st.integers(1, 40), min_size=1, max_size=6)

Build = Callable[..., ItemSet]


@pytest.fixture
def build(folder: TaskFolder, tokenizer: Any) -> Build:
    def build_with(requests: list[TaskRequest], **more: Any) -> ItemSet:
        setting = more.pop("setting", Setting(include_path=(folder.path,)))
        return build_items(requests, setting, tokenizer, max_length=96, **more)

    return build_with


def faults_of(build: Callable[[], Any]) -> str:
    with pytest.raises(TaskError) as caught:
        build()
    return str(caught.value)


@given(sizes_of_members, st.data())
def test_shares_are_proportional(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(len(sizes), sum(sizes)))
    counts = proportional(total, sizes)
    assert sum(counts) == total
    for count, size in zip(counts, sizes, strict=True):
        exact = total * size / sum(sizes)
        assert 1 <= count <= size
        # The minimum of 1 for tiny members is taken from the others.
        assert exact - len(sizes) < count < max(exact + 1, 1.01)


@given(sizes_of_members, st.integers(0, 2**40), st.sampled_from(["random", "first"]), st.data())
def test_search_and_held_out_items_are_disjoint_and_fixed(
    members: list[int], seed: int, order: Any, data: st.DataObject
) -> None:
    sizes = {f"task{i}": size + 1 for i, size in enumerate(members)}
    spare = sum(sizes.values()) - len(sizes)
    items = data.draw(st.integers(len(sizes), spare)) if order == "random" else 1
    request = TaskRequest("group", items=items, seed=seed, order=order)
    searched = choose(sizes, request, "search", None)
    assert choose(sizes, request, "search", None) == searched
    left = {name: size - len(searched[name]) for name, size in sizes.items()}
    if min(left.values()) == 0:
        return
    wanted = data.draw(st.none() | st.integers(len(sizes), sum(left.values())))
    held_out = choose(sizes, request, "holdout", wanted)
    assert sum(map(len, held_out.values())) == (wanted or sum(left.values()))
    for name, size in sizes.items():
        both = [*searched[name], *held_out[name]]
        assert len(set(both)) == len(both)
        assert set(both) <= set(range(size))
        assert searched[name] == tuple(sorted(searched[name]))


@given(st.integers(2, 60), st.integers(0, 1000), st.data())
def test_more_items_keep_the_fewer_and_the_held_out_stay(
    size: int, seed: int, data: st.DataObject
) -> None:
    more = data.draw(st.integers(1, size - 1))
    fewer = data.draw(st.integers(1, more))
    held_out = data.draw(st.integers(1, size - more))
    few, many = (TaskRequest("task", items=n, seed=seed) for n in (fewer, more))
    sizes = {"task": size}
    first, second = (set(choose(sizes, request, "search", None)["task"]) for request in (few, many))
    assert first <= second
    assert choose(sizes, few, "holdout", held_out) == choose(sizes, many, "holdout", held_out)


def test_tasks_and_seeds_draw_independently() -> None:
    def drawn(task: str, seed: int) -> tuple[int, ...]:
        return choose({task: 1000}, TaskRequest(task, items=100, seed=seed), "search", None)[task]

    draws = [set(drawn(task, seed)) for task in ("a", "b") for seed in (0, 1)]
    for i, one in enumerate(draws):
        for other in draws[i + 1 :]:
            assert 0 < len(one & other) < 30  # by chance 10 of 100


def test_the_built_items_are_those_that_were_chosen(build: Build, folder: TaskFolder) -> None:
    task = worlds.add_choices(folder, "choices", count=30, seed=5)
    requests = [
        TaskRequest(task, items=12, seed=9),
        TaskRequest(task, MetricName("acc_norm"), 0.5, 12, seed=9),
    ]
    searched, again = build(requests), build(requests)
    held_out = build(requests, part="holdout", holdout_items=10)
    assert searched.samples == again.samples
    assert searched.queries == again.queries
    assert len(searched) == 12
    assert len(held_out) == 10
    assert not set(searched.samples[task]) & set(held_out.samples[task])
    assert searched.requests[1].metric == MetricName("acc_norm", "none")
    assert searched.versions == {task: "1.0"}
    first = build([TaskRequest(task, items=7, order="first")])
    assert first.samples == {task: list(range(7))}
    # As lm-eval's limit: no fault if there are fewer.
    assert len(build([TaskRequest(task, items=700, order="first")])) == 30
    assert len(build([TaskRequest(task)])) == 30


def test_held_out_items_of_another_task(build: Build, folder: TaskFolder) -> None:
    search = worlds.add_choices(folder, "searched", count=5)
    other = worlds.add_choices(folder, "held-out", count=9, seed=1)
    requests = [TaskRequest(search, weight=2.0, holdout_task=other)]
    held_out = build(requests, part="holdout", holdout_items=4)
    assert list(held_out.samples) == [other]
    assert len(held_out) == 4
    assert held_out.requests[0].task == other
    assert held_out.requests[0].weight == 2.0
    assert len(build(requests, part="holdout")) == 9


def test_folders_of_tasks_later_ones_win(tmp_path: Path, tokenizer: Any) -> None:
    folders = []
    for number, count in enumerate((4, 6)):
        path = tmp_path / str(number)
        path.mkdir()
        folders.append(TaskFolder(path))
        worlds.add_choices(folders[-1], "same", count=count)
        worlds.add_choices(folders[-1], f"only{number}", count=3)
    setting = Setting(include_path=tuple(folder.path for folder in folders))
    requests = [TaskRequest(name) for name in ("same", "only0", "only1")]
    items = build_items(requests, setting, tokenizer, max_length=96)
    assert [len(ids) for ids in items.samples.values()] == [6, 3, 3]


def test_every_fault_at_once(build: Build, folder: TaskFolder, tokenizer: Any) -> None:
    task = worlds.add_choices(folder, "colours", count=8)
    written = worlds.add_writing(folder, "writing")
    unsafe = worlds.add_writing(folder, "running", unsafe_code=True)
    folder.write(
        "gone",
        {"task": "gone", "dataset_path": "json", "dataset_kwargs": {"data_files": "no.jsonl"}},
    )
    message = faults_of(
        lambda: build(
            [
                TaskRequest("colors", items=3),
                TaskRequest(task, items=9),
                TaskRequest(written),
                TaskRequest(written, MetricName("exact_match")),
                TaskRequest(unsafe, MetricName("exact_match", "whole"), weight=float("nan")),
                TaskRequest("gone", seed=-1),
            ]
        )
    )
    lines = message.splitlines()
    for expected in (
        "task colors: is no task, group or tag of lm-eval",
        "near names are 'colours'",
        "task colours: items: 9 items, but there are 8 documents; write at most 8",
        "'acc' is not reported; the task reports 'exact_match,whole' and 'exact_match,first-",
        "write 'exact_match,whole' or 'exact_match,first-letter'",
        "task running: runs code that the model writes",
        "task running: weight: nan; write a finite number",
        "task gone: could not be loaded",
        "task gone: seed: -1; write 0 or more",
    ):
        assert any(expected in line for line in lines), (expected, message)
    allowed = Setting(include_path=(folder.path,), confirm_unsafe=True)
    build([TaskRequest(unsafe, MetricName("exact_match", "whole"))], setting=allowed)


def test_too_few_are_left_to_hold_out(build: Build, folder: TaskFolder) -> None:
    task = worlds.add_choices(folder, "choices", count=8)
    for request, holdout_items, expected in (
        (TaskRequest(task), None, "the search takes all 8 documents"),
        (TaskRequest(task, items=6), 3, "held-out items: 3, but the search leaves 2"),
        (TaskRequest(task, items=0), None, "write at least 1"),
        (TaskRequest(task, holdout_task="choices2"), None, "is no task"),
    ):
        message = faults_of(
            lambda r=request, h=holdout_items: build([r], part="holdout", holdout_items=h)
        )
        assert expected in message


def test_requests_that_contradict_each_other(build: Build, folder: TaskFolder) -> None:
    one = worlds.add_choices(folder, "one", count=4)
    two = worlds.add_choices(folder, "two", count=4)
    folder.write("both", {"group": "both", "task": [one, two]})
    for requests, expected in (
        ([TaskRequest(one), TaskRequest(one, items=2)], "asked for twice"),
        ([TaskRequest("both"), TaskRequest(two)], "by 'both' and by 'two'"),
        ([TaskRequest(one, holdout_task=two), TaskRequest(two)], "is itself searched on"),
        ([TaskRequest("both", items=1)], "1 items for 2 member tasks"),
        ([], "at least one"),
    ):
        assert expected in faults_of(lambda r=requests: build(r))


def test_a_setting_that_cannot_be(folder: TaskFolder, tmp_path: Path) -> None:
    task = worlds.add_choices(folder, "choices")
    plain = worlds.make_tokenizer()
    plain.chat_template = None
    setting = Setting(apply_chat_template=True, include_path=(folder.path, tmp_path / "none"))
    message = faults_of(lambda: build_items([TaskRequest(task)], setting, plain, max_length=96))
    assert "no chat template" in message
    assert "is no folder" in message
    nameless = worlds.make_tokenizer()
    nameless.bos_token = nameless.eos_token = None
    setting = Setting(include_path=(folder.path,))
    message = faults_of(lambda: build_items([TaskRequest(task)], setting, nameless, max_length=96))
    assert "neither a bos nor an eos token" in message


def test_a_model_that_says_no_length_is_told() -> None:
    message = faults_of(lambda: context_length(XLNetConfig()))
    assert "type xlnet: the longest input is -1 tokens" in message
    assert "max_position_embeddings, 1 or more" in message


def test_a_brier_score_of_differing_numbers_of_choices_is_told(
    build: Build, folder: TaskFolder
) -> None:
    """lm-eval itself fails only once all documents are scored."""
    task = worlds.add_choices(folder, "uneven", metric_list=[{"metric": "brier_score"}])
    message = faults_of(lambda: build([TaskRequest(task, MetricName("brier_score"))]))
    assert "task uneven: reports brier_score" in message
    assert "2 to 4" in message


def test_texts_that_do_not_fit_name_the_document(build: Build, folder: TaskFolder) -> None:
    empty = worlds.add_last_word(folder, "empty")
    file = folder.path / "empty.yaml"
    file.write_text(file.read_text().replace("'{{last}}'", "'{{last[:0]}}'"))
    greedy = worlds.add_writing(folder, "greedy", generation_kwargs={"max_gen_toks": 500})
    beams = worlds.add_writing(folder, "beams", generation_kwargs={"num_beams": 2})
    message = faults_of(
        lambda: build(
            [
                TaskRequest(empty),
                TaskRequest(greedy, MetricName("exact_match", "whole")),
                TaskRequest(beams, MetricName("exact_match", "whole")),
            ]
        )
    )
    assert "task empty: document 0: the continuation to score is empty" in message
    assert "task greedy: document 0: up to 500 tokens are to be generated" in message
    assert "task beams: document 0: beam search" in message


def test_notes_say_what_is_no_fault(build: Build, folder: TaskFolder) -> None:
    own = worlds.add_choices(folder, "own", fewshot_split="test", num_fewshot=2)
    apart = worlds.add_choices(folder, "apart", training_split="train", num_fewshot=2)
    fixed = worlds.add_choices(folder, "fixed", num_fewshot=0, tag="some")
    assert build([TaskRequest(apart)]).notes == ()
    own_notes = build([TaskRequest(own)]).notes
    assert len(own_notes) == 1
    assert "draws its examples from the documents that are scored" in own_notes[0]
    assert "shows no examples" in build([TaskRequest(fixed, num_fewshot=3)]).notes[0]
    assert build([TaskRequest("some")]).notes == (
        "task some: scored as the plain mean of its tasks",
    )


def test_all_items_leave_those_that_are_held_out() -> None:
    sizes = {"a": 30, "b": 10}
    request = TaskRequest("group")
    searched, held_out = (choose(sizes, request, part, 8) for part in ("search", "holdout"))
    for name, size in sizes.items():
        assert sorted(searched[name] + held_out[name]) == list(range(size))
    assert sum(map(len, held_out.values())) == 8
    with pytest.raises(TaskError, match="40 held-out items leave 0 of 40 documents"):
        choose(sizes, request, "search", 40)
    assert choose(sizes, TaskRequest("group", holdout_task="other"), "search", 8) == {
        "a": tuple(range(30)),
        "b": tuple(range(10)),
    }


def test_every_metric_needs_no_metric_that_is_reported(build: Build, folder: TaskFolder) -> None:
    task = worlds.add_choices(folder, "choices", count=8)
    request = TaskRequest(task, MetricName("no_such_metric"), items=3)
    assert "no_such_metric" in faults_of(lambda: build([request]))
    assert len(build([request], every_metric=True)) == 3


@given(st.integers(0, 2**16), st.data())
def test_race_items_are_of_neither_other_part(seed: int, data: st.DataObject) -> None:
    sizes = data.draw(
        st.dictionaries(st.sampled_from("abcd"), st.integers(3, 40), min_size=1, max_size=4)
    )
    order = data.draw(st.sampled_from(("random", "first")))
    items = data.draw(st.integers(len(sizes), sum(sizes.values())))
    request = TaskRequest("task", items=items, order=order, seed=seed)
    searched = choose(sizes, request, "search", None)
    left = min(size - len(searched[name]) for name, size in sizes.items())
    rest = sum(sizes.values()) - sum(map(len, searched.values()))
    held = data.draw(st.integers(len(sizes), rest)) if left else len(sizes)
    rounds = [choose_race(sizes, request, Counts(held, None, (i, 3))) for i in range(3)]
    whole = choose_race(sizes, request, Counts(held))
    held_out = choose(sizes, request, "holdout", held) if left else {}
    for name, ids in whole.items():
        taken = {*searched[name], *held_out.get(name, ())}
        assert ids == tuple(sorted(set(ids)))
        assert set(ids) <= set(range(sizes[name])) - taken
        parts = [one[name] for one in rounds]
        assert sorted(sum(parts, ())) == list(ids)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sum(map(len, whole.values())) <= max(sum(map(len, searched.values())), len(sizes))


def test_race_items_where_others_are_held_out_and_where_there_are_too_few() -> None:
    elsewhere = TaskRequest("task", items=20, holdout_task="other", seed=1)
    raced = choose_race({"task": 30}, elsewhere, Counts(1000))["task"]
    searched = choose({"task": 30}, elsewhere, "search", 1000)["task"]
    assert sorted((*raced, *searched)) == list(range(30)), "all that is left, of this split"
    apart = choose_race({"task": 30}, TaskRequest("task", items=20), Counts(5), {"task": 9})
    assert len(apart["task"]) == 10, "another split's items are held out"
    assert choose_race({"task": 30}, TaskRequest("task", items=20), Counts()) == {}
    chosen = TaskRequest(
        "task", items=3, order="balanced", chosen=(("task", (1, 4, 7)),), holdout_task="other"
    )
    assert not {1, 4, 7} & set(choose_race({"task": 9}, chosen, Counts(5))["task"])
    with pytest.raises(TaskError, match=r"race items: 11, but .* write 1 to 10"):
        choose_race({"task": 30}, elsewhere, Counts(1000, 11))


def test_built_race_items_and_a_task_without(build: Build, folder: TaskFolder) -> None:
    one = worlds.add_choices(folder, "choices", count=30, seed=5)
    two = worlds.add_choices(folder, "choices2", count=12, seed=6)
    requests = [TaskRequest(one, items=12, seed=9), TaskRequest(two, items=6, seed=9)]
    options = {"part": "race", "holdout_items": 6}
    items = build(requests, **options)
    assert {name: len(ids) for name, ids in items.samples.items()} == {one: 12}
    assert [request.task for request in items.requests] == [one], "nothing is left of the other"
    held_out = build(requests, part="holdout", holdout_items=6).samples[one]
    assert not set(items.samples[one]) & {*build(requests).samples[one], *held_out}
    assert len(build(requests, race_round=(1, 4), **options)) == 3


def test_which_metrics_are_known_to_be_shares(build: Build, folder: TaskFolder) -> None:
    """Means of right or wrong by lm-eval's own code; nothing that a task computes itself."""
    (folder.path / "own.py").write_text(
        "def exact_match(references, predictions, **_):\n    return 100.0\n\n"
        "def judge(doc, results):\n    return {'acc': 60.0}\n"
    )
    worlds.add_writing(folder, "stock")
    worlds.add_writing(folder, "percent", metric_list=worlds.metrics("PERCENT"))
    percent = folder.path / "percent.yaml"
    percent.write_text(percent.read_text().replace("PERCENT", "!function own.exact_match"))
    worlds.add_writing(folder, "own", metric_list=worlds.metrics("acc"))
    own = folder.path / "own.yaml"
    own.write_text(own.read_text() + "process_results: !function own.judge\n")
    worlds.add_last_word(folder, "word")
    worlds.add_rolling(folder, "texts")
    expected = {
        TaskRequest("stock", MetricName("exact_match", "whole")): True,
        TaskRequest("percent", MetricName("exact_match", "whole")): False,
        TaskRequest("own", MetricName("acc", "whole")): False,
        TaskRequest("word", MetricName("acc")): True,
        TaskRequest("word", MetricName("perplexity")): False,
        TaskRequest("word", MetricName("gold_loglikelihood")): False,
        TaskRequest("texts", MetricName("bits_per_byte")): False,
    }
    items = build(list(expected))
    assert [items.is_share(request) for request in items.requests] == list(expected.values())
