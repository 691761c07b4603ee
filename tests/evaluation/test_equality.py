"""A score is lm-eval's score: ours against ``simple_evaluate`` on the same model and items."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.evaluation import ItemSet, MetricName, Scorer, Setting, TaskRequest, build_items
from evomerge.evaluation.scores import Scores
from tests.evaluation import worlds
from tests.evaluation.worlds import TaskFolder, make_model, make_tokenizer

LENGTH = 96
OF_LIKELIHOODS = ("perplexity", "weighted_perplexity", "bits_per_byte", "brier_score")
PROBABILITIES = ("truthfulqa_mc2",)
"""Tasks whose metrics are no counts, but probabilities."""


def reference(
    model: Any,
    tokenizer: Any,
    folder: TaskFolder,
    items: ItemSet,
    names: list[str],
    *,
    batch_size: int = 1,
    logits_cache: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """``simple_evaluate`` itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            logits_cache=logits_cache,
        ),
        tasks=names,
        samples=items.samples,
        task_manager=TaskManager(include_path=str(folder.path), include_defaults=False),
        bootstrap_iters=options.pop("bootstrap_iters", 2),
        **options,
    )
    assert results is not None
    return dict(results)


def check_equal(scores: Scores, results: dict[str, Any]) -> None:
    """Every number that lm-eval reports is ours too."""
    for task, theirs in results["results"].items():
        reported = {
            key: value for key, value in theirs.items() if "," in key and "_stderr" not in key
        }
        assert reported
        for key, value in reported.items():
            name = MetricName.parse(key)
            mine = scores.tasks[task].metrics[name]
            continuous = mine.aggregation in OF_LIKELIHOODS or task in PROBABILITIES
            tolerance = 1e-5 if continuous else 0.0
            assert mine.value == pytest.approx(value, rel=tolerance, abs=1e-12), (task, key)
            stderr = theirs[f"{name.name}_stderr,{name.filter}"]
            if stderr != "N/A" and mine.stderr is not None:
                assert mine.stderr == pytest.approx(stderr, rel=1e-4)


