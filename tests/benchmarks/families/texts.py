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
BASE_STEPS = 500  # few: what a kind is like is mostly for its fine-tuned model to learn
TUNED = {"python": (600, 1.5e-3), "header": (300, 1e-3), "prose": (500, 1.5e-3)}  # steps, rate
LENGTH, BATCH = 48, 64  # bytes in a row, rows in a batch
CONTEXT, LETTERS, CHOICES = 16, 4, 4  # bytes before a cloze's gap, letters in it, its choices
PASSAGE = 32  # bytes whose likelihood is measured
_GAPS = re.compile(rf"(?<=[ (._][A-Za-z_])[A-Za-z_]{{{LETTERS}}}")  # after a word's first letter
PARTS = ("train", "search", "heldout")
ITEMS, WRITTEN = 100, 300  # of each task: what a search takes, and from how many it draws
_FILES, _BYTES = 400, 40_000  # of each kind at most, of each file at most


def build_text(folder: Path) -> None:
    """The family: a base that saw all kinds, a fine-tuned model of each."""
    models = folder / "models"
    base = models / "base"
    train([(train_text, (KINDS, BASE_STEPS, 3e-3, 81, None, base))])
    train(
        [
            (train_text, ((kind,), *TUNED[kind], 82 + at, base, models / kind))
            for at, kind in enumerate(KINDS)
        ]
    )
    for part, number in ((writing.SEARCH, WRITTEN), (writing.HELDOUT, HELDOUT)):
        for kind in KINDS:
            _write(folder, f"{kind}_cloze_{part}", clozes(kind, part, number), rolling=False)
        mixed = zip(
            *(passages(kind, part, -(-number // len(KINDS))) for kind in KINDS), strict=True
        )
        every = [one for row in mixed for one in row][:number]
        _write(folder, f"passages_{part}", every, rolling=True)
    tasks = [task(folder, f"{kind}_cloze", "acc", ITEMS) for kind in KINDS]
    tasks.append({**task(folder, "passages", "bits_per_byte", ITEMS), "weight": 0.5})
    genome = {"layers": {"groups": 2, "smooth": True}, "weight": [-0.3, 1.2]}
    writing.write_space(folder, KINDS, tasks, genome)


def _write(folder: Path, name: str, items: list[dict[str, Any]], *, rolling: bool) -> None:
    full = f"{folder_name(folder)}_{name}"
    writing.write_task(folder / "tasks", full, items, rolling=rolling, gap="")


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
    """A Llama of three layers and 0.16 million parameters."""
    return LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
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
    """Items that ask how a word goes on after its first letter: like this one, or as others do.

    The wrong letters are drawn as often as they stand there, or how common they are would tell.
    """
    rng = random.Random(f"{kind} {part} cloze")
    text = read(kind, part).decode()
    gaps = [match.start() for match in _GAPS.finditer(text)]
    places = _own([gap for gap in gaps if gap >= CONTEXT], CONTEXT, LETTERS, kind, part, rng)
    items: list[dict[str, Any]] = []
    for place in itertools.islice(places, number):
        right = text[place : place + LETTERS]
        wrong: list[str] = []
        while len(wrong) < CHOICES - 1:
            other = rng.choice(gaps)
            letters = text[other : other + LETTERS]
            wrong += [letters] if letters not in (right, *wrong) else []
        answer = rng.randrange(CHOICES)
        choices = [*wrong[:answer], right, *wrong[answer:]]
        items.append(
            {"prompt": text[place - CONTEXT : place], "choices": choices, "answer": answer}
        )
    return items


def passages(kind: str, part: str, number: int) -> list[dict[str, Any]]:
    """Items of text, whose likelihood is measured."""
    rng = random.Random(f"{kind} {part} passage")
    text = read(kind, part).decode()
    places = _own(range(0, len(text) - PASSAGE, 8), 0, PASSAGE, kind, part, rng)
    return [{"text": text[place : place + PASSAGE]} for place in itertools.islice(places, number)]


def _own(
    places: Sequence[int], before: int, after: int, kind: str, part: str, rng: random.Random
) -> Iterator[int]:
    """The places in a drawn order whose surroundings stand in no other part and came only once.

    Nor is most of the context (of a passage: of the text) blank, as code is that is indented.
    """
    text, drawn = read(kind, part).decode(), set()
    others = [read(kind, other).decode() for other in PARTS if other != part]
    for place in rng.sample(places, len(places)):
        window = text[place - before : place + after]
        told = window[:before] or window
        blank = 2 * len("".join(told.split())) < len(told)
        if blank or window in drawn or any(window in other for other in others):
            continue
        drawn.add(window)
        yield place
