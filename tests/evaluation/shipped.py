"""Small local files of the schema that lm-eval's own task definitions read.

``datasets`` and ``evaluate`` take ``allenai/ai2_arc`` for a folder where there is one below the
current directory: so the shipped definitions run as they are, and nothing is downloaded.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml

from evomerge.evaluation import ItemSet, Setting
from tests.evaluation.worlds import NOUNS, VERBS, sentence

SHIPPED = Path(lm_eval.tasks.__file__).parent
FOLDERS = (
    *("arc", "hellaswag", "piqa", "super_glue/boolq", "winogrande", "lambada", "wikitext"),
    *("truthfulqa", "mmlu/default", "gsm8k", "ifeval", "humaneval"),
)
"""Where the definitions lie; an index of all fourteen thousand takes seconds."""

SUBJECTS = (
    *("econometrics", "high_school_geography", "high_school_government_and_politics"),
    *("high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology"),
    *("human_sexuality", "professional_psychology", "public_relations", "security_studies"),
    *("sociology", "us_foreign_policy"),
)
"""Of MMLU's group ``mmlu_social_sciences``."""

Row = dict[str, Any]
Maker = Callable[[random.Random], Row]


@dataclass(frozen=True)
class Hub:
    """A folder that stands for the hub while it is the current directory."""

    path: Path

    def add(self, name: str, configs: Mapping[str, Mapping[str, list[Row]]]) -> None:
        """A data set: configuration → split → rows."""
        folder = self.path / name
        told = []
        for config, splits in configs.items():
            files = []
            for split, rows in splits.items():
                file = folder / config / f"{split}.jsonl"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
                files.append({"split": split, "path": f"{config}/{split}.jsonl"})
            told.append({"config_name": config, "data_files": files})
        head = yaml.safe_dump({"configs": told})
        (folder / "README.md").write_text(f"---\n{head}---\n")


def make_hub(path: Path) -> Hub:
    """Every data set that the table of tests reads."""
    hub = Hub(path)
    for name, config, make, sizes in DATA:
        hub.add(name, {config: rows_of(make, sizes, seed=len(name))})
    arc = {
        config: rows_of(_arc, {"train": 6, "validation": 7, "test": 8}, seed)
        for seed, config in enumerate(("ARC-Easy", "ARC-Challenge"))
    }
    hub.add("allenai/ai2_arc", arc)
    sizes = {"dev": 5, "validation": 3}
    mmlu = {
        subject: rows_of(_mmlu, {**sizes, "test": 4 + seed % 3}, seed)
        for seed, subject in enumerate(SUBJECTS)
    }
    hub.add("cais/mmlu", mmlu)
    hub.add("google/IFEval", {"default": {"train": IFEVAL}})
    hub.add("openai/openai_humaneval", {"default": {"test": HUMANEVAL}})
    metric = path / "code_eval" / "code_eval.py"
    metric.parent.mkdir()
    metric.write_text(CODE_EVAL)
    return hub


def rows_of(make: Maker, sizes: Mapping[str, int], seed: int) -> dict[str, list[Row]]:
    rng = random.Random(seed)
    return {split: [make(rng) for _ in range(size)] for split, size in sizes.items()}


def _words(rng: random.Random, most: int = 4) -> str:
    return " ".join(rng.sample(NOUNS, rng.randint(1, most)))


def _arc(rng: random.Random) -> Row:
    labels = rng.choice([["A", "B", "C", "D"], ["1", "2", "3"]])
    return {
        "id": str(rng.random()),
        "question": sentence(rng) + "?",
        "choices": {"text": [_words(rng) for _ in labels], "label": labels},
        "answerKey": rng.choice(labels),
    }


def _hellaswag(rng: random.Random) -> Row:
    return {
        "ctx_a": sentence(rng).capitalize() + " [title]",
        "ctx_b": sentence(rng, 3),
        "activity_label": _words(rng, 2),
        "endings": [f"{sentence(rng, 4)} [step] ." for _ in range(4)],
        "label": str(rng.randrange(4)),
    }


def _piqa(rng: random.Random) -> Row:
    return {
        "goal": sentence(rng),
        "sol1": sentence(rng, 4),
        "sol2": sentence(rng, 5),
        "label": rng.randrange(2),
    }


def _boolq(rng: random.Random) -> Row:
    return {
        "question": sentence(rng, 4),
        "passage": sentence(rng, 14),
        "idx": rng.randrange(99),
        "label": rng.randrange(2),
    }


def _winogrande(rng: random.Random) -> Row:
    first, second = rng.sample(NOUNS, 2)
    return {
        "sentence": f"{sentence(rng, 3)} because the _ {rng.choice(VERBS)} {sentence(rng, 2)}",
        "option1": first,
        "option2": second,
        "answer": rng.choice("12"),
    }


def _lambada(rng: random.Random) -> Row:
    return {"text": sentence(rng, rng.randint(5, 12))}


def _wikitext(rng: random.Random) -> Row:
    body = " , ".join(sentence(rng, rng.randint(3, 40)) for _ in range(3))
    return {"page": f" = Title = \n {body} 's 1 @,@ 000 \n"}


