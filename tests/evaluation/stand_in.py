"""A stand-in for the package ``vllm`` where it is not installed: the calls that evomerge makes.

It runs a ``transformers`` model, and keeps what vLLM keeps: a request's room, the answers cached by
prefix until they are dropped (though the weights have changed), an update session.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

VERSION = "0.32.0"
REGISTRY = """
class ModelRegistry:
    @staticmethod
    def get_supported_archs():
        return {"LlamaForCausalLM", "GPT2LMHeadModel"}
"""


@dataclass
class SamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None


class LLM:
    """An engine; the ones that were started are in ``started``, the last one last."""

    started: list[LLM] = []  # noqa: RUF012 - reset by ``install``

    def __init__(self, model: str, *, tokenizer: str, **options: Any) -> None:
        assert options["load_format"] == "dummy", "weights would be read only to be replaced"
        assert options["weight_transfer_config"] == {"backend": "evomerge"}
        torch.manual_seed(99)
        config = AutoConfig.from_pretrained(model, **options["hf_overrides"])
        self.model = AutoModelForCausalLM.from_config(config).eval()
        self.model.to(getattr(torch, options["dtype"]))
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.options = options
        self.updates: list[dict[str, Any]] = []
        self.closed = False
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shut))
        self._cache: dict[tuple[int, ...], torch.Tensor] = {}
        self._updating = False
        self._unread: list[str] = []
        self._written: set[str] = set()
        LLM.started.append(self)

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        assert request == {"init_info": {}}

    def start_weight_update(self) -> None:
        assert not self._updating, "an update is under way"
        self._updating = True

    def update_weights(self, request: dict[str, Any]) -> None:
        assert self._updating
        told = request["update_info"]
        self.updates.append(told)
        if told.get("abandoned"):
            return
        assert Path(told["path"]).stat().st_size == told["size"]
        held = torch.from_file(told["path"], True, told["size"], dtype=torch.uint8)
        state = self.model.state_dict()
        for name, kind, shape, start in told["tensors"]:
            if name not in state:
                self._unread.append(name)
                continue
            source = torch.empty(shape, dtype=getattr(torch, kind))
            source.view(-1).view(torch.uint8).copy_(held[start : start + source.nbytes])
            state[name].copy_(source)
            self._written.add(name)

    def finish_weight_update(self) -> None:
        assert self._updating
        self._updating = False

    def collective_rpc(self, method: str) -> list[tuple[list[str], list[str]]]:
        assert method == "evomerge_leftovers"
        names = {name for name, _ in self.model.named_parameters()}
        return [(self._unread, sorted(names - self._written))] * 2  # of two ranks

    def reset_prefix_cache(self) -> bool:
        self._cache.clear()
        return True

    @torch.inference_mode()
    def generate(
        self, prompts: list[dict[str, Any]], params: list[SamplingParams], use_tqdm: bool = True
    ) -> list[Any]:
        assert not self._updating
        return [
            self._answer(prompt["prompt_token_ids"], one)
            for prompt, one in zip(prompts, params, strict=True)
        ]

    def _answer(self, prompt: list[int], params: SamplingParams) -> Any:
        assert len(prompt) + params.max_tokens <= self.options["max_model_len"], "no room"
        scored = None
        if params.prompt_logprobs is not None:  # vLLM reads no cached prefix then
            scored = [None, *map(self._told, self._logits(prompt), prompt[1:])]
        written: list[int] = []
        told = []
        while len(written) < params.max_tokens:
            logits = self._last_logits([*prompt, *written])
            token = self._choice(logits, params, len(written))
            written.append(token)
            asked = [token, *(params.logprob_token_ids or ())]
            told.append({k: v for one in asked for k, v in self._told(logits, one).items()})
            text = self.tokenizer.decode(written, skip_special_tokens=params.skip_special_tokens)
            if token == self.model.config.eos_token_id or any(s in text for s in params.stop):
                break
        answer = SimpleNamespace(token_ids=written, logprobs=told)
        return SimpleNamespace(prompt_logprobs=scored, outputs=[answer])

    def _choice(self, logits: torch.Tensor, params: SamplingParams, step: int) -> int:
        if params.temperature == 0.0:
            return int(logits.argmax())
        generator = torch.Generator().manual_seed(1000 * (params.seed or 0) + step)
        chances = (logits / params.temperature).nan_to_num().softmax(-1)
        return int(torch.multinomial(chances, 1, generator=generator))

    def _last_logits(self, tokens: list[int]) -> torch.Tensor:
        key = tuple(tokens)
        if key not in self._cache:
            self._cache[key] = self._logits(tokens)[-1]
        return self._cache[key]

    def _logits(self, tokens: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([tokens])).logits[0].float()

    @staticmethod
    def _told(logits: torch.Tensor, token: int) -> dict[int, Any]:
        value = logits.log_softmax(-1)[token]
        rank = int((logits > logits[token]).sum()) + 1
        return {token: SimpleNamespace(logprob=float(value), rank=rank)}

    def _shut(self) -> None:
        self.closed = True


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, release: str = VERSION) -> type[LLM]:
    """Put the stand-in where ``vllm`` is looked for, with its release."""
    information = folder / f"vllm-{release}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n"
    )
    (folder / "vllm.py").write_text(REGISTRY)
    monkeypatch.syspath_prepend(str(folder))
    # A process of its own is asked what vLLM knows.
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    module = ModuleType("vllm")
    module.LLM = LLM  # type: ignore[attr-defined]
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "started", [])
    return LLM
