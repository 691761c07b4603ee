"""What the benchmark of written answers has written: by which model, after which items."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from evomerge.evaluation import ItemSet, MetricName, Setting, TaskRequest, build_items
from tests.benchmarks.shapes import Shape

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart"
SKILLS = ("add", "count", "most", "kinds")
MOST = 64
"""Tokens that are written at most."""
SHOTS = 5


@dataclass(frozen=True)
class Work:
    """What is written: by which model, after which items.

    Args:
        name: of the work.
        model, tokenizer: Hugging Face's.
        folder: of the tasks' definitions.
        tasks: their names.
        items: of each task.
    """

    name: str
    model: Any
    tokenizer: Any
    folder: Path
    tasks: tuple[str, ...]
    items: int

    def build(self) -> ItemSet:
        """The items, as a study would have them."""
        metric = MetricName("exact_match")
        requests = [TaskRequest(task, metric, items=self.items) for task in self.tasks]
        length = self.model.config.max_position_embeddings
        setting = Setting(include_path=(self.folder,))
        return build_items(requests, setting, self.tokenizer, max_length=length)


def quickstart(folder: Path, items: int, shape: Shape, dtype: torch.dtype) -> Work:
    """The quickstart's questions and its base model, which goes on after its answer."""
    path = QUICKSTART / "models" / "base"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer.eos_token = tokenizer.unk_token
    model.generation_config.eos_token_id = tokenizer.unk_token_id
    for skill in SKILLS:
        file = QUICKSTART / "tasks" / "items" / f"{skill}.search.jsonl"
        target = {"doc_to_target": "{{choices[answer]}}"}
        _write_task(folder, f"writing_{skill}", {"test": file}, [" 25", " 4", " n"], **target)
    names = tuple(f"writing_{skill}" for skill in SKILLS)
    return Work("quickstart", model, tokenizer, folder, names, items)


def zero_shot(folder: Path, items: int, shape: Shape, dtype: torch.dtype) -> Work:
    """A random Llama after questions of 40 to 80 tokens; it hardly ever stops."""
    return _random(folder, "zero-shot", items, shape, dtype, shots=0)


def few_shot(folder: Path, items: int, shape: Shape, dtype: torch.dtype) -> Work:
    """The same after five examples, the same ones for all items."""
    return _random(folder, "few-shot", items, shape, dtype, shots=SHOTS)


WORKS: dict[str, Callable[[Path, int, Shape, torch.dtype], Work]] = {
    "quickstart": quickstart,
    "zero-shot": zero_shot,
    "few-shot": few_shot,
}


def _random(
    folder: Path, name: str, items: int, shape: Shape, dtype: torch.dtype, shots: int
) -> Work:
    rng = random.Random(0)
    words = [f"w{number}" for number in range(shape.vocabulary - 2)]

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(least, most)))

    files = {}
    for split, count in (("test", items), ("train", SHOTS)):
        lines = [{"prompt": text(40, 80), "answer": text(60, 100)} for _ in range(count)]
        files[split] = folder / f"random.{split}.jsonl"
        files[split].write_text("".join(json.dumps(line) + "\n" for line in lines))
    same = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    _write_task(folder, "random", files, ["w1 w2", "w7"], num_fewshot=shots, **same)
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape.config()).to(dtype).eval()
    return Work(name, model, _tokenizer(words), folder, ("random",), items)


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {word: number for number, word in enumerate([*words, "</s>", "<unk>"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def _write_task(
    folder: Path, name: str, files: dict[str, Path], until: list[str], **more: Any
) -> None:
    definition = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": until, "max_gen_toks": MOST, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **more,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(definition))
