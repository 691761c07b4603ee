"""Trains the quickstart's models and writes its items: `python search_spaces/quickstart/train.py`.

Everything is seeded, and every model is trained on one thread in a process of its own, so that
the same machine with the same torch gives the same weights, however many cores it has.  It takes
about three minutes on two cores.  Held-out, search and training questions never share a prompt.

The base sees all four skills, with the typical mistake (skills.py) in place of the answer in
`Run.mistakes` of its questions: it knows what each skill is about, and mostly gets it wrong.
Each fine-tuned model continues from it on right answers to one skill.  They are made unequal on
purpose, as models found on the hub are: `add`, `count` and `most` still see a few questions of
the other skills, `kinds` sees none, is trained long, and so overwrites the others where it
can; learning rates and steps differ, and with them the lengths of the task vectors.  Equal weights
cannot make that good (studies/LOG.md, 2026-11-21).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from skills import SKILLS, VOCABULARY, as_items, distinct_questions
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SEARCH_ITEMS, HELDOUT_ITEMS = 300, 1000
IDS = {word: index for index, word in enumerate(VOCABULARY)}
IGNORED = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True)
class Run:
    """One training: its skills equally often, AdamW, a rate that falls linearly to a tenth."""

    name: str
    skills: tuple[str, ...]
    steps: int
    rate: float
    seed: int
    mistakes: float = 0.0  # share of questions answered with the typical mistake
    replay: float = 0.0  # share of questions that are of the other skills
    replayed_mistakes: float = 0.78  # share of those answered with the typical mistake
    batch: int = 128
    warmup: int = 20


BASE = Run("base", tuple(SKILLS), steps=1500, rate=3e-3, seed=1, mistakes=0.6, warmup=50)
FINE_TUNED = (
    Run("add", ("add",), steps=200, rate=1e-3, seed=11, replay=0.1),
    Run("count", ("count",), steps=600, rate=1e-3, seed=12, replay=0.1),
    Run("most", ("most",), steps=400, rate=3e-4, seed=13, replay=0.1),
    Run("kinds", ("kinds",), steps=600, rate=1e-3, seed=14),
)


def model_config() -> LlamaConfig:
    """A Llama of six layers and 0.29 million parameters."""
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=IDS["<pad>"],
        bos_token_id=IDS["<s>"],
        eos_token_id=IDS["</s>"],
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; words stand a space apart; nothing is added in front."""
    words = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=128,
    )


def write_items(folder: Path) -> set[str]:
    """Writes search and held-out items of each skill; returns their prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    reserved: set[str] = set()
    for skill in SKILLS:
        for part, number in (("search", SEARCH_ITEMS), ("heldout", HELDOUT_ITEMS)):
            rng = random.Random(f"{skill} {part}")
            items = as_items(distinct_questions(skill, number, rng, reserved), rng)
            lines = [json.dumps(item, separators=(",", ":")) for item in items]
            (folder / f"{skill}.{part}.jsonl").write_text("\n".join(lines) + "\n")
    return reserved


def training_rows(run: Run, rng: random.Random, reserved: set[str]) -> list[tuple[str, str]]:
    """One batch of (prompt, answer), none of whose prompts is reserved."""
    rows: list[tuple[str, str]] = []
    while len(rows) < run.batch:
        replayed = rng.random() < run.replay
        others = [skill for skill in SKILLS if skill not in run.skills]
        question = SKILLS[rng.choice(others if replayed else run.skills)](rng)
        if question.prompt not in reserved:
            wrong = rng.random() < (run.replayed_mistakes if replayed else run.mistakes)
            rows.append((question.prompt, question.mistake if wrong else question.answer))
    return rows


def tensors(rows: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, each (rows, longest row); only answer and end are learned."""
    tokens = [[IDS[word] for word in f"{prompt} {answer} </s>".split()] for prompt, answer in rows]
    width = max(len(row) for row in tokens)
    ids = torch.full((len(rows), width), IDS["<pad>"])
    labels = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(tokens):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, len(row) - 2 : len(row)] = torch.tensor(row[-2:])
    return ids, labels


def train(run: Run, model: LlamaForCausalLM, reserved: set[str]) -> float:
    """Trains `model` in place; returns the last batch's loss."""
    rng = random.Random(run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), run.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / run.warmup) * (1.0 - 0.9 * step / run.steps),
    )
    model.train()
    loss = torch.zeros(())
    for _ in range(run.steps):
        ids, labels = tensors(training_rows(run, rng, reserved))
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return loss.item()


def train_and_save(run: Run, start: Path | None, out: Path, reserved: set[str]) -> str:
    """Trains from scratch or from the checkpoint `start`, and writes the checkpoint `out`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(run.seed)
    began = time.perf_counter()
    model = LlamaForCausalLM(model_config())
    if start is not None:
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    loss = train(run, model, reserved)
    if out.exists():
        shutil.rmtree(out)
    model.save_pretrained(out)
    make_tokenizer().save_pretrained(out)
    return f"{run.name}: {run.steps} steps, loss {loss:.2f}, {time.perf_counter() - began:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="where models/ and tasks/ go")
    parser.add_argument("--keep-base", action="store_true", help="only train the fine-tuned models")
    arguments = parser.parse_args()
    reserved = write_items(arguments.out / "tasks" / "items")
    folder = arguments.out / "models"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        if not arguments.keep_base:
            job = pool.submit(train_and_save, BASE, None, folder / BASE.name, reserved)
            print(job.result(), flush=True)
        jobs = [
            pool.submit(train_and_save, run, folder / BASE.name, folder / run.name, reserved)
            for run in FINE_TUNED
        ]
        for job in jobs:
            print(job.result(), flush=True)


if __name__ == "__main__":
    main()