def check_answers(scorer: Scorer, results: dict[str, Any], samples: dict[str, list[int]]) -> None:
    """Every log-likelihood within 1e-4, every greedy flag and every text the same."""
    answers = iter(scorer.respond())
    for task in scorer.items.tasks:
        logged = results["samples"][task.name]
        first_filter = [sample for sample in logged if sample["filter"] == logged[0]["filter"]]
        assert [sample["doc_id"] for sample in first_filter] == samples[task.name]
        theirs = [resps for sample in first_filter for resps in sample["resps"]]
        assert len(theirs) == len(task.queries)
        for expected in theirs:
            mine = next(answers)
            assert len(mine) == len(expected)
            for got, want in zip(mine, expected, strict=True):
                if isinstance(want, str):
                    assert got == want
                else:
                    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def run_both(
    model: Any,
    tokenizer: Any,
    folder: TaskFolder,
    requests: list[TaskRequest],
    setting: Setting | None = None,
    *,
    batch_tokens: int = 300,
    **options: Any,
) -> tuple[Scores, dict[str, Any]]:
    setting = setting or Setting(include_path=(folder.path,))
    items = build_items(requests, setting, tokenizer, max_length=LENGTH)
    scorer = Scorer(model, tokenizer, items, batch_tokens=batch_tokens)
    scores = scorer.score()
    names = list(dict.fromkeys(request.task for request in requests))
    results = reference(model, tokenizer, folder, items, names, **options)
    check_equal(scores, results)
    check_answers(scorer, results, items.samples)
    return scores, results


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(
    ("add", "metric"),
    [
        (worlds.add_choices, "acc_norm"),
        (worlds.add_one_letter, "acc"),
        (worlds.add_last_word, "perplexity"),
        (worlds.add_rolling, "bits_per_byte"),
        (worlds.add_writing, "exact_match,first-letter"),
    ],
)
def test_every_kind_of_request(
    folder: TaskFolder, add: worlds.Adder, metric: str, adds_bos: bool
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    model = make_model(tokenizer)
    task = add(folder, "plain")
    scores, _ = run_both(
        model,
        tokenizer,
        folder,
        [TaskRequest(task, MetricName.parse(metric), items=7)],
    )
    assert len(scores.tasks[task].doc_ids) == 7


@pytest.mark.parametrize("batch_tokens", [1, 150, 4096])
def test_batches_do_not_matter(
    model: Any, tokenizer: Any, folder: TaskFolder, batch_tokens: int
) -> None:
    requests = [
        TaskRequest(worlds.add_choices(folder, "choices")),
        TaskRequest(worlds.add_writing(folder, "writing"), MetricName("exact_match", "whole")),
    ]
    run_both(model, tokenizer, folder, requests, batch_tokens=batch_tokens)


def test_lm_eval_in_batches(model: Any, tokenizer: Any, folder: TaskFolder) -> None:
    task = worlds.add_writing(folder, "writing")
    run_both(
        model,
        tokenizer,
        folder,
        [TaskRequest(task, MetricName("exact_match", "whole"))],
        batch_size=5,
    )


def test_one_text_cut_at_two_places(model: Any, tokenizer: Any, folder: TaskFolder) -> None:
    """Both items read ``king sees``; the second is scored on two tokens, the first on one.

    lm-eval 0.4.13 runs such a text once and keeps the logits of the longer continuation; for the
    shorter one it then takes their first positions (``gather`` in ``_loglikelihood_tokens``), where
    it is to take the last. Its numbers without that cache are right, and ours are these.
    """
    rows = [{"text": "king sees", "last": " ship"}, {"text": "king", "last": " sees fish"}]
    task = folder.add(
        "cut",
        {"test": rows},
        output_type="loglikelihood",
        doc_to_text="{{text}}",
        doc_to_target="{{last}}",
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity"}],
    )
    requests = [TaskRequest(task, MetricName("perplexity"))]
    _, right = run_both(model, tokenizer, folder, requests, logits_cache=False)
    items = build_items(
        requests, Setting(include_path=(folder.path,)), tokenizer, max_length=LENGTH
    )
    first, second = (query.window for query in items.queries)
    assert first.tokens == second.tokens
    assert (len(first.targets), len(second.targets)) == (1, 2)
    wrong = reference(model, tokenizer, folder, items, [task])
    (cached, exact), (same, too) = (
        [run["samples"][task][number]["filtered_resps"][0][0] for run in (wrong, right)]
        for number in (0, 1)
    )
    assert abs(cached - exact) > 0.1, "lm-eval was mended: then this test and its note can go"
    assert same == pytest.approx(too, abs=1e-5)
    # What it says of the first item is how likely that word is where the second one's begins.
    with torch.inference_mode():
        logits = model(torch.tensor([first.tokens])).logits[0].log_softmax(-1)
    assert cached == pytest.approx(float(logits[-2, first.targets[0]]), abs=1e-4)
    assert exact == pytest.approx(float(logits[-1, first.targets[0]]), abs=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"training_split": "train", "num_fewshot": 2},
        {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}, "num_fewshot": 3},
        # Examples from the evaluation documents themselves: the one that is asked is left out.
        {"fewshot_split": "test", "num_fewshot": 2},
    ],
    ids=["random", "first_n", "own-split"],
)
def test_examples(model: Any, tokenizer: Any, folder: TaskFolder, config: dict[str, Any]) -> None:
    task = worlds.add_choices(folder, "shots", **config)
    run_both(model, tokenizer, folder, [TaskRequest(task, items=9, seed=3)])


