"""Measures what there is to win: `python search_spaces/quickstart/measure.py [--search SEEDS]`.

Prints, as tables, the accuracy of base, fine-tuned models and uniform blends on the lm-eval tasks
beside this file, and with --search that of blends found by CMA-ES on the search items alone.
A blend is task arithmetic: base + sum of weight x task vector, weights per model and per group of
layers (embeddings go with the first group, the final norm with the last).

It is independent of evomerge on purpose: it needs torch, transformers, lm-eval, and cmaes for
--search.  All choices are one token, so an item is right when the right choice has the largest
logit after the prompt; --check compares that with lm_eval.simple_evaluate.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import lm_eval
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
SKILLS = ("add", "count", "most", "kinds")
SCALES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
HIGHEST_WEIGHT = 1.5

Items = dict[str, np.ndarray]  # skill -> 1.0 or 0.0 for each item


class Blender:
    """Holds base and task vectors, writes blends into one live model, scores them."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        self.names = tuple(names)
        self.layers = base.config.num_hidden_layers
        self.base = {name: tensor.detach() for name, tensor in base.named_parameters()}
        self.vectors = {}
        for name in names:
            tuned = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
            self.vectors[name] = {
                key: tensor.detach() - self.base[key] for key, tensor in tuned.named_parameters()
            }
        self.live = AutoModelForCausalLM.from_pretrained(
            folder / "base", dtype=torch.float32
        ).eval()

    def length(self, name: str) -> float:
        """The Euclidean length of a model's task vector."""
        return float(sum(v.square().sum() for v in self.vectors[name].values())) ** 0.5

    def _group(self, key: str, groups: int) -> int:
        found = re.search(r"layers\.(\d+)\.", key)
        if found:
            return int(found[1]) * groups // self.layers
        return 0 if "embed" in key else groups - 1

    @torch.inference_mode()
    def blend(self, weights: np.ndarray) -> None:
        """Writes base + weights (models, groups) x task vectors into the live model."""
        for key, parameter in self.live.named_parameters():
            group = self._group(key, weights.shape[1])
            merged = self.base[key].clone()
            for index, name in enumerate(self.names):
                merged.add_(self.vectors[name][key], alpha=float(weights[index, group]))
            parameter.copy_(merged)

    @torch.inference_mode()
    def score(self, items: Mapping[str, tuple], weights: np.ndarray) -> Items:
        """Which items a blend answers rightly."""
        self.blend(np.asarray(weights, dtype=float).reshape(len(self.names), -1))
        right = {}
        for skill, (prompts, choices, answers) in items.items():
            logits = self.live(input_ids=prompts, logits_to_keep=1).logits[:, -1]
            picked = logits.gather(1, choices).argmax(1)
            right[skill] = (picked == answers).double().numpy()
        return right


def load_items(part: str, limit: int | None) -> dict[str, tuple]:
    """Per skill: prompts (items, tokens), choices (items, 4), answers (items,), from lm-eval."""
    tokenizer = AutoTokenizer.from_pretrained(HERE / "models" / "base")
    names = {skill: f"quickstart_{skill}{part}" for skill in SKILLS}
    tasks = TaskManager(include_path=str(HERE / "tasks"), include_defaults=False).load(
        list(names.values())
    )["tasks"]
    items = {}
    for skill, name in names.items():
        task = tasks[name]
        docs = list(task.test_docs())[:limit]
        items[skill] = (
            torch.tensor([tokenizer.encode(task.doc_to_text(doc)) for doc in docs]),
            torch.tensor([tokenizer.convert_tokens_to_ids(task.doc_to_choice(d)) for d in docs]),
            torch.tensor([task.doc_to_target(doc) for doc in docs]),
        )
    return items


def mean(right: Items) -> float:
    return float(np.mean([values.mean() for values in right.values()]))


def paired(right: Items, other: Items) -> tuple[float, float]:
    """The difference of mean accuracies and half its 95 % interval, paired item by item."""
    differences = [right[skill] - other[skill] for skill in right]
    variance = sum(d.var(ddof=1) / len(d) for d in differences) / len(differences) ** 2
    return float(np.mean([d.mean() for d in differences])), 1.96 * float(variance) ** 0.5


