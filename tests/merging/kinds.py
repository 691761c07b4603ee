"""Families of small models of many architectures, as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.merging.worlds import Family

_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS = {**_TEXT, "head_dim": 8}
_ENCODER = {key: value for key, value in _TEXT.items() if key != "num_key_value_heads"}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _gpt2() -> Any:
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **tokens))


def _llava() -> Any:
    text, vision = hf.LlamaConfig(**_TEXT), hf.CLIPVisionConfig(**_VISION)
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=39)
    )


def _gemma3_vision() -> Any:
    text = {**_HEADS, "sliding_window": 8}
    config = hf.Gemma3Config(text_config=text, vision_config=_VISION, mm_tokens_per_image=4)
    return hf.Gemma3ForConditionalGeneration(config)


def _qwen3_vl_moe() -> Any:
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    vision = {"depth": 4, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
    return hf.Qwen3VLMoeForConditionalGeneration(
        hf.Qwen3VLMoeConfig(
            text_config={**_HEADS, **experts, "rope_parameters": rope},
            vision_config={**vision, "out_hidden_size": 16, "deepstack_visual_indexes": [1]},
        )
    )


def _deepseek() -> Any:
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "v_head_dim": 8}
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**_TEXT, **ranks, **experts, **groups))


def _opt() -> Any:
    sizes = {"vocab_size": 40, "hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 8}
    return hf.OPTForCausalLM(
        hf.OPTConfig(**sizes, num_hidden_layers=3, num_attention_heads=2, pad_token_id=0)
    )


def _gpt_oss() -> Any:
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8}
    layers = {"layer_types": ["full_attention"] * 3}
    return hf.GptOssForCausalLM(hf.GptOssConfig(**_TEXT, **experts, **layers))


def _one_expert() -> Any:
    experts = {"num_local_experts": 1, "num_experts_per_tok": 1, "head_dim": 8}
    layers = {"layer_types": ["full_attention"] * 3, "intermediate_size": 16}
    return hf.GptOssForCausalLM(hf.GptOssConfig(**{**_TEXT, **experts, **layers}))


def _jamba() -> Any:
    experts = {"num_experts": 2, "num_experts_per_tok": 1}
    mamba = {"mamba_d_state": 4, "mamba_d_conv": 2, "mamba_dt_rank": 4}
    layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "tie_word_embeddings": False}
    return hf.JambaForCausalLM(hf.JambaConfig(**{**_TEXT, **experts, **mamba, **layers}))


KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_HEADS, tie_word_embeddings=True)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_HEADS, sliding_window=8)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_HEADS, sliding_window=8)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**_TEXT, num_local_experts=3)),
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**_HEADS, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12)
    ),
    "nomic_bert": lambda: hf.NomicBertForMaskedLM(hf.NomicBertConfig(**_ENCODER)),
    "qwen3_vl_moe": _qwen3_vl_moe,
    "gpt2": _gpt2,
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**_ENCODER)),
    "bert_classifier": lambda: hf.BertForSequenceClassification(
        hf.BertConfig(**_ENCODER, num_labels=3)
    ),
    "llava": _llava,
    "gemma3_vision": _gemma3_vision,
}
"""Model builders by name; every model has three layers of text."""

LAYERS = 3

OTHERS: dict[str, Callable[[], Any]] = {
    "deepseek": _deepseek,
    "opt": _opt,
    "gpt_oss": _gpt_oss,
    "one_expert": _one_expert,
    "jamba": _jamba,
}
"""Kinds for single tests."""


def write_kind(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Family:
    """A base model and two fine-tuned ones, all random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (KINDS | OTHERS)[kind]().to(dtype)
    random = torch.Generator().manual_seed(1)
    parameters = list(model.parameters())
    base = [torch.randn(one.shape, generator=random).mul_(0.2) for one in parameters]
    paths = [folder / name for name in ("base", "code", "maths")]
    for number, path in enumerate(paths):
        for parameter, values in zip(parameters, base, strict=True):
            change = torch.randn(values.shape, generator=random).mul_(0.05)
            parameter.data.copy_(values + change if number else values)
        model.save_pretrained(path)
    return Family(paths[0], tuple(paths[1:]))


def logits(model: torch.nn.Module) -> torch.Tensor:
    """What a model says to a few tokens."""
    tokens = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 3, 6, 5]])
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(input_ids=tokens).logits
    return answer
