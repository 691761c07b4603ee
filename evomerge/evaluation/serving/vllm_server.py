"""vLLM as the server of ``serving``.

Weights come in between two rounds of questions, by vLLM's own weight update; after each the cached
prefixes, which belong to the weights before, are dropped.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import Fault, InputError, TrialError
from evomerge.evaluation.serving.pieces import Named, pieces, shared
from evomerge.evaluation.serving.serving import Ask, Likelihood, Write, Written

_WORKER = "evomerge.evaluation.serving.vllm_worker"
_CPU_CACHE_GIB = "1"
_SHARE = 0.9
"""Of an accelerator's memory that the merge engine leaves free, so much is vLLM's."""


@dataclass(frozen=True)
class ServerPlan:
    """What is to run.

    Args:
        folder: a model's, with its configuration; no weights are read.
        tokenizer: Hugging Face's, of the merged models.
        dtype: ``float32``, ``bfloat16``, ``float16``.
        length: the model's longest input in tokens.
        gpus: over how many the model is spread (tensor parallelism); 0 computes on the CPU.
        ranks: on the CPU, over how many processes it is spread.
        changes: what the configuration says otherwise (``vocab_size`` …).
        threads: CPU threads of each process; None leaves vLLM's own number.
        trust_remote_code: whether the model may bring its own code.
    """

    folder: Path
    tokenizer: Any
    dtype: str
    length: int
    gpus: int = 0
    ranks: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    trust_remote_code: bool = False


class VllmServer:
    """A model that runs in vLLM's engine, without values until :meth:`load`.

    Args:
        plan: what is to run.

    Raises:
        InputError: vLLM cannot run the model; its reason is told.
    """

    def __init__(self, plan: ServerPlan) -> None:
        self._plan = plan
        self._proved = False
        self._generation = _generation(plan)
        try:
            # Only for the time of the start: a worker that is killed leaves nothing behind.
            with tempfile.TemporaryDirectory(prefix="evomerge-") as home, _environment(plan):
                plan.tokenizer.save_pretrained(home)
                # vLLM looks for one wherever it looks for a tokenizer.
                shutil.copy(plan.folder / "config.json", home)
                self._llm = _start(plan, home)
            # What a kernel refuses (a head's width on CPUs) shows with the first tokens alone.
            self.likelihoods([Ask(tokens=(0, 0), before=1, last=(0,))])
        except Exception as problem:
            told = " ".join(str(problem).split()) or type(problem).__name__
            refused = f"vLLM cannot run this model: {told[:600]} (its log says more)"
            raise InputError([Fault(str(plan.folder), refused)]) from problem

    @property
    def generation(self) -> Mapping[str, Any]:
        return self._generation

    def load(self, tensors: Iterable[Named]) -> None:
        """Give the model other weights, in place, and forget what was cached under the old ones.

        Args:
            tensors: all of the model's, by a checkpoint's names; taken one by one, as they come.

        Raises:
            InputError: the model does not take a tensor, or has parameters that none came for.
            Exception: what ``tensors`` raises. The weights are then of no use until the next load.
        """
        self._llm.start_weight_update()
        try:
            for piece in pieces(tensors):
                with shared(piece) as told:
                    self._send({**told, "proving": not self._proved})
        except BaseException:
            with suppress(Exception):
                self._send({"abandoned": True})
                self._llm.finish_weight_update()
            raise
        self._llm.finish_weight_update()
        if not self._proved:
            self._prove()
        if not self._llm.reset_prefix_cache():
            raise TrialError("vLLM keeps prefixes that it cached under the weights before")

    def likelihoods(self, asks: Sequence[Ask]) -> list[Likelihood]:
        """See :class:`Server`; one-token continuations use cached prefixes, longer ones cannot."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=1,
                logprob_token_ids=list(ask.last),
                prompt_logprobs=0 if ask.before else None,
                detokenize=False,
            )
            for ask in asks
        ]
        outputs = self._generate([ask.tokens for ask in asks], params)
        return [_likelihood(ask, output) for ask, output in zip(asks, outputs, strict=True)]

    def write(self, writes: Sequence[Write]) -> list[Written]:
        """See :class:`Server`."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                **_sampling(one.sampling),
                max_tokens=one.max_new_tokens,
                stop=[text for text in one.stop if text],
                include_stop_str_in_output=True,
                skip_special_tokens=False,  # a stop text may be a special token's
                seed=one.seed if one.sampling["temperature"] else None,
                logprobs=0,
            )
            for one in writes
        ]
        outputs = self._generate([one.tokens for one in writes], params)
        return [_written(output) for output in outputs]

    def close(self) -> None:
        """End vLLM's processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _generate(self, inputs: Sequence[tuple[int, ...]], params: list[Any]) -> list[Any]:
        if not inputs:
            return []
        prompts = [{"prompt_token_ids": list(tokens)} for tokens in inputs]
        return list(self._llm.generate(prompts, params, use_tqdm=False))

    def _send(self, told: dict[str, Any]) -> None:
        self._llm.update_weights({"update_info": told})

    def _prove(self) -> None:
        """After the first load: the model took all that came, and nothing kept its value."""
        faults = []
        for unread, unfilled in self._llm.collective_rpc("evomerge_leftovers"):
            faults += [f"the model in vLLM does not take {name}" for name in unread]
            faults += [f"{name} of the model in vLLM would stay as it is" for name in unfilled]
        if faults:
            place = str(self._plan.folder)
            raise InputError(Fault(place, fault) for fault in dict.fromkeys(faults))
        self._proved = True


