"""Models that do not fit are told apart before anything is merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.checkpoints import Checkpoint, compare
from tests.checkpoints.worlds import (
    SIZE,
    WORDS,
    edit_json,
    make,
    rewrite,
    save,
    stored,
    write_tokenizer,
)


def said(first: Path, *others: Path) -> list[str]:
    return [str(f) for f in compare([Checkpoint.open(str(p)) for p in (first, *others)])]


def other(folder: Path, words: tuple[str, ...] = WORDS, added: int = 4, **changes: object) -> Path:
    save(make("llama", seed=1, **changes), folder, tokenizer=False)
    write_tokenizer(folder, words, added)
    return folder


def test_fine_tuned_versions_fit(llama: Path, tmp_path: Path) -> None:
    assert said(llama) == []
    assert said(llama, other(tmp_path / "a"), other(tmp_path / "b")) == []


def test_models_without_tokenizers_are_compared_by_their_tensors(
    llama: Path, tmp_path: Path
) -> None:
    assert said(llama, save(make("llama"), tmp_path, tokenizer=False)) == []


def test_shapes_name_tensor_shapes_and_both_models(llama: Path, tmp_path: Path) -> None:
    faults = said(llama, other(tmp_path, intermediate_size=32))
    first = f"{tmp_path}: model.layers.0.mlp.down_proj.weight: has shape [16, 32], but [16, 24]"
    assert faults[0].startswith(f"{first} in {llama}; only fine-tuned versions of one model")
    assert faults[-1] == f"{tmp_path}: 1 more tensors have other shapes than {llama}'s"
    assert len(faults) == 6


def test_vocabularies_of_other_sizes_fit_where_numbers_agree(llama: Path, tmp_path: Path) -> None:
    taller = other(tmp_path, (*WORDS, "x", "y"), vocab_size=SIZE + 2)
    assert said(llama, taller) == []
    assert said(taller, llama) == []


def test_a_head_of_another_height_than_its_embeddings_is_told(llama: Path, tmp_path: Path) -> None:
    folder = other(tmp_path)
    state = stored(folder)
    state["lm_head.weight"] = state["lm_head.weight"][:60].clone()
    rewrite(folder, state)
    (fault,) = said(llama, folder)
    assert fault == (
        f"{folder}: lm_head.weight: has shape [60, 16], but [64, 16] in {llama}; its own "
        f"model.embed_tokens.weight has 64 rows in {folder}; only fine-tuned versions of one model "
        "can be merged"
    )


def test_missing_and_extra_tensors_are_gathered(llama: Path, tmp_path: Path) -> None:
    faults = said(llama, other(tmp_path, num_hidden_layers=1))
    assert len(faults) == 1
    assert "lacks model.layers.1.input_layernorm.weight" in faults[0]
    assert "and 4 more" in faults[0]
    faults = said(tmp_path, llama)
    assert "has model.layers.1.input_layernorm.weight" in faults[0]


def test_a_shared_output_head_fits_one_of_its_own(llama: Path, tmp_path: Path) -> None:
    save(make("tied"), tmp_path / "tied")
    assert said(tmp_path / "tied", llama) == []
    assert said(llama, tmp_path / "tied") == []


def test_a_head_that_is_missing_is_told(llama: Path, tmp_path: Path) -> None:
    folder = other(tmp_path)
    state = stored(folder)
    del state["lm_head.weight"]
    rewrite(folder, state)
    (fault,) = said(llama, folder)
    assert "lacks lm_head.weight" in fault
    assert "shares its output head with its embeddings" in fault


def test_a_shared_head_that_is_stored_twice_fits(tmp_path: Path) -> None:
    save(make("tied"), tmp_path / "once")
    save(make("tied", seed=1), tmp_path / "twice")
    state = stored(tmp_path / "twice")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    rewrite(tmp_path / "twice", state)
    assert said(tmp_path / "once", tmp_path / "twice") == []
    assert said(tmp_path / "twice", tmp_path / "once") == []


def test_a_head_that_came_untied_fits_as_a_whole(tmp_path: Path) -> None:
    """A base with tied copies that differ has two tensors; a tied model answers for both."""
    save(make("tied"), tmp_path / "untied")
    state = stored(tmp_path / "untied")
    rewrite(tmp_path / "untied", state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1})
    save(make("tied", seed=1), tmp_path / "tied")
    assert said(tmp_path / "untied", tmp_path / "tied") == []


def test_heads_of_other_widths_are_told(llama: Path, tmp_path: Path) -> None:
    # 8 heads of 2 give the tensors of 4 heads of 4.
    changes = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 2}
    faults = said(llama, other(tmp_path, **changes))
    assert len(faults) == 3
    assert all("only fine-tuned versions" in fault for fault in faults)


def test_tokens_with_other_numbers_are_told(llama: Path, tmp_path: Path) -> None:
    swapped = (*WORDS[:-2], WORDS[-1], WORDS[-2])
    (fault,) = said(llama, other(tmp_path, swapped))
    assert fault.startswith(f"{tmp_path}: tokenizer: gives 2 tokens other numbers than {llama} (")
    assert "'w58' is 63, not 62" in fault
    assert "model.embed_tokens.weight" in fault
    assert "tokenizer_source: base (or union, or a model)" in fault
    by_token = [Checkpoint.open(str(path)) for path in (llama, tmp_path)]
    assert compare(by_token, vocabularies=False) == []


def test_other_trained_tokens_are_told(llama: Path, tmp_path: Path) -> None:
    (fault,) = said(llama, other(tmp_path, (*WORDS[:-1], "strange")))
    assert "63 is 'strange', not 'w59'" in fault


def test_a_renamed_special_token_fits(llama: Path, tmp_path: Path) -> None:
    assert said(llama, other(tmp_path, ("<|im_start|>", *WORDS[1:]))) == []


def test_tokens_beyond_the_embeddings_do_not_count(tmp_path: Path) -> None:
    first = other(tmp_path / "a", (*WORDS, "x", "y"))
    second = other(tmp_path / "b", (*WORDS, "y", "x"))
    assert said(first, second) == []


@pytest.mark.parametrize("form", ["vocab.json", "vocab.txt"])
def test_older_forms_of_vocabularies_are_read(form: str, llama: Path, tmp_path: Path) -> None:
    import json

    for name, words in (("same", WORDS), ("other", WORDS[::-1])):
        folder = save(make("llama"), tmp_path / name, tokenizer=False)
        trained = {word: number for number, word in enumerate(words)}
        text = json.dumps(trained) if form == "vocab.json" else "\n".join(words) + "\n"
        (folder / form).write_text(text)
    assert said(llama, tmp_path / "same") == []
    assert "gives 64 tokens other numbers" in said(llama, tmp_path / "other")[0]


def test_a_unigram_vocabulary_counts_places(llama: Path, tmp_path: Path) -> None:
    folder = other(tmp_path)
    model = {"type": "Unigram", "vocab": [[word, -1.0] for word in WORDS]}
    edit_json(folder / "tokenizer.json", model=model)
    assert said(llama, folder) == []


def test_a_damaged_tokenizer_is_told(llama: Path, tmp_path: Path) -> None:
    folder = other(tmp_path)
    (folder / "tokenizer.json").write_text('{"version": 1}')
    assert "no vocabulary that is understood" in said(llama, folder)[0]


def test_configurations_may_differ_elsewhere(llama: Path, tmp_path: Path) -> None:
    folder = other(tmp_path)
    edit_json(folder / "config.json", max_position_embeddings=128)
    assert said(llama, folder) == []
