"""Search items from another split than the one that a task is evaluated on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, reject
from hypothesis import strategies as st

from evomerge.errors import TaskError
from evomerge.evaluation import ItemSet, MetricName, Scorer, TaskRequest, build_items
from evomerge.evaluation.choosing import choose
from tests.evaluation import shipped, worlds
from tests.evaluation.test_equality import check_answers, check_equal
from tests.evaluation.worlds import TaskFolder, make_model

LENGTH = 2048


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return make_model(tokenizer, length=LENGTH)


@pytest.fixture(autouse=True)
def at_the_hub(hub: shipped.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", hub.path / "cache")


def built(tokenizer: Any, *requests: TaskRequest, own: Path | None = None, **more: Any) -> ItemSet:
    setting = shipped.setting(() if own is None else (own,))
    return build_items(requests, setting, tokenizer, max_length=LENGTH, **more)


def refusal(tokenizer: Any, *requests: TaskRequest, own: Path | None = None, **more: Any) -> str:
    with pytest.raises(TaskError) as caught:
        built(tokenizer, *requests, own=own, **more)
    return str(caught.value)


REPLACED: dict[str, tuple[str, Any, dict[str, str]]] = {
    "arc_challenge": ("arc/arc_challenge", "auto", {"test_split": "validation"}),
    # Where the examples come from the documents that are asked, theirs has to say so.
    "arc_easy": ("arc/arc_easy", "train", {"test_split": "train", "fewshot_split": "train"}),
    "hellaswag": ("hellaswag/hellaswag", "auto", {"test_split": "train", "fewshot_split": "train"}),
    "winogrande": (
        "winogrande/default",
        "train",
        {"test_split": "train", "fewshot_split": "train"},
    ),
    "gsm8k": ("gsm8k/gsm8k", "train", {"test_split": "train"}),
    "mmlu_sociology": (
        "mmlu/default/mmlu_sociology",
        "validation",
        {"test_split": "validation"},
    ),
    "lambada_openai": ("lambada/lambada_openai", "test", {}),
    "piqa": ("piqa/piqa", "evaluation", {}),
}
"""Task → its definition, the split that is asked for, and how lm-eval is told so."""


def test_the_numbers_are_those_of_definitions_with_their_splits_replaced(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    requests = []
    for task, (definition, split, replaced) in REPLACED.items():
        include = str(shipped.SHIPPED / f"{definition}.yaml")
        theirs = {"include": include, "task": task, **replaced}
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(theirs))
        metric = "exact_match,strict-match" if task == "gsm8k" else "acc"
        requests.append(TaskRequest(task, MetricName.parse(metric), num_fewshot=2, split=split))
    items = built(tokenizer, *requests)
    scorer = Scorer(model, tokenizer, items)
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=8)
    results = shipped.evaluated(lm, items, list(REPLACED), (tmp_path,), num_fewshot=2)
    check_equal(scorer.score(), results)
    check_answers(scorer, results, items.samples)
    kept = {"lambada_openai": "test", "piqa": "validation"}
    assert items.splits == {
        task: replaced.get("test_split", kept.get(task))
        for task, (_, _, replaced) in REPLACED.items()
    }


def prompts_and_questions(items: ItemSet) -> list[tuple[str, str]]:
    instances = (instance for task in items.tasks for instance in task.task.instances)
    return [(instance.args[0], instance.doc["question"]) for instance in instances]


def test_no_item_is_an_example_before_itself(tokenizer: Any) -> None:
    # With 5 of 6 documents as examples, an item would hardly miss itself by chance.
    request = TaskRequest("arc_easy", num_fewshot=5, split="train")
    asked = prompts_and_questions(built(tokenizer, request))
    assert len(asked) >= 18
    for prompt, question in asked:
        assert prompt.count("Question:") == 6
        assert prompt.count(question) == 1


def test_held_out_items_are_those_that_lm_eval_evaluates_on(tokenizer: Any) -> None:
    def drawn(split: Any, part: Any = "search") -> ItemSet:
        request = TaskRequest("arc_easy", items=4, split=split)
        return built(tokenizer, request, part=part, holdout_items=3)

    searched = {split: drawn(split) for split in ("auto", "validation", "train", "evaluation")}
    assert [items.splits["arc_easy"] for items in searched.values()] == [
        *("validation", "validation", "train", "test")
    ]
    assert len({items.digest() for items in searched.values()}) == 3
    assert searched["auto"].digest() == searched["validation"].digest()
    held_out = [drawn(split, "holdout") for split in searched]
    assert {items.splits["arc_easy"] for items in held_out} == {"test"}
    assert len({items.digest() for items in held_out}) == 1, "the same ones, for comparison"
    assert not set(held_out[0].samples["arc_easy"]) & set(
        searched["evaluation"].samples["arc_easy"]
    )


def test_all_documents_of_another_split_and_all_that_are_evaluated(tokenizer: Any) -> None:
    # Each of the tag's tasks has 7 validation and 8 test documents.
    request = TaskRequest("ai2_arc", split="auto")
    assert len(built(tokenizer, request, holdout_items=5)) == 14
    assert len(built(tokenizer, request, part="holdout")) == 16
    few = built(tokenizer, request, part="holdout", holdout_items=6).samples
    assert {name: len(ids) for name, ids in few.items()} == {"arc_easy": 3, "arc_challenge": 3}


def test_a_named_holdout_task_leaves_the_task_itself_to_the_search(tokenizer: Any) -> None:
    request = TaskRequest("arc_easy", split="auto", holdout_task="arc_challenge")
    assert built(tokenizer, request).splits == {"arc_easy": "test"}
    held_out = built(tokenizer, request, part="holdout")
    assert held_out.splits == {"arc_challenge": "test"}
    assert len(held_out) == 8


def test_a_group_over_several_splits_is_stratified(tokenizer: Any, folder: TaskFolder) -> None:
    """Two levels of groups; one member has no documents but those that are evaluated."""
    folder.write("inner", {"group": "inner", "task": ["hellaswag", "lambada_openai"]})
    folder.write("outer", {"group": "outer", "task": ["inner", "arc_easy"]})

    def counts(part: Any, items: int | None = None) -> dict[str, int]:
        request = TaskRequest("outer", items=items, split="auto")
        found = built(tokenizer, request, own=folder.path, part=part, holdout_items=6)
        return {name: len(ids) for name, ids in found.samples.items()}

    request = TaskRequest("outer", items=7, split="auto")
    items = built(tokenizer, request, own=folder.path)
    assert items.splits == {
        "hellaswag": "train",
        "lambada_openai": "test",
        "arc_easy": "validation",
    }
    # In proportion to 6, 8 and 7 documents; 7, 8 - 3 and 8 are left.
    assert counts("search", 7) == {"hellaswag": 2, "lambada_openai": 3, "arc_easy": 2}
    assert counts("holdout", 7) == {"hellaswag": 2, "lambada_openai": 2, "arc_easy": 2}
    # All of the others' splits; of lambada's 8 as many as its share of the 6 held-out ones leaves.
    assert counts("search") == {"hellaswag": 6, "lambada_openai": 5, "arc_easy": 7}
    both = [
        built(tokenizer, TaskRequest("outer", split="auto"), own=folder.path, part=part,
              holdout_items=6)
        for part in ("search", "holdout")
    ]  # fmt: skip
    searched, held_out = (set(items.samples["lambada_openai"]) for items in both)
    assert not searched & held_out


sizes_of_members = st.lists(st.tuples(st.integers(2, 30), st.none() | st.integers(2, 30)),
                            min_size=1, max_size=5)  # fmt: skip


@given(sizes_of_members, st.integers(0, 2**40), st.sampled_from(["random", "first"]), st.data())
def test_parts_are_disjoint_whatever_the_splits(
    members: list[tuple[int, int | None]], seed: int, order: Any, data: st.DataObject
) -> None:
    sizes = {f"task{i}": size for i, (size, _) in enumerate(members)}
    apart = {f"task{i}": other for i, (_, other) in enumerate(members) if other is not None}
    items = data.draw(st.none() | st.integers(len(sizes), sum(sizes.values())))
    wanted = data.draw(st.integers(len(sizes), 2 * len(sizes)))
    request = TaskRequest("group", items=items, seed=seed, order=order)
    try:
        searched = choose(sizes, request, "search", wanted, apart)
        held_out = choose(sizes, request, "holdout", wanted, apart)
    except TaskError:
        # Documents that both parts share may be too few; those of two splits never are.
        if len(apart) == len(sizes):
            raise
        reject()
    assert sum(map(len, held_out.values())) == wanted
    for name in sizes:
        assert searched[name]
        assert set(searched[name]) <= set(range(sizes[name]))
        assert set(held_out[name]) <= set(range(apart.get(name, sizes[name])))
        assert len(set(held_out[name])) == len(held_out[name])
        if name not in apart:
            assert not set(searched[name]) & set(held_out[name])
    alone = {name: choose({name: size}, TaskRequest(name, items=1, seed=seed), "holdout", 1)[name]
             for name, size in apart.items()}  # fmt: skip
    for name, (last,) in alone.items():
        assert last in held_out[name], "as if the search were on the same split"


def test_searching_on_a_benchmark_s_own_documents_is_told(
    tokenizer: Any, folder: TaskFolder
) -> None:
    def notes(task: str, **more: Any) -> tuple[str, ...]:
        request = TaskRequest(task, MetricName(more.pop("metric", "acc")), **more)
        return built(tokenizer, request, own=folder.path).notes

    assert notes("arc_easy", split="auto") == ()
    (chosen,) = notes("arc_easy", split="evaluation")
    assert chosen.startswith(
        "task arc_easy: is searched on the documents ('test') that this public"
    )
    assert chosen.endswith("write split: validation or train")
    (only,) = notes("lambada_openai", split="auto")
    assert "('test')" in only
    assert only.endswith("it has no others, so go by the held-out items alone")
    # Of a tag's tasks one sentence; the other is that it has no mean of its own.
    tag, _ = notes("ai2_arc", split="evaluation")
    assert tag.startswith("task ai2_arc: is searched on the documents ('test')")
    # Its data have documents that lm-eval's definition does not name.
    (subject,) = notes("mmlu_sociology", split="auto")
    assert subject.endswith("write split: validation")
    assert notes("mmlu_sociology", split="validation") == ()
    (trained,) = notes("hellaswag", split="auto")
    assert "hellaswag: is searched on its training documents ('train')" in trained
    # Nobody else's benchmark.
    own = worlds.add_choices(folder, "mine")
    assert notes(own, split="auto") == ()
    # A model's scores on their own are no search.
    request = TaskRequest("lambada_openai")
    assert built(tokenizer, request, every_metric=True).notes == ()


def test_what_cannot_be_searched_on(tokenizer: Any, folder: TaskFolder) -> None:
    lacking = refusal(
        tokenizer,
        TaskRequest("lambada_openai", split="validation"),
        TaskRequest("hellaswag", split="test"),
        TaskRequest("arc_easy", items=9, split="auto"),
    )
    for expected in (
        "task lambada_openai: split: 'validation', but the task has none; write 'evaluation'",
        "hellaswag: split: 'test', but the task has none; write 'validation', 'train' or 'evalu",
        "task arc_easy: items: 9 items, but there are 7 documents; write at most 7, or another "
        "split: train (6 documents) or evaluation (8 documents)",
    ):
        assert expected in lacking, lacking


def test_examples_in_another_form_are_never_of_the_asked_documents(
    tokenizer: Any, folder: TaskFolder
) -> None:
    """lm-eval compares documents to leave the asked one out: changed ones it cannot tell."""
    (folder.path / "own.py").write_text(
        "def shout(docs):\n    return docs.map(lambda doc: {'question': doc['question'].upper()})\n"
    )
    task = worlds.add_choices(folder, "loud", training_split="train", fewshot_split="train")
    file = folder.path / f"{task}.yaml"
    examples = "fewshot_config:\n  process_docs: !function own.shout\n"
    file.write_text(file.read_text() + examples)
    one = TaskRequest(task, num_fewshot=1, split="auto", items=3)
    assert built(tokenizer, one, own=folder.path).splits == {task: "test"}
    message = refusal(tokenizer, TaskRequest(task, num_fewshot=1, split="train"), own=folder.path)
    assert "'train', but its examples come from there in another form" in message
    none = TaskRequest(task, num_fewshot=0, split="auto", items=3)
    assert built(tokenizer, none, own=folder.path).splits == {task: "train"}


def test_documents_that_the_task_s_code_cannot_read(tokenizer: Any, folder: TaskFolder) -> None:
    (folder.path / "own.py").write_text(
        "def of_test(docs):\n    assert len(docs) != 30, 'not these'\n    return docs\n"
    )
    # The examples are written down: else lm-eval itself reads the training documents at once.
    samples = [{"question": "who", "choices": ["king", "fish"], "label": 0}]
    task = worlds.add_choices(
        folder, "picky", training_split="train", fewshot_config={"samples": samples}
    )
    file = folder.path / f"{task}.yaml"
    file.write_text(file.read_text() + "process_docs: !function own.of_test\n")
    assert len(built(tokenizer, TaskRequest(task, num_fewshot=1), own=folder.path)) == 24
    message = refusal(tokenizer, TaskRequest(task, split="auto"), own=folder.path)
    assert "task picky: split: the documents of 'train' cannot be read: AssertionError" in message
    assert "write split: evaluation" in message
