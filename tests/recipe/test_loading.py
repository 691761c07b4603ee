"""Files: several documents that use one another's results, and folders beside the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import RecipeWarning, load_recipe, load_recipes

FIRST = """\
name: mathful
models:
  - model: mistralai/Mistral-7B-v0.1
  - model: WizardLM/WizardMath-7B-V1.1
    parameters:
      density: 0.3
      weight: 1
merge_method: dare_ties
base_model: mistralai/Mistral-7B-v0.1
"""

SECOND = """\
models:
  - model: mathful
{weight}  - model: Intel/neural-chat-7b-v3-3
    parameters:
      weight: 1
merge_method: task_arithmetic
base_model: mistralai/Mistral-7B-v0.1
dtype: bfloat16
"""

WEIGHTED = SECOND.format(weight="    parameters: {weight: 1}\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def stage(name: str, *models: str) -> str:
    parts = "".join(f"  - {{model: {one}, parameters: {{weight: 1}}}}\n" for one in models)
    named = f"name: {name}\n" if name else ""
    return f"{named}models:\n{parts}merge_method: linear\n"


def message(file: Path) -> str:
    with pytest.raises(RecipeError) as refused:
        load_recipes(file)
    return str(refused.value)


def test_the_published_two_stage_recipe_lacks_a_weight(file: Path) -> None:
    file.write_text(FIRST + "---\n" + SECOND.format(weight=""))
    assert message(file) == (
        f"{file}:12: models[0]: mathful has no weight; every model but the base needs one "
        "(parameters: {weight: 1.0})"
    )


@pytest.mark.parametrize("texts", [(FIRST, WEIGHTED), (WEIGHTED, FIRST)])
def test_a_recipe_comes_after_those_that_it_uses(file: Path, texts: tuple[str, str]) -> None:
    file.write_text("---\n".join(texts))
    first, last = load_recipes(file)
    assert (first.name, last.name) == ("mathful", None)
    assert [str(model) for model in last.models_named] == [
        "mistralai/Mistral-7B-v0.1",
        "mathful",
        "Intel/neural-chat-7b-v3-3",
    ]


def test_the_faults_of_all_documents_come_together(file: Path) -> None:
    file.write_text(
        FIRST.replace("0.3", "3") + "---\n" + SECOND.format(weight="") + "---\n" + stage("", "a")
    )
    assert [line.split(": ")[0].rpartition(":")[2] for line in message(file).splitlines()] == [
        "6",
        "12",
        "20",
    ]
    assert "two recipes have no name; the other stands at" in message(file)


def test_a_circle_is_named(file: Path) -> None:
    file.write_text("---\n".join([stage("", "a"), stage("a", "x", "b"), stage("b", "a")]))
    assert "recipes need one another: a → b → a" in message(file)


def test_a_recipe_cannot_use_its_own_result(file: Path) -> None:
    file.write_text(stage("a", "a", "b"))
    assert "recipes need one another: a → a" in message(file)


def test_a_name_stands_once_and_has_no_sign_of_a_reference(file: Path) -> None:
    file.write_text("---\n".join([stage("a", "x"), stage("a", "y"), stage("b@c", "z")]))
    assert f"{file}:6: name: two recipes have the name 'a'" in message(file)
    assert f"{file}:11: name: 'b@c' is refused: a name is not empty and has no + or @" in message(
        file
    )


def test_a_result_that_nothing_uses_is_mentioned(file: Path) -> None:
    file.write_text("---\n".join([stage("a", "x"), stage("b", "y")]))
    with pytest.warns(
        RecipeWarning, match="no other recipe uses 'a'; only the last, b, is written"
    ):
        assert [recipe.name for recipe in load_recipes(file)] == ["a", "b"]


def test_one_recipe_is_one_recipe(file: Path) -> None:
    file.write_text(FIRST + "---\n" + WEIGHTED)
    with pytest.raises(RecipeError, match="holds 2 recipes; 1 is expected"):
        load_recipe(file)
    file.write_text("# nothing\n")
    with pytest.raises(RecipeError, match="holds no recipe"):
        load_recipe(file)
    with pytest.raises(RecipeError, match=r"missing\.yaml: cannot be read: No such file"):
        load_recipe(file.with_name("missing.yaml"))


def test_folders_are_found_from_here_else_beside_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for folder in (here / "code", tmp_path / "code", tmp_path / "maths", tmp_path / "lora"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    file.write_text(stage("", "code", "./maths+lora", "org/prose"))
    assert [str(model) for model in load_recipe(file).models_named] == [
        str(here / "code"),
        f"{tmp_path / 'maths'}+{tmp_path / 'lora'}",
        "org/prose",
    ]


def test_two_ways_to_write_one_folder_are_one_model(file: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    text = stage("", "base", "./base", "org/code")
    file.write_text(text)
    assert f"{tmp_path / 'base'} stands 2 times here" in message(file)


def test_a_stage_goes_before_a_folder_of_its_name(file: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file.write_text("---\n".join([stage("a", "x"), stage("", "a")]))
    assert [str(model) for model in load_recipes(file)[1].models_named] == ["a"]
