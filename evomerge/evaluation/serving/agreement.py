"""A server's answers against those of the same weights in a live model, before a study begins."""

from __future__ import annotations

import random
from typing import Any

import torch

from evomerge.errors import Fault, InputError
from evomerge.evaluation.serving.serving import Ask, Server

_PROBE_TOKENS = 48
_ALLOWED = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}
"""Mean difference of two log-probabilities in nats; other weights differ by whole nats."""


@torch.inference_mode()
def check_agreement(server: Server, model: Any, dtype: str, length: int, place: str) -> None:
    """Refuse a server that does not compute what its weights say.

    What an engine keeps of weights beside them (packed copies, quantised ones) may stay as it was
    when others are written; such scores look like scores.

    Args:
        server: holds the same weights as ``model``.
        model: a causal ``transformers`` model.
        dtype: that both compute in: ``float32``, ``bfloat16``, ``float16``.
        length: the model's longest input in tokens.
        place: for messages.

    Raises:
        InputError: their log-probabilities of some random tokens differ too much.
    """
    height = model.get_input_embeddings().weight.shape[0]
    count = min(_PROBE_TOKENS, length)
    tokens = tuple(random.Random(0).choices(range(height), k=count))
    device = next(model.parameters()).device
    logits = model(torch.tensor([tokens], device=device)).logits[0].float().cpu()
    wanted = logits.log_softmax(-1)
    (told,) = server.likelihoods([Ask(tokens, before=count - 1, last=(tokens[0],))])
    mine = torch.tensor([value for value, _ in told.before] + [told.last[tokens[0]]])
    theirs = wanted[torch.arange(count), torch.tensor([*tokens[1:], tokens[0]])]
    difference = float((mine - theirs).abs().mean())
    if not difference <= _ALLOWED[dtype]:
        problem = (
            f"vLLM gives this model other log-probabilities than transformers: they differ by "
            f"{difference:.3g} nats on average, {_ALLOWED[dtype]:g} is allowed in {dtype}; use 'hf'"
        )
        raise InputError([Fault(place, problem)])
