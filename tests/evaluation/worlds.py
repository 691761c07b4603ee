"""Small tasks, a small tokenizer and a small model: made on the spot, nothing downloaded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

NOUNS = ["cat", "dog", "bird", "fish", "tree", "stone", "river", "cloud"]
NOUNS += ["house", "road", "king", "queen", "ship", "star", "fire"]
VERBS = ["sees", "likes", "finds", "takes", "brings", "hides", "sings", "to"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% if not (loop.last and m['role'] == 'assistant') %}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def sentence(rng: random.Random, words: int = 6) -> str:
    return " ".join(rng.choice(NOUNS if i % 2 == 0 else VERBS) for i in range(words))


def make_tokenizer(*, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((sentence(rng) for _ in range(300)), trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, length: int = 96) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        # Random weights are almost indifferent between tokens; sharper ones tell errors apart.
        model.lm_head.weight.mul_(12.0)
    return model


@dataclass(frozen=True)
class TaskFolder:
    """A folder of task definitions with their data, for ``include_path``."""

    path: Path

    def add(self, name: str, documents: Mapping[str, list[dict[str, Any]]], **config: Any) -> str:
        """Write a task; ``documents`` holds its splits."""
        files = {}
        for split, rows in documents.items():
            file = self.path / f"{name}.{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(file)
        definition = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "metadata": {"version": 1.0},
            **config,
        }
        return self.write(name, definition)

    def write(self, name: str, definition: Mapping[str, Any]) -> str:
        (self.path / f"{name}.yaml").write_text(yaml.safe_dump(dict(definition)))
        return name


def metrics(*names: str, higher_is_better: bool = True, **more: Any) -> list[dict[str, Any]]:
    return [
        {"metric": name, "aggregation": "mean", "higher_is_better": higher_is_better, **more}
        for name in names
    ]


def choice_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        choices = [" ".join(rng.sample(NOUNS, rng.randint(1, 3))) for _ in range(rng.randint(2, 4))]
        rows.append(
            {
                "question": sentence(rng, rng.randint(3, 9)),
                "choices": choices,
                "label": rng.randrange(len(choices)),
            }
        )
    return rows


def text_rows(count: int, seed: int = 1, words: tuple[int, int] = (3, 12)) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"text": sentence(rng, rng.randint(*words)), "last": " " + rng.choice(NOUNS)}
        for _ in range(count)
    ]


CHOICES: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": metrics("acc", "acc_norm"),
}


def add_choices(folder: TaskFolder, name: str, count: int = 24, seed: int = 0, **more: Any) -> str:
    documents = {"test": choice_rows(count, seed)}
    if "fewshot_split" in more or "training_split" in more:
        documents["train"] = choice_rows(30, seed + 100)
    return folder.add(name, documents, **{**CHOICES, **more})


def add_one_letter(folder: TaskFolder, name: str) -> str:
    """One-token choices after the same context, as in MMLU."""
    return add_choices(
        folder,
        name,
        doc_to_text="{{question}}\nAnswer:",
        doc_to_choice=["A", "B"],
        doc_to_target="{{label % 2}}",
    )


def add_last_word(folder: TaskFolder, name: str, count: int = 20) -> str:
    return folder.add(
        name,
        {"test": text_rows(count)},
        output_type="loglikelihood",
        doc_to_text="{{text}}",
        doc_to_target="{{last}}",
        metric_list=[
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    )


def add_rolling(folder: TaskFolder, name: str, count: int = 8) -> str:
    """Texts of up to several windows of the model."""
    return folder.add(
        name,
        {"test": text_rows(count, words=(3, 150))},
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": "word_perplexity"},
            {"metric": "byte_perplexity"},
            {"metric": "bits_per_byte"},
        ],
    )


def add_writing(folder: TaskFolder, name: str, count: int = 14, **more: Any) -> str:
    return folder.add(
        name,
        {"test": text_rows(count, seed=3)},
        **{
            "output_type": "generate_until",
            "doc_to_text": "{{text}} to",
            "doc_to_target": "s",
            "generation_kwargs": {"until": [" s", "\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": metrics("exact_match", ignore_case=True),
            "filter_list": [
                {"name": "whole", "filter": [{"function": "take_first"}]},
                {
                    "name": "first-letter",
                    "filter": [
                        {"function": "regex", "regex_pattern": "([a-z])"},
                        {"function": "take_first"},
                    ],
                },
            ],
            **more,
        },
    )


def make_gpt2(tokenizer: PreTrainedTokenizerFast, *, length: int = 96) -> Any:
    """Learned absolute positions, which a wrong padding would shift."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=length,
        n_embd=32,
        n_layer=2,
        n_head=4,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20.0)
        model.transformer.wpe.weight.mul_(20.0)
        model.lm_head.weight.mul_(40.0)
    return model


Adder = Callable[[TaskFolder, str], str]
