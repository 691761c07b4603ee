"""How the commands print: anybody's names, pipes, narrow terminals, poor encodings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from evomerge.cli.searching import Display
from evomerge.search.budget import Progress
from evomerge.search.records import TrialRecord
from tests.cli.worlds import EVOMERGE, World, run, said, strict_json, table, told


@pytest.fixture
def bracketed(world: World) -> World:
    """A world with the study ``na[b]`` of models in folders with brackets."""
    for old, new in (("add", "add[bold]"), ("most", "most:key:")):
        (world.models / old).rename(world.models / new)
    models = ["quickstart/models/add[bold]", "quickstart/models/most:key:"]
    result = run("search", world.space("na[b]", models=models), "--trials", 5)
    assert result.exit_code == 0, result.stderr
    for words in ("na[b]: scores", "only add[bold]", "only most:key:", "evomerge best na[b]"):
        assert words in said(result), words
    assert "Study na[b]:" in told(result)
    assert "only add[bold]" in told(result)
    return world


def test_names_in_brackets_are_no_markup(bracketed: World) -> None:
    best = run("best", "na[b]")
    assert best.exit_code == 0
    for words in ("Study na[b]:", "na[b]: scores", "only add[bold]", "only most:key:"):
        assert words in said(best), words
    again = run("search", "na[b].yaml", "--trials", 5)
    assert "Going on with study na[b]: 5 trials" in told(again)
    checked = run("check", "na[b].yaml")
    assert checked.exit_code == 0
    for words in ("│ add[bold] ", "weight/add[bold]/0", "only add[bold]", "only most:key:"):
        assert words in said(checked), words


def test_a_line_tells_whose_recipe_a_baseline_has_and_when_it_was_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    twin = TrialRecord(4, "baseline", "complete", 0.5, label="uniform × 2", twin=1)
    stopped = TrialRecord(5, "baseline", "pruned", label="only a", estimate=0.3, items=400)
    failed = TrialRecord(6, "baseline", "failed", label="only [b]", failure="out of [memory]")
    searched = TrialRecord(7, "search", "complete", 0.4)
    display = Display()
    for record in (twin, stopped, failed, searched):
        display.observe(record, Progress(4, 9, None, None, 1.0, None))
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "4 uniform × 2 0.5000 baseline 0.00 s, the recipe of trial 1",
        "5 only a ~0.3000 baseline 0.00 s, stopped after 400 items",
        "only [b] failed: out of [memory]",
    ]


def test_a_tag_that_closes_nothing_is_no_markup(world: World) -> None:
    shutil.copytree(world.models / "add", world.models / "x[/b]")
    models = ["quickstart/models/x[/b]", "quickstart/models/b]"]
    shutil.copytree(world.models / "most", world.models / "b]")
    space = world.space("closing", models=models)
    checked = run("check", space)
    assert checked.exit_code == 0, checked.stderr
    assert "x[/b]" in said(checked)
    searched = run("search", space, "--trials", 4)
    assert searched.exit_code == 0, searched.stderr
    assert "only x[/b]" in said(searched)
    assert "only x[/b]" in said(run("best", "closing"))
    (world.root / "a[").mkdir()
    lost = run("check", "a[/b]")
    assert lost.exit_code == 1
    assert "a[/b]" in told(lost)


def test_prose_in_a_pipe_is_not_broken(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for result in (run("best", "small"), run("search", "small.yaml", "--trials", 8)):
        assert result.exit_code == 0
        (line,) = [line for line in result.stdout.splitlines() if "held-out items" in line]
        assert "95 % interval" in line


def test_numbers_stay_whole_in_a_narrow_terminal(
    shared: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    fitness = table(shared.study("small")).fitness
    lines = run("best", "small").stdout.splitlines()
    for number, value in enumerate(fitness[:4]):
        (line,) = [line for line in lines if re.match(rf"│ +{number} │", line)]
        assert f" {value:.4f} │" in line
    checked = run("check", "small.yaml").stdout
    assert re.search(r"│ +\d\.\d MB │ +6 │", checked)
    assert "…" not in checked


def test_a_study_without_a_verdict(world: World) -> None:
    result = run("search", world.space(), "--trials", 4)
    assert "heldout.json" not in said(result)
    assert "(best.yaml, trials.csv, items.scores, provenance.json)" in said(result)
    best = said(run("best", "small"))
    assert (
        "There is no held-out result for the present winner: the search has not come to its end, "
        "or nothing could be proved."
    ) in best


def test_only_files_that_are_there_are_named(world: World) -> None:
    result = run("search", world.space(), "--timeout", 0, "--trials", 5)
    assert result.exit_code == 0
    assert "Files: studies/small/ (trials.csv, provenance.json)" in said(result)
    assert "best.yaml" not in said(result)
    assert "No trial has succeeded. The same command goes on where it stopped." in said(result)


def test_an_encoding_that_lacks_characters(world: World) -> None:
    (world.models / "most").rename(world.models / "möst")
    models = ["quickstart/models/add", "quickstart/models/möst"]
    space = world.space("grün", models=models)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    def ascii_only(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*EVOMERGE, *(str(word) for word in words)],
            cwd=world.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert run("search", space, "--trials", 4).exit_code == 0
    best = ascii_only("best", "grün")
    assert best.returncode == 0, best.stderr
    assert "Study gr?n: 4 complete" in best.stdout
    assert "only m?st" in best.stdout
    # What other programs read is whole, or refused.
    in_json = strict_json(ascii_only("best", "grün", "--json").stdout)
    assert in_json["study"] == "grün"
    export = ascii_only("export", "grün")
    assert export.returncode == 1
    assert "'\\xf6'" in export.stderr
    assert "--output" in export.stderr
    assert "Traceback" not in best.stderr + export.stderr
    lost = ascii_only("best", "größe")
    assert lost.returncode == 1
    assert "studies below studies/: gr?n" in lost.stderr
