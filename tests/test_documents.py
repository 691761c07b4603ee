"""YAML with lines: places, duplicates, several documents, numbers, syntax errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evomerge.documents import (
    Document,
    key_name,
    near,
    read_document,
    read_documents,
    shown,
    unknown_key,
    validation_faults,
)
from evomerge.errors import InputError, RecipeError, SpaceError


def read(text: str) -> list[Document]:
    return read_documents(text, "a.yaml", SpaceError)


def messages(text: str) -> list[str]:
    with pytest.raises(SpaceError) as raised:
        read(text)
    return [str(fault) for fault in raised.value.faults]


def test_every_key_and_list_item_has_its_line() -> None:
    (document,) = read("a: 1\nb:\n  c: [1, 2]\n  d:\n  - x\n  - y: 3\n")
    assert document.data == {"a": 1, "b": {"c": [1, 2], "d": ["x", {"y": 3}]}}
    assert document.place(("a",)) == "a.yaml:1: a"
    assert document.place(("b", "c", 1)) == "a.yaml:3: b.c[1]"
    assert document.place(("b", "d", 1, "y")) == "a.yaml:6: b.d[1].y"
    assert document.place(()) == "a.yaml:1"


def test_a_key_that_is_missing_is_placed_at_its_parent() -> None:
    (document,) = read("# a comment\na:\n  b: 1\n")
    assert document.place(("a", "c", "d")) == "a.yaml:2: a.c.d"
    assert document.line(("nowhere",)) == 2


def test_several_documents_each_with_its_own_lines() -> None:
    first, second = read("a: 1\n---\n\na: 2\n---\n")
    assert (first.data, second.data) == ({"a": 1}, {"a": 2})
    assert (first.line(("a",)), second.line(("a",))) == (1, 4)


def test_every_duplicate_key_of_every_document_is_reported() -> None:
    assert messages("a: 1\nb: {c: 1, c: 2}\na: 3\n---\nd: 1\nd: 2\n") == [
        "a.yaml:2: b.c: stands twice; first on line 2",
        "a.yaml:3: a: stands twice; first on line 1",
        "a.yaml:6: d: stands twice; first on line 5",
    ]


def test_merge_keys_are_no_duplicates() -> None:
    (document,) = read("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n")
    assert document.data["y"] == {"a": 1, "b": 3}
    assert document.place(("y", "a")) == "a.yaml:2: y.a"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e3", -2500.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("+1e+2", 100.0),
        ("1_000e0", 1000.0),
        ("0.5", 0.5),
        ("3", 3),
    ],
)
def test_numbers(text: str, number: float) -> None:
    (document,) = read(f"a: {text}")
    assert document.data["a"] == number
    assert type(document.data["a"]) is type(number)


@pytest.mark.parametrize("text", ["e5", "1e", "v1e3", "1e3x", "'1e3'", "1.2.3e4"])
def test_what_only_looks_like_a_number_stays_text(text: str) -> None:
    assert isinstance(read(f"a: {text}")[0].data["a"], str)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_as_python_writes_it_is_read_back(number: float) -> None:
    assert read(f"a: {number!r}")[0].data["a"] == number


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("a: 'open\n", 2),
        ("a: 1\nb: *nowhere\n", 2),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2),
        ("a: 1\n? [x]\n: 2\n", 2),
    ],
)
def test_a_syntax_error_names_its_line(text: str, line: int) -> None:
    (message,) = messages(text)
    assert message.startswith(f"a.yaml:{line}: not valid YAML: ")


@pytest.mark.parametrize("text", ["a: \x00", "a: 2024-13-45"])
def test_other_unreadable_texts_are_refused_too(text: str) -> None:
    (message,) = messages(text)
    assert message.startswith("a.yaml: not valid YAML: ")
    assert "\n" not in message


def test_a_document_that_holds_itself_is_refused() -> None:
    assert messages("a: &x\n  b: *x\n") == ["a.yaml:2: a.b: refers to itself"]
    (shared,) = read("a: &x [1]\nb: *x\n")
    assert shared.data == {"a": [1], "b": [1]}


def test_the_callers_error_is_raised() -> None:
    with pytest.raises(RecipeError):
        read_documents("a: [", "r.yaml", RecipeError)


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: ü\n", encoding="utf-8")
    assert read_document(path, SpaceError).data == {"a": "ü"}
    problems = {
        "": "is empty",
        "# nothing\n---\n": "is empty",
        "a: 1\n---\nb: 1\n": "holds 2 YAML documents; 1 is expected",
    }
    for text, problem in problems.items():
        path.write_text(text)
        with pytest.raises(SpaceError) as raised:
            read_document(path, SpaceError)
        assert str(raised.value) == f"{path}: {problem}"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read: No such file"):
        read_document(tmp_path / "none.yaml", SpaceError)
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_document(tmp_path / "b.yaml", SpaceError)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(ge=1)
    names: tuple[str, ...] = Field(default=(), min_length=1)


class Outer(BaseModel):
    inner: Inner
    flags: dict[str, bool] = {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner: {count: 0}", ["a.yaml:1: inner.count: 0 is refused: must be at least 1"]),
        ("inner: {count: many}", ["a.yaml:1: inner.count: 'many' is refused: must be a whole"]),
        ("\ninner:\n  cnt: 1", ["inner.count: is missing and required", "inner.cnt: unknown key"]),
        ("inner: 3", ["a.yaml:1: inner: 3 is refused: must be a mapping"]),
        ("inner: {count: 1, names: x}", ["inner.names: 'x' is refused: must be a list"]),
        ("inner: {count: 1, names: []}", ["inner.names: [] is refused: must have at least 1 item"]),
        ("inner: {count: 1}\nflags:\n  a: 7", ["a.yaml:3: flags.a: 7 is refused: must be"]),
    ],
)
def test_validation_errors_in_our_words(text: str, expected: list[str]) -> None:
    (document,) = read(text)
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate(document.data)
    found = [str(fault) for fault in validation_faults(raised.value, document)]
    assert len(found) == len(expected)
    for message, part in zip(found, expected, strict=True):
        assert part in message


def test_names_and_values() -> None:
    assert key_name(("models", 1, "parameters", "weight")) == "models[1].parameters.weight"
    assert near("densty", ["weight", "density"]) == "did you mean 'density'? "
    assert near("zzz", ["weight"]) == ""
    assert unknown_key("x", ["a", "b"]) == "unknown key; allowed: a, b"
    assert len(shown("x" * 1000)) < 100
    assert len(shown(list(range(1000)))) < 100
