"""The benchmark of written answers, on a few items of the quickstart and a tiny random model."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks.generation import main


def test_the_whole_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    shape = "layers=2,width=32,intermediate=48,heads=4,kv_heads=2,vocabulary=200"
    settings = "--works quickstart few-shot --items 4 --repetitions 1 --batch-sizes 4"
    main([*settings.split(), "--shape", shape, "--threads", "1"])
    printed = capsys.readouterr().out
    assert re.search(r"^quickstart: 16 texts, \d+ tokens$", printed, re.MULTILINE)
    assert re.search(r"^few-shot: 4 texts, \d+ tokens$", printed, re.MULTILINE)
    same = re.findall(r"texts that are the same +(\d+) of (\d+)", printed)
    assert same == [("16", "16"), ("4", "4")]
    assert len(re.findall(r"times faster +[\d.]+", printed)) == 2
