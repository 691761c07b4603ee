"""A family from text: byte-level models of three kinds of files that the environment holds.

Python is the standard library's, headers are torch's, documentation is lm-eval's. Files are taken
in the order of their names; which of them are for training, for the search and for the held-out
items is drawn by a hash of the name, so that no file serves two of these. Files repeat each other:
what stands in another part too, or was drawn already, is no item.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.benchmarks.families import writing
from tests.benchmarks.families.building import HELDOUT, folder_name, task, train
from tests.benchmarks.families.training import Phase, teach

KINDS = ("python", "header", "prose")
LENGTH, BATCH = 64, 64  # bytes in a row, rows in a batch
CONTEXT, WORD, CHOICES = 32, 5, 4  # bytes before a cloze's word, its length, how many words
_WORDS = re.compile(rf"(?<=[ (._])[A-Za-z_]{{{WORD}}}")
PARTS = ("train", "search", "heldout")
ITEMS, WRITTEN = 100, 300  # of each task: what a search takes, and from how many it draws
_FILES, _BYTES = 400, 40_000  # of each kind at most, of each file at most


def build_text(folder: Path) -> None:
    """The family: a base that saw all kinds, a fine-tuned model of each."""
    models = folder / "models"
    base = models / "base"
    train([(train_text, (KINDS, 1200, 3e-3, 81, None, base))])
    train(
        [
            (train_text, ((kind,), 500, 1.5e-3, 82 + at, base, models / kind))
            for at, kind in enumerate(KINDS)
        ]
    )
    tasks = []
    for kind in KINDS:
        for part, number in ((writing.SEARCH, WRITTEN), (writing.HELDOUT, HELDOUT)):
            for name, items, rolling in (
                (f"{kind}_cloze", clozes(kind, part, number), False),
                (f"{kind}_text", passages(kind, part, number), True),
            ):
                full = f"{folder_name(folder)}_{name}_{part}"
                writing.write_task(folder / "tasks", full, items, rolling=rolling, gap="")
        tasks.append(task(folder, f"{kind}_cloze", "acc", ITEMS))
        tasks.append({**task(folder, f"{kind}_text", "bits_per_byte", ITEMS), "weight": 0.5})
    genome = {"layers": {"groups": 2, "smooth": True}, "weight": [-0.3, 1.2]}
    writing.write_space(folder, KINDS, tasks, genome)


def _roots() -> dict[str, tuple[Path, str]]:
    packages = Path(torch.__file__).parents[1]
    return {
        "python": (Path(sysconfig.get_paths()["stdlib"]), "*.py"),
        "header": (packages / "torch" / "include" / "ATen", "**/*.h"),
        "prose": (packages / "lm_eval" / "tasks", "**/*.md"),
    }


def files(kind: str) -> list[Path]:
    """The files of a kind, in the order of their names."""
    root, pattern = _roots()[kind]
    return sorted(path for path in root.glob(pattern) if path.stat().st_size > 400)[:_FILES]


def part_of(path: Path) -> str:
    """Which part a file is for: half of them are trained on."""
    draw = hashlib.sha256(path.name.encode() + path.parent.name.encode()).digest()[0]
    return PARTS[0] if draw < 128 else PARTS[1] if draw < 172 else PARTS[2]


@cache
def read(kind: str, part: str) -> bytes:
    """All the text of one part, ASCII only, one file after another."""
    found = [path for path in files(kind) if part_of(path) == part]
    texts = [path.read_bytes()[:_BYTES] for path in found]
    return bytes(byte for byte in b"\n".join(texts) if byte == 10 or 32 <= byte < 127)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1} | {c: at + 2 for at, c in enumerate(characters)}
    words = Tokenizer(models.BPE(vocabulary, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", model_max_length=128
    )


def model_config() -> LlamaConfig:
    """A Llama of four layers and 0.2 million parameters."""
    return LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )


def train_text(
    kinds: tuple[str, ...], steps: int, rate: float, seed: int, start: Path | None, out: Path
) -> str:
    """Train on the kinds' training files, from nothing or from a checkpoint; write it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(model_config())
    if start is not None:
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    encode = tokenizer()
    texts = [
        torch.tensor(encode.encode(read(kind, "train").decode(), verbose=False)) for kind in kinds
    ]
    loss = teach(model, Phase((), steps, rate, warmup=50), _batches(texts, steps, seed))
    model.save_pretrained(out)
    encode.save_pretrained(out)
    return f"{out.name}: loss {loss:.2f}"


def _batches(texts: list[torch.Tensor], steps: int, seed: int) -> Iterator[Any]:
    rng = random.Random(seed)
    for _ in range(steps):
        rows = []
        for _ in range(BATCH):
            text = rng.choice(texts)
            at = rng.randrange(len(text) - LENGTH)
            rows.append(text[at : at + LENGTH])
        ids = torch.stack(rows)
        yield ids, ids


def clozes(kind: str, part: str, number: int) -> list[dict[str, Any]]:
    """Items that ask for the next word's first letters, among those of other words of the files.

    The wrong ones are drawn as often as they stand there, or how common a word is would tell.
    """
    rng = random.Random(f"{kind} {part} cloze")
    text = read(kind, part).decode()
    found = [match.start() for match in _WORDS.finditer(text)]
    words = [text[place : place + WORD] for place in found]
    places = _own([place for place in found if place >= CONTEXT], CONTEXT, WORD, kind, part, rng)
    items: list[dict[str, Any]] = []
    for place in itertools.islice(places, number):
        right = text[place : place + WORD]
        wrong: list[str] = []
        while len(wrong) < CHOICES - 1:
            word = rng.choice(words)
            wrong += [word] if word not in (right, *wrong) else []
        answer = rng.randrange(CHOICES)
        choices = [*wrong[:answer], right, *wrong[answer:]]
        items.append(
            {"prompt": text[place - CONTEXT : place], "choices": choices, "answer": answer}
        )
    return items


def passages(kind: str, part: str, number: int) -> list[dict[str, Any]]:
    """Items of 48 bytes of text, whose likelihood is measured."""
    rng = random.Random(f"{kind} {part} passage")
    text = read(kind, part).decode()
    places = _own(range(0, len(text) - 48, 8), 0, 48, kind, part, rng)
    return [{"text": text[place : place + 48]} for place in itertools.islice(places, number)]


def _own(
    places: Sequence[int], before: int, after: int, kind: str, part: str, rng: random.Random
) -> Iterator[int]:
    """The places in a drawn order whose surroundings stand in no other part and came only once.

    Nor are they blank where the context ends: a tokenizer that puts nothing before it has none.
    """
    text, drawn = read(kind, part).decode(), set()
    others = [read(kind, other).decode() for other in PARTS if other != part]
    for place in rng.sample(places, len(places)):
        window = text[place - before : place + after]
        blank = not text[place - before : place].strip() if before else not window.strip()
        if blank or window in drawn or any(window in other for other in others):
            continue
        drawn.add(window)
        yield place