def row(name: str, search: Items, heldout: Items) -> str:
    cells = [f"{mean(search):.3f}", f"{mean(heldout):.3f}"]
    cells += [f"{values.mean():.3f}" for values in heldout.values()]
    return f"| {name} | " + " | ".join(cells) + " |"


def evolve(blender: Blender, items: Mapping, start: float, groups: int, seed: int, trials: int):
    """The best weights (models, groups) that CMA-ES finds from uniform weights `start`."""
    from cmaes import CMA

    size = len(blender.names) * groups
    sampler = CMA(
        mean=np.full(size, start),
        sigma=0.2,
        bounds=np.array([[0.0, HIGHEST_WEIGHT]] * size),
        seed=seed,
    )
    best, best_weights = -1.0, np.full(size, start)
    for _ in range(trials // sampler.population_size):
        told = []
        for _ in range(sampler.population_size):
            weights = sampler.ask()
            fitness = mean(blender.score(items, weights))
            told.append((weights, -fitness))
            if fitness > best:
                best, best_weights = fitness, weights
        sampler.tell(told)
    return best_weights.reshape(len(blender.names), groups)


def baselines(blender: Blender) -> dict[str, np.ndarray]:
    number = len(blender.names)
    weights = {"base": np.zeros(number)}
    weights |= {name: np.eye(number)[index] for index, name in enumerate(blender.names)}
    weights |= {f"uniform {scale}": np.full(number, scale) for scale in SCALES}
    return weights


def check(blender: Blender, items: Mapping[str, tuple]) -> None:
    """Compares with lm-eval's own scores of the checkpoints, on the first items of each task."""
    tasks = [f"quickstart_{skill}" for skill in SKILLS] + ["quickstart_add_generate"]
    manager = TaskManager(include_path=str(HERE / "tasks"), include_defaults=False)
    limit = len(items[SKILLS[0]][2])
    for name, weights in list(baselines(blender).items())[: 1 + len(SKILLS)]:
        model = HFLM(
            pretrained=str(HERE / "models" / name), device="cpu", dtype="float32", batch_size=256
        )
        results = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, limit=limit)
        theirs = [results["results"][task]["acc,none"] for task in tasks[:-1]]
        ours = [values.mean() for values in blender.score(items, weights).values()]
        written = results["results"][tasks[-1]]["exact_match,stripped"]
        print(
            f"{name}: lm-eval {np.round(theirs, 4)}, here {np.round(ours, 4)}, "
            f"written sums {written:.4f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=150, help="search items of each task")
    parser.add_argument("--search", type=int, default=0, metavar="SEEDS", help="searches per size")
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--check", action="store_true", help="compare with lm-eval's own scores")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    blender = Blender(HERE / "models", SKILLS)
    search, heldout = load_items("", arguments.items), load_items("_heldout", None)
    if arguments.check:
        check(blender, search)
    lengths = ", ".join(f"{name} {blender.length(name):.1f}" for name in SKILLS)
    print(f"lengths of the task vectors: {lengths}\n")
    print(
        f"| model | search ({arguments.items} items a task) | held out | "
        + " | ".join(SKILLS)
        + " |"
    )
    print("|---" * (3 + len(SKILLS)) + "|")
    scores = {}
    for name, weights in baselines(blender).items():
        scores[name] = blender.score(search, weights), blender.score(heldout, weights)
        print(row(name, *scores[name]), flush=True)
    best = max(scores, key=lambda name: mean(scores[name][1]))
    start = max(SCALES, key=lambda scale: mean(scores[f"uniform {scale}"][0]))
    report_searches(blender, search, heldout, scores[best][1], start, arguments)
    print(f"\nbest baseline on the held-out items: {best}")


def report_searches(blender, search, heldout, best, start, arguments) -> None:
    for groups in arguments.groups if arguments.search else ():
        for seed in range(arguments.search):
            began = time.perf_counter()
            weights = evolve(blender, search, start, groups, seed, arguments.trials)
            seconds = time.perf_counter() - began
            found = blender.score(heldout, weights)
            gain, half = paired(found, best)
            name = f"CMA-ES, {groups} group(s), seed {seed}: {gain:+.3f} ± {half:.3f}"
            print(row(name, blender.score(search, weights), found), flush=True)
            print(f"<!-- {seconds:.0f} s, weights {np.round(weights, 2).tolist()} -->", flush=True)


if __name__ == "__main__":
    main()
