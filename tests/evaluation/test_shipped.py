"""lm-eval's own shipped definitions: our scores are ``simple_evaluate``'s on the same items."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
from lm_eval.api.model import LM

from evomerge.errors import TaskError
from evomerge.evaluation import MetricName, Scorer, TaskRequest, build_items
from evomerge.evaluation.scores import Scores
from tests.evaluation import shipped
from tests.evaluation.test_equality import check_answers, check_equal
from tests.evaluation.worlds import make_model

LENGTH = 2048
CHOICES = {
    **{"ai2_arc": "acc_norm", "hellaswag": "acc_norm", "piqa": "acc", "boolq": "acc"},
    **{"winogrande": "acc", "truthfulqa_mc1": "acc", "truthfulqa_mc2": "acc"},
}
TEXTS = {"lambada_openai": "perplexity", "wikitext": "bits_per_byte"}
WRITING = {
    "gsm8k": "exact_match,flexible-extract",
    "gsm8k_cot": "exact_match,strict-match",
    "humaneval_instruct": "pass@1",
}
IFEVAL = ("nltk", "langdetect", "immutabledict")
"""What lm-eval's extra ``ifeval`` installs."""
if all(importlib.util.find_spec(name) for name in IFEVAL):
    WRITING["ifeval"] = "prompt_level_strict_acc"
VARIANTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "as they are": ({**CHOICES, **TEXTS, **WRITING}, {}),
    "two examples": (
        {"arc_challenge": "acc", "winogrande": "acc", "mmlu_social_sciences": "acc", **TEXTS},
        {"num_fewshot": 2},
    ),
    "chat": (
        {**CHOICES, **WRITING},
        {
            "num_fewshot": 1,
            "apply_chat_template": True,
            "fewshot_as_multiturn": True,
            "system_instruction": "Be kind.",
        },
    ),
}


@dataclass(frozen=True)
class Both:
    """One variant, scored by us and by lm-eval."""

    scorer: Scorer
    scores: Scores
    results: dict[str, Any]


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    model = make_model(tokenizer, length=LENGTH)
    # Many tokens end a text, so that answers of a thousand tokens are not waited for.
    model.generation_config.eos_token_id = list(range(1, len(tokenizer), 9))
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def both(request: pytest.FixtureRequest, hub: Any, model: Any, tokenizer: Any) -> Both:
    from lm_eval.models.huggingface import HFLM

    tasks, options = VARIANTS[request.param]
    shots = options.get("num_fewshot")
    asked = [
        TaskRequest(task, MetricName.parse(metric), num_fewshot=shots)
        for task, metric in tasks.items()
    ]
    own = {key: value for key, value in options.items() if key != "num_fewshot"}
    items = build_items(asked, shipped.setting(**own), tokenizer, max_length=LENGTH)
    scorer = Scorer(model, tokenizer, items)
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=8)
    results = shipped.evaluated(lm, items, list(tasks), **options)
    return Both(scorer, scorer.score(), results)


def test_every_metric_and_every_answer(both: Both) -> None:
    check_equal(both.scores, both.results)
    check_answers(both.scorer, both.results, both.scorer.items.samples)


class Told(LM):
    """A model that answers what it was told to."""

    def __init__(self, answers: list[str]) -> None:
        super().__init__()
        self._answers = answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        assert len(requests) == len(self._answers)
        return self._answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError


def totals(hub: shipped.Hub) -> list[str]:
    lines = (hub.path / "openai/gsm8k/main/test.jsonl").read_text().splitlines()
    return [json.loads(line)["answer"].rpartition("#### ")[2] for line in lines]


def gsm8k(hub: shipped.Hub) -> list[list[str]]:
    """Right in the form asked for; right, but in another form; wrong."""
    rights = totals(hub)
    texts = [f"So it is.\n#### {rights[0]}", f"It is {rights[1]} then", f"#### 9{rights[2]}"]
    return [[text] for text in [*texts, "no number", "", f"#### {rights[5]}"]]


def votes(hub: shipped.Hub) -> list[list[str]]:
    """Of 64 answers so many of the first are right, and so many of the last."""
    right, wrong = (
        [f"The answer is {number}" for number in told] for told in (totals(hub), "123456")
    )
    counts = ((1, 0), (6, 0), (0, 40), (0, 0), (8, 0), (0, 64))
    return [
        ([right[i]] * first + [wrong[i]] * (64 - first - last) + [right[i]] * last)
        for i, (first, last) in enumerate(counts)
    ]


def programs(hub: shipped.Hub) -> list[list[str]]:
    return [["    return a + b\n"], ["    return a\n"], ["    return a *\n"]]


def instructed(hub: shipped.Hub) -> list[list[str]]:
    """Followed but for the first line; followed; one word of two in capitals."""
    small = "Well, then\nthe cat and the dog are in the house by the river"
    return [[small], ["Dr. Dog and one cat. They see."], ["ONE word"]]


@pytest.mark.parametrize(
    ("task", "answers", "known"),
    [
        (
            "gsm8k",
            gsm8k,
            {"exact_match,strict-match": 2 / 6, "exact_match,flexible-extract": 3 / 6},
        ),
        (
            "gsm8k_cot_self_consistency",
            votes,
            {
                "exact_match,score-first": 4 / 6,
                "exact_match,maj@64": 2 / 6,
                "exact_match,maj@8": 3 / 6,
            },
        ),
        ("humaneval", programs, {"pass@1,create_test": 1 / 3}),
        pytest.param(
            "ifeval",
            instructed,
            {
                "prompt_level_strict_acc,none": 1 / 3,
                "inst_level_strict_acc,none": 2 / 5,
                "prompt_level_loose_acc,none": 2 / 3,
                "inst_level_loose_acc,none": 4 / 5,
            },
            marks=pytest.mark.skipif("ifeval" not in WRITING, reason="needs lm-eval[ifeval]"),
        ),
    ],
)
def test_written_answers_are_judged_alike(
    hub: shipped.Hub, tokenizer: Any, task: str, answers: Any, known: dict[str, float]
) -> None:
    given = answers(hub)
    # Every metric that the task reports can be asked for.
    asked = [TaskRequest(task, MetricName.parse(metric)) for metric in known]
    items = build_items(asked, shipped.setting(), tokenizer, max_length=LENGTH)
    assert list(items.repeats) == [len(texts) for texts in given]
    scores = items.judge(given)
    results = shipped.evaluated(Told([text for texts in given for text in texts]), items, [task])
    check_equal(scores, results)
    found = {str(name): value.value for name, value in scores.tasks[task].metrics.items()}
    assert found == pytest.approx(known)


def test_code_is_run_behind_an_explicit_flag_only(
    hub: shipped.Hub, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    # Its definition runs a program as soon as it is loaded; so it must not be.
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.humaneval.utils", raising=False)
    asked = [TaskRequest("humaneval", MetricName("pass@1"))]
    careful = replace(shipped.setting(), confirm_unsafe=False)
    with pytest.raises(TaskError, match=r"task humaneval: runs code .*confirm_unsafe: true"):
        build_items(asked, careful, tokenizer, max_length=LENGTH)
    assert "lm_eval.tasks.humaneval.utils" not in sys.modules
    # One yes is enough: the metric's own switch need not be known.
    assert len(build_items(asked, shipped.setting(), tokenizer, max_length=LENGTH)) == 3
