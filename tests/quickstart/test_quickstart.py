"""What search_spaces/quickstart ships: items, lm-eval tasks, checkpoints, and their scores."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

QUICKSTART = Path(__file__).resolve().parents[2] / "search_spaces" / "quickstart"
TASKS, MODELS = QUICKSTART / "tasks", QUICKSTART / "models"
SKILLS = ("add", "count", "most", "kinds")
NUMBERS = {"search": 300, "heldout": 1000}
SUBSET = 400  # held-out items scored by a test


@cache
def read_items(skill: str, part: str) -> tuple[dict, ...]:
    lines = (TASKS / "items" / f"{skill}.{part}.jsonl").read_text().splitlines()
    return tuple(json.loads(line) for line in lines)


@cache
def accuracy(model: str, skill: str) -> float:
    """The share of the first held-out items whose right choice has the largest logit."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / model)
    network = AutoModelForCausalLM.from_pretrained(MODELS / model, dtype=torch.float32).eval()
    items = read_items(skill, "heldout")[:SUBSET]
    prompts = torch.tensor([tokenizer.encode(item["prompt"]) for item in items])
    choices = torch.tensor([tokenizer.convert_tokens_to_ids(item["choices"]) for item in items])
    answers = torch.tensor([item["answer"] for item in items])
    with torch.inference_mode():
        logits = network(input_ids=prompts).logits[:, -1]
    return (logits.gather(1, choices).argmax(1) == answers).double().mean().item()


def scripts(code: str, folder: Path) -> str:
    """Runs `code` beside the quickstart's scripts, from `folder`; returns what it prints."""
    prelude = f"import sys; sys.path.insert(0, {str(QUICKSTART)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_prompt_occurs_twice_in_any_part() -> None:
    prompts = [item["prompt"] for s in SKILLS for p in NUMBERS for item in read_items(s, p)]
    assert len(prompts) == len(SKILLS) * sum(NUMBERS.values())
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("part", NUMBERS)
def test_items_have_four_different_choices_and_balanced_answers(skill: str, part: str) -> None:
    items = read_items(skill, part)
    assert all(len(set(item["choices"])) == 4 for item in items)
    assert set(Counter(item["answer"] for item in items).values()) == {NUMBERS[part] // 4}


def right_answer(prompt: str) -> str:
    """The answer by another way than skills.py's, from the prompt alone."""
    skill, *row, _ = prompt.split()
    if skill == "add":
        return str(sum(int(digit) for digit in row))
    if skill == "count":
        return str(row[1:].count(row[0]))
    if skill == "most":
        return Counter(row).most_common(1)[0][0]
    return str(len(set(row)))


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("part", NUMBERS)
def test_the_marked_choice_is_right(skill: str, part: str) -> None:
    for item in read_items(skill, part):
        assert item["choices"][item["answer"]] == right_answer(item["prompt"])


def test_training_rows_leave_out_the_reserved_prompts(tmp_path: Path) -> None:
    """`add` has 10 000 prompts and reserves 1300: about one row in eight would be one of them."""
    code = (
        "import random, train\n"
        f"from pathlib import Path\nreserved = train.write_items(Path({str(tmp_path)!r}))\n"
        "rng = random.Random(train.FINE_TUNED[0].seed)\n"
        "for run in (train.BASE, *train.FINE_TUNED):\n"
        "    rows = [r for _ in range(20) for r in train.training_rows(run, rng, reserved)]\n"
        "    print(len(rows), len(reserved.intersection(prompt for prompt, _ in rows)))\n"
    )
    lines = scripts(code, tmp_path).splitlines()
    assert lines == ["2560 0"] * 5
    for skill in SKILLS:  # and the shipped items are the ones that the script reserves
        for part in NUMBERS:
            name = f"{skill}.{part}.jsonl"
            assert (tmp_path / name).read_bytes() == (TASKS / "items" / name).read_bytes()


def test_tasks_load_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"quickstart_{skill}{part}" for skill in SKILLS for part in ("", "_heldout")]
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    tasks = manager.load([*names, "quickstart_add_generate"])["tasks"]
    for name in names:
        task = tasks[name]
        number = NUMBERS["heldout" if name.endswith("_heldout") else "search"]
        docs = list(task.test_docs())
        assert len(docs) == number
        doc = random.Random(0).choice(docs)
        assert task.doc_to_text(doc).startswith(name.split("_")[1])
        assert task.doc_to_choice(doc)[task.doc_to_target(doc)] == right_answer(doc["prompt"])
    assert tasks["quickstart_add_generate"].OUTPUT_TYPE == "generate_until"


def test_checkpoints_fit_each_other_and_the_tokenizer() -> None:
    base = AutoModelForCausalLM.from_pretrained(MODELS / "base")
    shapes = {name: tensor.shape for name, tensor in base.state_dict().items()}
    vocabulary = AutoTokenizer.from_pretrained(MODELS / "base").get_vocab()
    assert len(vocabulary) == base.config.vocab_size
    for skill in SKILLS:
        model = AutoModelForCausalLM.from_pretrained(MODELS / skill)
        assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        assert AutoTokenizer.from_pretrained(MODELS / skill).get_vocab() == vocabulary


@pytest.mark.parametrize("skill", SKILLS)
def test_every_word_of_the_items_is_one_known_token(skill: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    for part in NUMBERS:
        for item in read_items(skill, part):
            text = " ".join([item["prompt"], *item["choices"]])
            ids = tokenizer.encode(text)
            assert len(ids) == len(text.split())
            assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("skill", SKILLS)
def test_each_fine_tuned_model_is_better_at_its_own_task_and_worse_at_the_others(
    skill: str,
) -> None:
    """Recorded margins (studies/LOG.md, 2026-11-21): own +0.33 to +0.84, others −0.02 to −0.06."""
    others = [other for other in SKILLS if other != skill]
    assert accuracy(skill, skill) > accuracy("base", skill) + 0.25
    ours = sum(accuracy(skill, other) for other in others)
    bases = sum(accuracy("base", other) for other in others)
    assert ours < bases
    # Each is the best of the five models at its own task, by far.
    assert all(accuracy(skill, skill) > accuracy(other, skill) + 0.2 for other in others)


def test_the_base_leaves_room() -> None:
    assert sum(accuracy("base", skill) for skill in SKILLS) / len(SKILLS) < 0.45
