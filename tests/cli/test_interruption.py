"""Real processes: Ray's workers, Ctrl-C, kill -9, and a study that goes on as if nothing was."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.worlds import World, run, start, strict_json, table, told, trials

pytestmark = pytest.mark.slow

TRIALS = 30
ITEMS = 100  # so many that a signal finds the search at work
WAIT = 150.0


def finished(database: Path) -> int:
    """How many trials a running, or a killed, search has finished."""
    # Not read-only: what a kill left half written must be rolled back before it can be read.
    with sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=60) as connection:
        there = "select count(*) from sqlite_master where name = 'trials'"
        if not connection.execute(there).fetchone()[0]:
            return 0
        query = "select count(*) from trials where state in ('COMPLETE', 'FAIL')"
        return int(connection.execute(query).fetchone()[0])


def wait_until(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers(leader: int) -> list[str]:
    """The workers among the processes of a session that are still there.

    Ray's own agents hold no model and take a minute to notice that they are alone.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, *_, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            title = (folder / "cmdline").read_text().rstrip("\0 ")
        except OSError:
            continue
        mine = int(session) == leader and state != "Z"
        if mine and title.startswith("ray::") and not title.endswith("Agent"):
            found.append(title)
    return found


@dataclass
class Story:
    """What happened to a search that was interrupted twice, beside one that was not."""

    world: World
    refused_exit: int = 0
    refused: str = ""
    interrupted_exit: int = 0
    interrupted: str = ""
    after_ctrl_c: int = 0
    resumed: str = ""
    after_kill: int = 0
    whole_exit: int = 0
    whole: str = ""
    seen: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    world = World.make(tmp_path_factory.mktemp("interrupted"))
    tasks = [
        {"task": f"quickstart_{name}", "items": ITEMS, "holdout_task": f"quickstart_{name}_heldout"}
        for name in ("add", "most")
    ]
    space = world.space("space", tasks=tasks)
    processes: list[subprocess.Popen[str]] = []
    told_of = Story(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(world.root)

        def begin(study: str) -> subprocess.Popen[str]:
            words = ("search", space, "--study", study, "--trials", TRIALS, "--workers", 1)
            processes.append(start(world, *words, "--cpus", 1))
            return processes[-1]

        try:
            _tell(told_of, begin)
            yield told_of
        finally:
            for process in processes:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                process.communicate()


def _tell(story: Story, begin: Callable[[str], subprocess.Popen[str]]) -> None:
    world = story.world
    database = world.study("cut") / "study.db"
    whole, cut = begin("whole"), begin("cut")

    wait_until(database.exists, cut)  # made under the study's lock
    second = run("search", "space.yaml", "--study", "cut", "--trials", TRIALS)
    story.refused_exit, story.refused = second.exit_code, told(second)

    wait_until(lambda: finished(database) >= 6, cut)
    os.killpg(cut.pid, signal.SIGINT)  # as a terminal does: to Ray's processes, too
    story.interrupted = cut.communicate(timeout=WAIT)[1]
    story.interrupted_exit, story.after_ctrl_c = cut.returncode, finished(database)

    again = begin("cut")
    wait_until(lambda: finished(database) >= story.after_ctrl_c + 5, again)
    story.seen = workers(again.pid)
    os.kill(again.pid, signal.SIGKILL)
    again.wait(timeout=WAIT)
    deadline = time.monotonic() + 30
    while workers(again.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    story.left = workers(again.pid)
    story.after_kill = finished(database)

    last = begin("cut")
    story.resumed = last.communicate(timeout=WAIT)[1]
    assert last.returncode == 0, story.resumed
    story.whole = "".join(whole.communicate(timeout=WAIT))
    story.whole_exit = whole.returncode


@pytest.fixture
def told_story(story: Story, monkeypatch: pytest.MonkeyPatch) -> Story:
    monkeypatch.chdir(story.world.root)
    return story


def test_a_second_search_of_the_study_is_refused(told_story: Story) -> None:
    assert told_story.refused_exit == 1
    assert "is being searched already, by process" in told_story.refused


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(told_story: Story) -> None:
    assert told_story.interrupted_exit == 130
    assert "Traceback" not in told_story.interrupted
    words = " ".join(told_story.interrupted.split())
    assert f"Stopped after {told_story.after_ctrl_c} of {TRIALS} trials" in words
    assert "The same command goes on where it stopped." in words
    assert 6 <= told_story.after_ctrl_c < TRIALS


def test_a_killed_search_leaves_no_workers(told_story: Story) -> None:
    assert told_story.after_ctrl_c + 5 <= told_story.after_kill < TRIALS
    assert told_story.seen  # the test can see them while they are there
    assert not told_story.left


def test_the_study_goes_on_where_it_stopped(told_story: Story) -> None:
    assert f"{told_story.after_kill} trials are finished" in " ".join(told_story.resumed.split())
    assert told_story.whole_exit == 0
    assert "Traceback" not in told_story.whole


def test_interrupted_and_whole_are_the_same_trials(told_story: Story) -> None:
    from evomerge.api import load_study

    cut, whole = trials("cut"), trials("whole")
    assert len(cut) == len(whole) == TRIALS
    for mine, theirs in zip(cut, whole, strict=True):
        assert mine == theirs
    items, others = (load_study(name).item_scores for name in ("cut", "whole"))
    assert list(items) == list(others) == list(range(TRIALS))
    for number, scores in items.items():
        assert scores.to_json() == others[number].to_json()
    a, b = (strict_json(run("best", name, "--json").stdout) for name in ("cut", "whole"))
    assert a["verdict"] == b["verdict"]
    assert a["verdict"] is not None


def test_ray_changes_nothing(told_story: Story) -> None:
    """The same search in one process, without Ray."""
    words = ("search", "space.yaml", "--study", "local", "--trials", TRIALS, "--workers", 1)
    assert run(*words, "--cpus", 1).exit_code == 0
    assert trials("local") == trials("whole")


def test_the_files_are_whole(told_story: Story) -> None:
    for name in ("cut", "whole"):
        folder = told_story.world.study(name)
        assert list(table(folder).trial) == list(range(TRIALS))
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        assert (folder / "heldout.json").is_file()
