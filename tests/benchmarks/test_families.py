"""The families of the search's benchmark: built alike each time, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from evomerge.api import check
from tests.benchmarks.families import FAMILIES, Family, texts
from tests.benchmarks.families.building import build_skilled
from tests.benchmarks.families.skilled import HARM
from tests.benchmarks.families.training import Phase, Run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_BENCH", str(tmp_path))
    return tmp_path


def tiny(folder: Path) -> None:
    phase = Phase(("add", "most"), 2, 1e-3, junk=0.3, replay=0.2, layers=(1, 2))
    base = Run("base", (replace(phase, layers=None),), 1)
    build_skilled(replace(HARM, base=base, tuned=(Run("half", (phase,), 2),)), folder)


def weights(space: Path) -> dict[str, str]:
    found = (space.parent / "models").glob("*/model.safetensors")
    return {path.parent.name: sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.slow
def test_a_family_is_a_space_and_the_same_when_it_is_built_again(cache: Path) -> None:
    first, second = (Family(name, "", True, tiny).build() for name in ("tiny", "again"))
    assert weights(first) == weights(second)
    assert len(set(weights(first).values())) == 2
    prepared = check(first)
    assert prepared.search_items.requests[0].items == HARM.items
    assert prepared.holdout_items is not None
    assert len(prepared.holdout_items) == 4000
    stamp = first.stat().st_mtime_ns
    assert Family("tiny", "", True, tiny).build().stat().st_mtime_ns == stamp


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError])
def test_a_build_that_breaks_off_leaves_nothing(problem: type[BaseException], cache: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise problem

    with pytest.raises(problem):
        Family("broken", "", True, fails).build()
    assert not list(cache.iterdir())


@pytest.mark.parametrize("kind", texts.KINDS)
def test_no_file_of_the_texts_serves_two_parts(kind: str) -> None:
    files = texts.files(kind)
    parts = {part: {f for f in files if texts.part_of(f) == part} for part in texts.PARTS}
    assert all(len(found) > 10 for found in parts.values())
    assert sum(map(len, parts.values())) == len(files)
    items = texts.clozes(kind, "search", 20)
    assert items == texts.clozes(kind, "search", 20)
    held_out = texts.clozes(kind, "heldout", 200)
    asked = {item["prompt"] + item["choices"][item["answer"]] for item in held_out}
    assert len(asked) == len(held_out)
    for part in ("train", "search"):
        seen = texts.read(kind, part).decode()
        assert not any(text in seen for text in asked), part
        assert not any(one["text"] in seen for one in texts.passages(kind, "heldout", 50))
    text = texts.read(kind, "search").decode()
    for item in items:
        assert item["prompt"] + item["choices"][item["answer"]] in text
        assert len(set(item["choices"])) == texts.CHOICES


def test_families_have_keys_of_their_own() -> None:
    assert len({family.key for family in FAMILIES.values()}) == len(FAMILIES) >= 5
