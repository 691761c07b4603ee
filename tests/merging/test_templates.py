"""Chat templates: names become texts, ``auto`` is what most models have."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from jinja2 import Environment
from transformers import AutoTokenizer

from evomerge.errors import RecipeError
from evomerge.merging import write_merge
from evomerge.search.single import open_model
from tests.merging.speakers import WORDS, blend, speaker

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "Sure?"},
]


def written(folder: Path, name: str, **said: str) -> str:
    """What a model merged with a template renders, written and live alike."""
    plain = speaker(folder / "plain", template="{{ 'own' }}")
    recipe = blend(plain, chat_template=name, **said)
    write_merge([recipe], folder / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    live = open_model([recipe], device="cpu").tokenizer
    again = live.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert again == rendered
    return str(rendered)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nTwo and two?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nFour.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "alpaca",
            "Be brief.\n\n### Instruction:\nTwo and two?\n\n### Response:\nFour.\n\n"
            "### Instruction:\nSure?\n\n### Response:\n",
        ),
        (
            "exaone",
            "[|system|]Be brief.[|endofturn|]\n[|user|]Two and two?\n"
            "[|assistant|]Four.[|endofturn|]\n[|user|]Sure?\n[|assistant|]",
        ),
        ("{{ messages[0]['content'] }}", "Be brief."),
    ],
)
def test_a_name_is_a_template(name: str, expected: str, tmp_path: Path) -> None:
    assert written(tmp_path, name) == expected


@pytest.mark.parametrize("name", ["chatml", "mistral"])
def test_mergekit_renders_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    source = resources.files("mergekit._data.chat_templates").joinpath(f"{name}.jinja")
    theirs = Environment(trim_blocks=True, lstrip_blocks=True).from_string(source.read_text())
    rendered = theirs.render(
        messages=MESSAGES, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert written(tmp_path, name) == rendered


def test_auto_is_what_most_models_have(tmp_path: Path) -> None:
    templates = ("{{ 'a' }}", "{{ 'b' }}", "{{ 'b' }}\n", None)
    models = [
        speaker(tmp_path / str(number), seed=number, template=template)
        for number, template in enumerate(templates)
    ]
    write_merge([blend(*models[:3], chat_template="auto")], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ 'b' }}"
    write_merge([blend(*models[:2], chat_template="auto")], tmp_path / "first")
    assert AutoTokenizer.from_pretrained(tmp_path / "first").chat_template == "{{ 'a' }}"
    write_merge([blend(models[3], chat_template="auto")], tmp_path / "none")
    assert AutoTokenizer.from_pretrained(tmp_path / "none").chat_template is None


def test_a_union_keeps_the_bases_template(tmp_path: Path) -> None:
    first = speaker(tmp_path / "a", template="{{ 'a' }}")
    second = speaker(tmp_path / "b", WORDS, ("<b>",), seed=1, template="{{ 'b' }}")
    for source, template in (("union", "{{ 'a' }}"), (str(second.folder), "{{ 'b' }}")):
        out = tmp_path / f"out-{source == 'union'}"
        recipe = blend(first, second, tokenizer_source=source)
        with pytest.warns(UserWarning, match="tokenizer_source"):
            write_merge([recipe], out)
        assert AutoTokenizer.from_pretrained(out).chat_template == template


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    plain = speaker(tmp_path / "plain")
    with pytest.raises(RecipeError, match=r"allowed: auto, alpaca, chatml, exaone, llama3, mist"):
        write_merge([blend(plain, chat_template="chitchat")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
