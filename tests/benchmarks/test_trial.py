"""The trial's benchmark: what it counts, and the whole of it on few trials."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from evomerge.search.pool import Job, Outcome
from evomerge.search.records import TrialRecord
from tests.benchmarks.searching import Moment, Search, machine_seconds
from tests.benchmarks.strategy import TheirTrial
from tests.benchmarks.timers import Stopwatch, Timed, TimedEvaluator
from tests.benchmarks.trial import SPACE, Comparison, main

SECONDS = {
    "forward": 0.05,
    "arithmetic": 0.005,
    "merge": 0.01,
    "score": 0.06,
    "whole": 0.08,
    "processor": 0.07,
}


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Busy:
    """Works under a watch, and not; waits."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def run(self, job: Job) -> Outcome:
        self.watch.start()
        self.watch.start()  # the head's own pass within the model's
        busy(0.02)
        self.watch.stop()
        time.sleep(0.05)
        self.watch.stop()
        busy(0.02)
        return Outcome(job, seconds={"merge": 0.25})


def test_processor_time_is_counted_once_and_waiting_is_not() -> None:
    watch = Stopwatch()
    timed = TimedEvaluator(Busy(watch), {"forward": watch})
    for _ in range(2):  # each trial by itself
        seconds = timed.run(Job(0, "")).seconds
        assert seconds["merge"] == 0.25
        assert 0.02 <= seconds["forward"] < 0.035
        assert 0.04 <= seconds["processor"] < 0.065
        assert seconds["whole"] >= 0.09


def moments(count: int) -> list[Moment]:
    """A trial each 0.05 s, two of them baselines; the driver works 4 ms for each, others 10."""
    return [
        Moment(
            TrialRecord(n, "baseline" if n < 2 else "search", "complete", seconds=SECONDS),
            at=10 + 0.05 * n,
            driver=0.004 * n,
            machine=100 + (0.07 + 0.004 + 0.01) * n,
        )
        for n in range(count)
    ]


def test_the_steady_state_has_neither_beginning_nor_end() -> None:
    found = Search(workers=2, warm=3, moments=moments(20))
    # Two baselines and three trials are not counted, nor the last, beside which nobody works.
    assert [record.number for record in found.trials] == list(range(5, 19))
    assert found.rate == pytest.approx(20)
    assert found.share == pytest.approx((0.05 + 0.005) / 0.1)
    parts = found.parts()
    assert parts.pop("the driver's processor time") == pytest.approx(0.004)
    assert parts.pop("other processes' (Ray's, and strangers)") == pytest.approx(0.01)
    assert sum(parts.values()) == pytest.approx(found.worker_seconds) == pytest.approx(0.1)
    assert parts["without a job"] == pytest.approx(0.02)


def test_figures_are_beside_their_targets() -> None:
    ours = Search(workers=2, warm=3, moments=moments(20))
    theirs = tuple(TheirTrial(0.1, whole, {"add": 0.5}) for whole in (0.5, 0.9, 2.0))
    found = {figure.name: figure for figure in Comparison(ours, theirs, 0.01).figures()}
    share, ratio = found["forward passes and arithmetic"], found["times its trials per hour"]
    assert (share.value, share.target, share.verdict) == ("55.0%", "≥ 70%", "short")
    assert (ratio.value, ratio.target, ratio.verdict) == ("18×", "≥ 20×", "short")
    assert Comparison(ours).ratio is None
    assert "times its trials per hour" not in {one.name for one in Comparison(ours).figures()}


def test_the_machines_work_is_read() -> None:
    before = machine_seconds()
    busy(0.1)
    assert machine_seconds() - before >= 0.05


def test_timers_reach_a_worker() -> None:
    assert pickle.loads(pickle.dumps(Timed(Stopwatch))) == Timed(Stopwatch)


def small_space() -> str:
    """Two models and tasks of the quickstart, few items and none held out."""
    space = yaml.safe_load(SPACE.read_text())
    place = SPACE.parent
    space["base_model"] = str(place / space["base_model"])
    space["models"] = [str(place / model) for model in space["models"][:2]]
    space["include_path"] = str(place / space["include_path"])
    space["tasks"] = [{"task": task["task"], "items": 30} for task in space["tasks"][:2]]
    del space["holdout"]
    return yaml.safe_dump(space)


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    report, space = tmp_path / "report.json", tmp_path / "small.yaml"
    space.write_text(small_space())
    settings = "--trials 30 --warm 2 --mergekit 1 --workers 1"
    command = [sys.executable, "-m", "tests.benchmarks.trial", *settings.split()]
    command += ["--space", str(space), "--json", str(report)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^trials per second +[\d.]+$", done.stdout, re.MULTILINE)
    data = json.loads(report.read_text())
    assert data["trials"] == 21, "without seven baselines and two first ones"
    assert 0.05 < data["share"] < 1
    parts = data["parts"]
    assert all(parts[name] > 0 for name in parts if "other" not in name and "job" not in name)
    assert data["difference"] <= 0.01, "both sides score the same models on the same items"
    (trial,) = data["theirs"]
    assert 0 < trial["merge"] < trial["whole"]
    assert data["ratio"] == pytest.approx(data["trials_per_second"] * trial["whole"])


def test_too_few_trials_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--trials", "30"])
    assert "at least 40" in capsys.readouterr().err
