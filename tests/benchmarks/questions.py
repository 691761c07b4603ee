"""Models and items to score: the quickstart's, and random ones of a shape."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from evomerge.evaluation import ItemSet, Setting, TaskRequest, build_items, context_length
from tests.benchmarks.shapes import Shape

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart"
SKILLS = ("add", "count", "most", "kinds")
CONTEXT, CHOICE = (85, 115), (4, 12)
"""Words of a question and of each of its four choices, from and to."""
SHOTS = 5
WRITTEN = 64
"""Tokens that are written at most."""


@dataclass(frozen=True)
class Row:
    """One row of the table: a live model and what it is asked.

    Args:
        name: of the row.
        model, tokenizer: Hugging Face's.
        tasks: lm-eval's names.
        folder: of their definitions.
        items: documents of each task.
        target: how many times faster than ``simple_evaluate`` it is to be; None if nothing is
            asked.
        writes: whether the model writes answers, instead of being asked for likelihoods.
    """

    name: str
    model: Any
    tokenizer: Any
    tasks: tuple[str, ...]
    folder: Path
    items: int
    target: float | None
    writes: bool = False

    def build(self) -> ItemSet:
        """The items, as a study would have them."""
        requests = [TaskRequest(task, items=self.items) for task in self.tasks]
        length = context_length(self.model.config, self.tokenizer)
        setting = Setting(include_path=(self.folder,))
        return build_items(requests, setting, self.tokenizer, max_length=length, every_metric=True)


@dataclass(frozen=True)
class Wanted:
    """What rows are made of.

    Args:
        folder: where tasks are written.
        shape: of the random model.
        dtype: of the random model.
        device: of all models.
        items: documents of each task; None is each row's own number.
    """

    folder: Path
    shape: Shape
    dtype: torch.dtype
    device: torch.device
    items: int | None = None


def quickstart(wanted: Wanted) -> Row:
    """The shipped tasks, four choices each."""
    path = QUICKSTART / "models" / "add"
    model = AutoModelForCausalLM.from_pretrained(path).to(wanted.device).eval()
    tasks = tuple(f"quickstart_{skill}" for skill in SKILLS)
    tokenizer = AutoTokenizer.from_pretrained(path)
    folder, count = QUICKSTART / "tasks", wanted.items or 100
    return Row("quickstart", model, tokenizer, tasks, folder, count, 8.0)


def generation(wanted: Wanted) -> Row:
    """The quickstart model writes up to 64 tokens, until one of some texts appears."""
    base = quickstart(wanted)
    # It was trained to end after one answer; here it goes on, so that lengths differ.
    base.tokenizer.eos_token = base.tokenizer.unk_token
    base.model.generation_config.eos_token_id = base.tokenizer.unk_token_id
    for skill in SKILLS:
        _write_task(
            wanted.folder,
            f"writing_{skill}",
            {"test": str(QUICKSTART / "tasks" / "items" / f"{skill}.search.jsonl")},
            output_type="generate_until",
            doc_to_text="prompt",
            doc_to_target="{{choices[answer]}}",
            generation_kwargs={
                "until": [" 25", " 4 ", " 3 ", " n"],
                "max_gen_toks": WRITTEN,
                "do_sample": False,
            },
            metric_list=[{"metric": "exact_match"}],
        )
    tasks = tuple(f"writing_{skill}" for skill in SKILLS)
    folder, count = wanted.folder, base.items
    return Row("generation", base.model, base.tokenizer, tasks, folder, count, 3.0, writes=True)


def zero_shot(wanted: Wanted) -> Row:
    """Questions of about 100 tokens with four choices."""
    return _random_row(wanted, "zero-shot", wanted.items or 16, 2.5, shots=0)


def five_shot(wanted: Wanted) -> Row:
    """The same after five examples, the same ones for all items."""
    return _random_row(wanted, "five-shot", wanted.items or 16, 10.0, shots=SHOTS)


ROWS: dict[str, Callable[[Wanted], Row]] = {
    "quickstart": quickstart,
    "zero-shot": zero_shot,
    "five-shot": five_shot,
    "generation": generation,
}


def _random_row(wanted: Wanted, name: str, items: int, target: float, shots: int) -> Row:
    task = name.replace("-", "_")
    splits = {"test": _questions(items, seed=0), "train": _questions(SHOTS, seed=1)}
    files = {}
    for split, lines in splits.items():
        file = wanted.folder / f"{task}.{split}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files[split] = str(file)
    _write_task(
        wanted.folder,
        task,
        files,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_target="label",
        doc_to_choice="choices",
        fewshot_split="train",
        fewshot_config={"sampler": "first_n"},
        num_fewshot=shots,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    tokenizer = _tokenizer(wanted.shape.vocabulary)
    model = _random_model(wanted)
    return Row(name, model, tokenizer, (task,), wanted.folder, items, target)


def _random_model(wanted: Wanted) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = wanted.shape.config()
    config.dtype = wanted.dtype
    return LlamaForCausalLM(config).to(wanted.device, wanted.dtype).eval()


def _questions(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{rng.randrange(200)}" for _ in range(rng.randint(least, most)))

    return [
        {
            "question": words(*CONTEXT),
            "choices": [words(*CHOICE) for _ in range(4)],
            "label": rng.randrange(4),
        }
        for _ in range(count)
    ]


def _write_task(folder: Path, name: str, files: dict[str, str], **more: Any) -> None:
    definition = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **more,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(definition))


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token for each word."""
    words = ["<s>", "</s>", "<unk>", *(f"w{number}" for number in range(vocabulary - 3))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
