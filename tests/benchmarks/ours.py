"""Our engine at work: models held, one live model, one candidate after another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import LlamaForCausalLM

from evomerge.merging import MergeEngine
from evomerge.recipe import Recipe
from tests.benchmarks.candidates import candidate, models_of, reads_base
from tests.benchmarks.limits import CopyBandwidth, seconds_of
from tests.benchmarks.models import Family


@dataclass
class Ours:
    """What our merges took.

    Args:
        load: seconds of reading the models.
        preparation: seconds of the first candidate, with all that is done once.
        kept: bytes that the engine keeps beside the models.
        seconds: of each further candidate.
        bandwidth: of a copy, in bytes per second; measured between the candidates.
        gpu_peak: bytes allocated at most on a CUDA device; None on a CPU.
    """

    load: float
    preparation: float = 0.0
    kept: int = 0
    seconds: list[float] = field(default_factory=list)
    bandwidth: float = 0.0
    gpu_peak: int | None = None


def build_engine(family: Family, method: str, device: torch.device) -> MergeEngine:
    """An engine that holds the models that a method's recipes read."""
    tuned = [str(path) for path in family.tuned[: models_of(method, family)]]
    base = str(family.base) if reads_base(method) else None
    return MergeEngine(base, tuned, device=device)


def time_ours(
    family: Family,
    method: str,
    live: LlamaForCausalLM,
    copies: CopyBandwidth,
    *,
    repetitions: int,
    dtype: str,
) -> Ours:
    """Merge candidates 0 … ``repetitions`` into the live model; the first one is the preparation.

    A copy is timed after each candidate, on the machine as it is then, and so that no candidate
    finds its inputs in a cache.
    """
    device = next(live.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device) - family.shape.nbytes  # the live model counts
    start = time.perf_counter()
    engine = build_engine(family, method, device)
    result = Ours(time.perf_counter() - start)
    bare, first_copy = engine.nbytes, len(copies.measured)
    for number in range(repetitions + 1):
        recipe = Recipe.from_yaml(candidate(family, method, number, dtype))
        took = seconds_of(partial(engine.merge_into, live, recipe), device)
        result.seconds.append(took)
        copies.measure()
    result.preparation = result.seconds.pop(0)
    result.kept = engine.nbytes - bare
    result.bandwidth = copies.median(first_copy)
    if device.type == "cuda":
        result.gpu_peak = torch.cuda.max_memory_allocated(device) - held
    return result