def _start(plan: ServerPlan, tokenizer: str) -> Any:
    from vllm import LLM

    there: dict[str, Any] = {"enforce_eager": True}
    if plan.gpus:
        there = {"gpu_memory_utilization": _free_share()}
    llm = LLM(
        str(plan.folder),
        tokenizer=tokenizer,
        dtype=plan.dtype,
        load_format="dummy",
        # One more than the input: a token is sampled after it, which never goes in.
        max_model_len=plan.length + 1,
        tensor_parallel_size=max(1, plan.gpus or plan.ranks),
        hf_overrides=dict(plan.changes),
        trust_remote_code=plan.trust_remote_code,
        enable_prefix_caching=True,
        worker_extension_cls=f"{_WORKER}.WorkerExtension",
        weight_transfer_config={"backend": "evomerge"},
        **there,
    )
    llm.init_weight_transfer_engine({"init_info": {}})
    return llm


def _free_share() -> float:
    """The share of an accelerator's memory that may be vLLM's, besides the merge engine's."""
    shares = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        shares.append(free / total)
    return _SHARE * min(shares, default=1.0)


@contextmanager
def _environment(plan: ServerPlan) -> Iterator[None]:
    """Settings that vLLM takes from the environment alone; whatever the user has set holds."""
    wanted = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if not plan.gpus:
        # Workers that share a machine must not all be bound to its first cores.
        wanted |= {
            "VLLM_CPU_KVCACHE_SPACE": _CPU_CACHE_GIB,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        if plan.threads:
            wanted["OMP_NUM_THREADS"] = str(plan.threads)
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _generation(plan: ServerPlan) -> dict[str, Any]:
    from transformers import GenerationConfig

    if not (plan.folder / "generation_config.json").is_file():
        return {}
    return dict(GenerationConfig.from_pretrained(plan.folder).to_diff_dict())


def _sampling(wanted: Mapping[str, float]) -> dict[str, Any]:
    return {**wanted, "top_k": int(wanted["top_k"])} if "top_k" in wanted else dict(wanted)


def _likelihood(ask: Ask, output: Any) -> Likelihood:
    count = len(ask.tokens)
    before = []
    for place in range(count - ask.before, count):
        one = output.prompt_logprobs[place][ask.tokens[place]]
        before.append((float(one.logprob), one.rank == 1))
    (answer,) = output.outputs
    told = answer.logprobs[0]
    last = {token: float(told[token].logprob) for token in ask.last}
    return Likelihood(tuple(before), last, int(answer.token_ids[0]))


def _written(output: Any) -> Written:
    (answer,) = output.outputs
    chosen = zip(answer.token_ids, answer.logprobs or (), strict=False)
    finite = all(not math.isnan(told[token].logprob) for token, told in chosen)
    return Written(tuple(answer.token_ids), finite)
