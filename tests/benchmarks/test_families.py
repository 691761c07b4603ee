"""The families of the search's benchmark: built alike each time, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from evomerge.api import check
from tests.benchmarks.families import FAMILIES, Family, texts
from tests.benchmarks.families.building import build_skilled
from tests.benchmarks.families.keys import Origin, of_skilled
from tests.benchmarks.families.skilled import HARM, NULL
from tests.benchmarks.families.training import Phase, Run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_BENCH", str(tmp_path))
    return tmp_path


def family(name: str, make: Callable[[Path], None]) -> Family:
    return Family(name, "", True, make, lambda: Origin("plan", (), {}))


def tiny(folder: Path) -> None:
    phase = Phase(("add", "most"), 2, 1e-3, junk=0.3, replay=0.2, layers=(1, 2))
    base = Run("base", (replace(phase, layers=None),), 1)
    build_skilled(replace(HARM, base=base, tuned=(Run("half", (phase,), 2),)), folder)


def weights(space: Path) -> dict[str, str]:
    found = (space.parent / "models").glob("*/model.safetensors")
    return {path.parent.name: sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.slow
def test_a_family_is_a_space_and_the_same_when_it_is_built_again(cache: Path) -> None:
    first, second = (family(name, tiny).build() for name in ("tiny", "again"))
    assert weights(first) == weights(second)
    assert len(set(weights(first).values())) == 2
    prepared = check(first)
    assert prepared.search_items.requests[0].items == HARM.items
    assert prepared.holdout_items is not None
    assert len(prepared.holdout_items) == 4000
    stamp = first.stat().st_mtime_ns
    assert family("tiny", tiny).build().stat().st_mtime_ns == stamp


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError])
def test_a_build_that_breaks_off_leaves_nothing(problem: type[BaseException], cache: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise problem

    with pytest.raises(problem):
        family("broken", fails).build()
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
        assert len("".join(item["prompt"].split())) >= texts.CONTEXT / 2
    answers = [item["answer"] for item in held_out]
    assert set(answers) == set(range(texts.CHOICES))


@pytest.mark.parametrize("kind", texts.KINDS)
def test_how_common_a_choice_is_does_not_tell_that_it_is_right(kind: str) -> None:
    seen = texts.read(kind, "train").decode()
    items = texts.clozes(kind, "heldout", 150)
    counts = [[seen.count(choice) for choice in item["choices"]] for item in items]
    right = [c.index(max(c)) == item["answer"] for c, item in zip(counts, items, strict=True)]
    assert sum(right) / len(right) < 0.4  # a guess among four is right in 0.25


def test_what_killed_builds_left_is_removed_and_what_others_build_is_not(cache: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for half in (".other-0123456789.", ".broken-0123456789."):
        for process in (dead.pid, os.getppid()):
            (cache / f"{half}{process}" / "models").mkdir(parents=True)
    (cache / ".other-0123456789.backup").mkdir()
    family("fresh", lambda folder: (folder / "space.yaml").touch()).build()
    left = {path.name for path in cache.iterdir() if not path.name.startswith("fresh-")}
    alive = os.getppid()
    kept = {f".other-0123456789.{alive}", f".broken-0123456789.{alive}", ".other-0123456789.backup"}
    assert left == kept


def test_families_have_keys_of_their_own() -> None:
    assert len({family.key for family in FAMILIES.values()}) == len(FAMILIES) >= 5


def test_a_key_changes_with_what_the_family_is_made_from_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    script, data = tmp_path / "train.py", tmp_path / "items.jsonl"
    script.write_text("rate = 1e-3\n")
    data.write_text("{}\n")
    origin = Origin("plan", (script, data), {"torch": "2.13.0"})
    digest = origin.digest()
    script.write_text("# as fast as it goes\nrate  =  1e-3\n")
    assert origin.digest() == digest
    assert replace(origin, plan="another").digest() != digest
    assert replace(origin, versions={"torch": "2.14.0"}).digest() != digest
    assert replace(origin, files=(script,)).digest() != digest
    script.write_text("rate = 2e-3\n")
    changed = origin.digest()
    data.write_text('{"answer": 1}\n')
    assert len({digest, changed, origin.digest()}) == 3


def test_a_family_on_the_skills_has_the_key_of_its_own_trainings() -> None:
    assert FAMILIES["harm"].key == f"harm-{of_skilled(HARM).digest()}"
    longer = replace(HARM.base, phases=(replace(HARM.base.phases[0], steps=1501),))
    others = (replace(HARM, base=longer), replace(HARM, items=101), NULL)
    assert of_skilled(HARM).digest() not in {of_skilled(other).digest() for other in others}