def test_number_of_examples_is_overridden_unless_the_task_fixes_none(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    free = worlds.add_choices(folder, "free", training_split="train")
    fixed = worlds.add_choices(folder, "fixed", training_split="train", num_fewshot=0)
    requests = [
        TaskRequest(free, items=5, num_fewshot=2),
        TaskRequest(fixed, items=5, num_fewshot=2),
    ]
    scores, results = run_both(model, tokenizer, folder, requests, num_fewshot=2)
    assert results["n-shot"] == {"free": 2, "fixed": 0}
    assert set(scores.tasks) == {"free", "fixed"}


@pytest.mark.parametrize("multiturn", [True, False])
@pytest.mark.parametrize("add", [worlds.add_choices, worlds.add_writing])
def test_chat_template(
    model: Any, tokenizer: Any, folder: TaskFolder, add: Any, multiturn: bool
) -> None:
    task = add(folder, "chat", fewshot_split="test", num_fewshot=2, description="Answer well.")
    setting = Setting(
        include_path=(folder.path,),
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction="You are a poet.",
    )
    metric = MetricName("acc") if add is worlds.add_choices else MetricName("exact_match", "whole")
    run_both(
        model,
        tokenizer,
        folder,
        [TaskRequest(task, metric, items=6)],
        setting,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction="You are a poet.",
    )


def test_chat_template_without_a_system_turn(model: Any, folder: TaskFolder) -> None:
    tokenizer = make_tokenizer()
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refuse + worlds.CHAT_TEMPLATE
    task = worlds.add_choices(folder, "chat")
    setting = Setting(
        include_path=(folder.path,), apply_chat_template=True, system_instruction="Be kind."
    )
    options = {"apply_chat_template": True, "system_instruction": "Be kind."}
    run_both(model, tokenizer, folder, [TaskRequest(task, items=4)], setting, **options)


@pytest.mark.parametrize("by_size", [True, False])
def test_group(model: Any, tokenizer: Any, folder: TaskFolder, by_size: bool) -> None:
    small = worlds.add_choices(folder, "small", count=6, seed=1)
    large = worlds.add_choices(folder, "large", count=20, seed=2)
    other = worlds.add_choices(folder, "other", count=10, seed=3)
    aggregate = [{"metric": "acc", "weight_by_size": by_size}, {"metric": "acc_norm"}]
    folder.write(
        "inner", {"group": "inner", "task": [small, large], "aggregate_metric_list": aggregate}
    )
    folder.write(
        "outer", {"group": "outer", "task": ["inner", other], "aggregate_metric_list": aggregate}
    )
    scores, _ = run_both(model, tokenizer, folder, [TaskRequest("outer", items=18)])
    assert set(scores.tasks) == {"small", "large", "other", "inner", "outer"}
    # In proportion to 6, 20 and 10 documents.
    assert [len(scores.tasks[name].doc_ids) for name in (small, large, other)] == [3, 10, 5]
    shares = scores.shares("outer", MetricName("acc"))
    expected = sum(
        share * scores.value(task, MetricName("acc")).value for task, share in shares.items()
    )
    assert scores.value("outer", MetricName("acc")).value == pytest.approx(expected)


def test_a_tag_is_the_plain_mean_of_its_tasks(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    worlds.add_choices(folder, "first", count=8, seed=1, tag="both")
    worlds.add_choices(folder, "second", count=16, seed=2, tag="both")
    scores, _ = run_both(model, tokenizer, folder, [TaskRequest("both", items=12)])
    acc = MetricName("acc")
    values = [scores.value(task, acc).value for task in ("first", "second")]
    assert scores.value("both", acc).value == pytest.approx(sum(values) / 2)


def test_unconditional_choices_and_empty_contexts(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    names = ["acc", "acc_norm", "acc_mutual_info", "exact_match"]
    task = worlds.add_choices(folder, "mutual", metric_list=[{"metric": name} for name in names])
    folder.add(
        "nothing-before",
        {"test": worlds.text_rows(6)},
        output_type="loglikelihood",
        doc_to_text="",
        doc_to_target="{{text}}",
    )
    requests = [
        TaskRequest(task, MetricName("acc_mutual_info"), items=6),
        TaskRequest("nothing-before", MetricName("acc")),
    ]
    run_both(model, tokenizer, folder, requests)


def test_choices_in_the_context(model: Any, tokenizer: Any, folder: TaskFolder) -> None:
    """As in WinoGrande: the choices differ before the text that is scored."""
    rows = [
        {"answer": row["label"] % 2, "options": row["choices"][:2], "rest": " " + row["question"]}
        for row in worlds.choice_rows(10)
    ]
    task = folder.add(
        "blank",
        {"test": rows},
        output_type="multiple_choice",
        doc_to_text="answer",
        doc_to_target="rest",
        doc_to_choice="options",
        metric_list=worlds.metrics("acc"),
    )
    run_both(model, tokenizer, folder, [TaskRequest(task)])


def test_pairs_for_f1_and_a_bootstrapped_error(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    yes_no = worlds.add_choices(
        folder,
        "yes-no",
        doc_to_choice=["no", "yes"],
        doc_to_target="{{label % 2}}",
        metric_list=[{"metric": "f1"}, {"metric": "mcc"}, {"metric": "acc"}],
    )
    last = worlds.add_last_word(folder, "last")
    requests = [TaskRequest(yes_no, MetricName("f1")), TaskRequest(last, MetricName("perplexity"))]
    items = build_items(
        requests, Setting(include_path=(folder.path,)), tokenizer, max_length=LENGTH
    )
    scores = Scorer(model, tokenizer, items).score(bootstrap=100)
    results = reference(model, tokenizer, folder, items, [yes_no, last], bootstrap_iters=100)
    check_equal(scores, results)
    stderr = scores.value(last, MetricName("perplexity")).stderr
    assert stderr == pytest.approx(results["results"][last]["perplexity_stderr,none"], rel=1e-4)


def test_too_long_texts_are_cut_as_lm_eval_cuts_them(
    model: Any, tokenizer: Any, folder: TaskFolder
) -> None:
    long = "{{(text + ' ') * 20}}"
    requests = [
        TaskRequest(worlds.add_choices(folder, "choices", doc_to_text="{{(question + ' ') * 12}}")),
        TaskRequest(
            worlds.add_writing(folder, "writing", doc_to_text=long),
            MetricName("exact_match", "whole"),
        ),
    ]
    run_both(model, tokenizer, folder, requests)


def test_the_task_s_own_code_and_repeats(model: Any, tokenizer: Any, folder: TaskFolder) -> None:
    (folder.path / "own.py").write_text(
        "def judge(doc, results):\n"
        "    answers = results[0]\n"
        "    out = {'length': float(len(answers[0])), 'agree': float(len(set(answers)) == 1)}\n"
        "    return out if len(doc['text']) % 3 else {'length': out['length']}\n"
    )
    task = worlds.add_writing(
        folder,
        "own",
        repeats=3,
        filter_list=[{"name": "three", "filter": [{"function": "take_first_k", "k": 3}]}],
        metric_list=worlds.metrics("length", "agree"),
    )
    file = folder.path / "own.yaml"
    file.write_text(file.read_text() + "process_results: !function own.judge\n")
    scores, _ = run_both(model, tokenizer, folder, [TaskRequest(task, MetricName("length"))])
    items = scores.tasks[task].items
    assert not np.isnan(items[MetricName("length", "three")]).any()
    assert np.isnan(items[MetricName("agree", "three")]).any()


def test_another_architecture_and_its_own_end_of_text(tokenizer: Any, folder: TaskFolder) -> None:
    model = worlds.make_gpt2(tokenizer, length=LENGTH)
    requests = [
        TaskRequest(worlds.add_choices(folder, "choices")),
        TaskRequest(worlds.add_writing(folder, "writing"), MetricName("exact_match", "whole")),
    ]
    free, _ = written(model, tokenizer, folder, requests)
    # Chat models end their turns with a token that is not the tokenizer's end of text.
    ending = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in free]
    model.generation_config.eos_token_id = [1, *{ids[len(ids) // 2] for ids in ending[:3]}]
    stopped, _ = written(model, tokenizer, folder, requests)
    assert sum(map(len, stopped)) < sum(map(len, free))


def written(
    model: Any, tokenizer: Any, folder: TaskFolder, requests: list[TaskRequest]
) -> tuple[list[str], Scores]:
    """The texts that a model writes, checked against lm-eval's."""
    scores, results = run_both(model, tokenizer, folder, requests)
    texts = [sample["resps"][0][0] for sample in results["samples"]["writing"]]
    return texts, scores


def test_what_definitions_may_say(model: Any, tokenizer: Any, folder: TaskFolder) -> None:
    """Forms of choices and targets, delimiters, prefixes, examples that are written down."""
    samples = [
        {"question": "who sees", "choices": ["king", "queen"], "label": 1},
        {"question": "who sings", "choices": ["a bird", "stone", "fire"], "label": 0},
    ]
    every = [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes", "exact_match")]
    more: dict[str, dict[str, Any]] = {
        "several-right": {"doc_to_target": "{{[label, 0]}}", "metric_list": every},
        "named": {"doc_to_choice": {"a": "cat", "b": "dog fish"}, "doc_to_target": "{{label % 2}}"},
        "by-text": {"doc_to_target": "{{choices[label]}}", "metric_list": every},
        "delimited": {"target_delimiter": " = ", "fewshot_delimiter": "; ", "num_fewshot": 1,
                      "fewshot_split": "train"},
        "prefixed": {"gen_prefix": "It is the", "num_fewshot": 1, "fewshot_split": "train"},
        "written-down": {
            "num_fewshot": 2,
            "fewshot_config": {
                "sampler": "first_n", "samples": samples, "doc_to_text": "Example: {{question}} ?",
            },
        },
        "proper": {"doc_to_choice": ["cat", "dog fish"], "doc_to_target": "{{label % 2}}",
                   "metric_list": [{"metric": "brier_score"}, {"metric": "acc_mutual_info"}]},
    }  # fmt: skip
    for name, config in more.items():
        worlds.add_choices(folder, name, count=6, **config)
    written = {"doc_to_target": "{{[last, ' s']}}", "gen_prefix": "the", "num_fewshot": 1}
    worlds.add_writing(folder, "writing", count=6, fewshot_split="test", **written)
    for chat in (False, True):
        run_both(
            model,
            tokenizer,
            folder,
            [
                *(TaskRequest(name, MetricName("brier_score" if name == "proper" else "acc"))
                  for name in more),
                TaskRequest("writing", MetricName("exact_match", "whole")),
            ],
            Setting(include_path=(folder.path,), apply_chat_template=chat),
            apply_chat_template=chat,
            fewshot_as_multiturn=True,
        )  # fmt: skip
