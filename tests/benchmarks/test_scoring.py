"""The benchmark of scoring: its counts, and the whole of it on a model of no size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge.evaluation import Scorer
from tests.benchmarks.counting import Least, counted, matrix_rate
from tests.benchmarks.questions import ROWS, SHOTS, Wanted
from tests.benchmarks.scored import Scored
from tests.benchmarks.scoring import main
from tests.benchmarks.shapes import PRESETS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def test_both_programs_are_measured_and_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    arguments = ["--rows", "five-shot", "--shape", "tiny", "--items", "3", "--dtype", "float32"]
    arguments += ["--batch-sizes", "4", "--their-repetitions", "1", "--repetitions", "2"]
    assert main([*arguments, "--threads", "1", "--json", str(file)]) == 0
    (result,) = json.loads(file.read_text())["results"]
    assert result["way"] == "prefix tree"
    assert result["tokens"] == result["least"]["tokens"]
    assert len(result["ours"]) == 2
    assert len(result["theirs"]["4"]) == 1
    assert result["difference"] <= 1e-4
    told = capsys.readouterr().out
    assert "times faster" in told
    assert "tokens encoded over" in told


def test_the_rows_are_what_they_are_called(tmp_path: Path) -> None:
    wanted = Wanted(tmp_path, PRESETS["tiny"], torch.float32, CPU, items=3)
    sizes = {}
    for name in ("zero-shot", "five-shot"):
        row = ROWS[name](wanted)
        items = row.build()
        assert len(items) == 3
        assert len(items.queries) == 12
        least = Least.of(items)
        with counted(row.model) as counts:
            Scorer(row.model, row.tokenizer, items)
        assert counts.tokens > 0
        sizes[name] = least.tokens
        assert least.tokens - (SHOTS * 90 if name == "five-shot" else 0) >= 3 * 85
        assert 12 <= least.scored <= 3 * 4 * 12
    # The examples are the same for all items: they count once.
    assert sizes["five-shot"] - sizes["zero-shot"] < SHOTS * (115 + 12 + 2)
    assert matrix_rate(CPU, torch.float32, size=64) > 0


def test_figures_are_ratios_of_medians() -> None:
    one = Scored(
        method="zero-shot",
        target=2.5,
        writes=False,
        exact=False,
        way="prefix tree",
        preparation=1.0,
        ours=(1.0, 9.0, 2.0),
        theirs={1: (8.0,), 8: (6.0, 4.0, 7.0)},
        work=(2.0, 6.0),
        passes=0.9,
        tokens=105,
        least=Least(tokens=100, scored=10),
        operations=4e9,
        rate=8e9,
        difference=0.2,
        texts=(0, 0),
    )
    assert one.best_batch == 8
    assert one.ratio == 3.0
    verdicts = {figure.name: figure.verdict for figure in one.figures()}
    assert verdicts["times faster"] == "ok"
    assert verdicts["tokens encoded over 100 distinct"] == "ok"
    assert verdicts["log-likelihoods differ by"] == ""
    worse = replace(one, tokens=106, ours=(3.0,), exact=True)
    verdicts = {figure.name: figure.verdict for figure in worse.figures()}
    assert {verdicts[name] for name in ("times faster", "log-likelihoods differ by")} == {"short"}
    assert verdicts["tokens encoded over 100 distinct"] == "short"
    assert {figure.name: figure.value for figure in one.figures()}[
        "share of the machine's"
    ] == "25%"


def test_strange_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "ten-shot"])
    assert "ten-shot; allowed: quickstart, zero-shot" in capsys.readouterr().err