def _truthful(rng: random.Random) -> Row:
    def targets(right: int) -> Row:
        count = rng.randint(right + 1, 5)
        return {
            "choices": [_words(rng) for _ in range(count)],
            "labels": [int(place < right) for place in range(count)],
        }

    return {
        "question": sentence(rng) + "?",
        "mc1_targets": targets(1),
        "mc2_targets": targets(rng.randint(1, 3)),
    }


def _mmlu(rng: random.Random) -> Row:
    return {
        "question": f" {sentence(rng)}",
        "subject": "any",
        "choices": [_words(rng, 2) for _ in range(4)],
        "answer": rng.randrange(4),
    }


def _gsm8k(rng: random.Random) -> Row:
    total = rng.randint(2, 4000)
    return {
        "question": f"{sentence(rng)} {rng.randint(2, 9)} times. How many?",
        "answer": f"{sentence(rng, 4)} <<1+1=2>>\n#### {total:,}",
    }


SHOTS = {"train": 6, "validation": 7}
DATA: tuple[tuple[str, str, Maker, Mapping[str, int]], ...] = (
    ("Rowan/hellaswag", "default", _hellaswag, SHOTS),
    ("baber/piqa", "default", _piqa, SHOTS),
    ("aps/super_glue", "boolq", _boolq, SHOTS),
    ("allenai/winogrande", "winogrande_xl", _winogrande, SHOTS),
    ("EleutherAI/lambada_openai", "default", _lambada, {"test": 8}),
    (
        "EleutherAI/wikitext_document_level",
        "wikitext-2-raw-v1",
        _wikitext,
        {"train": 3, "validation": 4, "test": 5},
    ),
    ("truthfulqa/truthful_qa", "multiple_choice", _truthful, {"validation": 7}),
    ("openai/gsm8k", "main", _gsm8k, {"train": 8, "test": 6}),
)

_NOTHING = {"relation": None, "frequency": None, "num_words": None, "keywords": None}
IFEVAL: list[Row] = [
    {
        "key": 1,
        "prompt": "Write without commas, in small letters.",
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [_NOTHING, _NOTHING],
    },
    {
        "key": 2,
        "prompt": "Write at least 3 words, among them cat.",
        "instruction_id_list": ["length_constraints:number_words", "keywords:existence"],
        "kwargs": [
            {**_NOTHING, "relation": "at least", "num_words": 3},
            {**_NOTHING, "keywords": ["cat"]},
        ],
    },
    {
        "key": 3,
        "prompt": "Write two words in capitals.",
        "instruction_id_list": ["change_case:capital_word_frequency"],
        "kwargs": [{"capital_relation": "at least", "capital_frequency": 2, **_NOTHING}],
    },
]
"""Each of them needs another part of what lm-eval installs for it: none, nltk, its tokenizer."""
for _row in IFEVAL:
    _row["kwargs"] = [
        {"capital_relation": None, "capital_frequency": None, **k} for k in _row["kwargs"]
    ]

HUMANEVAL: list[Row] = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(a, b):\n    """{name} of the two."""\n',
        "entry_point": name,
        "canonical_solution": f"    return {body}\n",
        "test": f"def check(candidate):\n    assert candidate(2, 5) == {value}\n",
    }
    for number, (name, body, value) in enumerate(
        [("add", "a + b", 7), ("largest", "max(a, b)", 5), ("product", "a * b", 10)]
    )
]

CODE_EVAL = '''
"""What ``evaluate.load("code_eval")`` gives: its interface, and pass@1 by running the programs."""
import os
import subprocess
import sys

import datasets
import evaluate


class CodeEval(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": datasets.Sequence(text), "references": text})
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions, references, k):
        if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise ValueError("HF_ALLOW_CODE_EVAL must be 1")
        assert k == [1]
        passed = [
            subprocess.run(
                [sys.executable, "-ISc", f"{program}\\n{test}"], capture_output=True, timeout=10
            ).returncode == 0
            for programs, test in zip(predictions, references)
            for program in programs
        ]
        return {"pass@1": sum(passed) / len(passed)}, {}
'''


def make_punkt(path: Path) -> Path:
    """Parameters of nltk's sentence tokenizer: it knows two abbreviations."""
    folder = path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    (folder / "abbrev_types.txt").write_text("dr\nmr")
    return path


def setting(own: Sequence[Path] = (), **options: Any) -> Setting:
    """The shipped definitions, and those of folders of the test's own, which win."""
    folders = tuple(SHIPPED / folder for folder in FOLDERS)
    return Setting(include_path=(*folders, *own), confirm_unsafe=True, **options)


def evaluated(
    lm: Any, items: ItemSet, tasks: Sequence[str], own: Sequence[Path] = (), **options: Any
) -> dict[str, Any]:
    """What ``simple_evaluate`` itself makes of them."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in setting(own).include_path]
    results = simple_evaluate(
        lm,
        tasks=list(tasks),
        samples=items.samples,
        task_manager=TaskManager(include_path=folders, include_defaults=False),
        bootstrap_iters=2,
        confirm_run_unsafe_code=True,
        **options,
    )
    assert results is not None
    return dict(results)
