"""Trains a family's models on the quickstart's skills, in ways that make merging hard.

Everything is seeded and each model is trained on one thread: the same machine with the same torch
gives the same weights.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from tests.benchmarks.families.quickstart import skills as questions
from tests.benchmarks.families.quickstart import train as quickstart

SKILLS = tuple(questions.SKILLS)
LAYERS = 6


@dataclass(frozen=True)
class Phase:
    """One stretch of a training: AdamW, a rate that falls linearly to a tenth.

    Args:
        skills: what is taught, equally often.
        steps: batches of 128 questions.
        rate: the highest learning rate.
        mistakes: share of the questions that are answered with the skill's typical mistake.
        junk: share that is answered with a wrong answer drawn at random.
        replay: share of questions of the other skills, 78 % of them answered with the mistake.
        layers: the layers that are trained; None is everything, embeddings too.
        warmup: steps until the highest rate.
    """

    skills: tuple[str, ...]
    steps: int
    rate: float
    mistakes: float = 0.0
    junk: float = 0.0
    replay: float = 0.0
    layers: tuple[int, ...] | None = None
    warmup: int = 20


@dataclass(frozen=True)
class Run:
    """One model: its phases, one after the other, from the base or (the base itself) from nothing.

    Args:
        name: the model's.
        phases: what it is taught.
        seed: of weights and questions.
    """

    name: str
    phases: tuple[Phase, ...]
    seed: int


def base_run(seed: int, mistakes: float = 0.6, steps: int = 1500) -> Run:
    """A base that knows what each skill is about, and often gives the typical mistake."""
    return Run("base", (Phase(SKILLS, steps, 3e-3, mistakes=mistakes, warmup=50),), seed)


def train_and_save(run: Run, start: Path | None, out: Path, reserved: frozenset[str]) -> str:
    """Train from nothing, or from the checkpoint ``start``; write the checkpoint ``out``."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(run.seed)
    model = LlamaForCausalLM(quickstart.model_config())
    if start is not None:
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    rng = random.Random(run.seed)
    loss = 0.0
    for phase in run.phases:
        loss = _teach(model, phase, rng, reserved)
    model.save_pretrained(out)
    quickstart.make_tokenizer().save_pretrained(out)
    return f"{run.name}: loss {loss:.2f}"


def _teach(
    model: LlamaForCausalLM, phase: Phase, rng: random.Random, reserved: frozenset[str]
) -> float:
    batches = (quickstart.tensors(_rows(phase, rng, reserved)) for _ in range(phase.steps))
    return teach(model, phase, batches)


def teach(model: LlamaForCausalLM, phase: Phase, batches: object) -> float:
    """Train on ``phase.steps`` batches of (ids, labels); returns the last loss."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(phase.layers is None or _layer(name) in phase.layers)
    taught = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(taught, phase.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / phase.warmup) * (1.0 - 0.9 * step / phase.steps),
    )
    model.train()
    loss = torch.zeros(())
    for ids, labels in batches:  # type: ignore[attr-defined]
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(taught, 1.0)
        optimizer.step()
        schedule.step()
    return loss.item()


def _rows(phase: Phase, rng: random.Random, reserved: frozenset[str]) -> list[tuple[str, str]]:
    """A batch of (prompt, answer), none of whose prompts is reserved for the items."""
    rows: list[tuple[str, str]] = []
    others = [skill for skill in SKILLS if skill not in phase.skills]
    while len(rows) < 128:
        replayed = bool(others) and rng.random() < phase.replay
        question = questions.SKILLS[rng.choice(others if replayed else phase.skills)](rng)
        chance, kind = (0.78 if replayed else phase.mistakes), rng.random()
        if question.prompt in reserved:
            continue
        if kind < chance:
            answer = question.mistake
        elif kind < chance + phase.junk:
            answer = rng.choice(question.wrong)
        else:
            answer = question.answer
        rows.append((question.prompt, answer))
    return rows


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1
