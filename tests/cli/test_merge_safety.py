"""``evomerge merge`` as a process of its own: killed, interrupted, on a disk that fills up."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError
from tests.cli.worlds import EVOMERGE, run
from tests.merging.worlds import recipe_text, same_bits, stored, write_family

KILLS = 5
TRIES = 5
WAIT = 60.0
# Many small files, each brought down to the disk: the writing takes as long as the rest.
SHARDS = ("--max-shard-size", "600KB")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of some megabytes, and what it makes."""
    root = tmp_path_factory.mktemp("safety")
    family = write_family(root, hidden_size=256, intermediate_size=512, num_hidden_layers=8)
    (root / "recipe.yaml").write_text(recipe_text(family, "task_arithmetic"))
    result = run("merge", root / "recipe.yaml", root / "whole", *SHARDS)
    assert result.exit_code == 0, result.stderr
    return root


def begin(world: Path, out: Path, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    def prepared() -> None:
        # What a shell runs in the background has Ctrl-C ignored, and so have its children.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            limit()

    command = [*EVOMERGE, "merge", str(world / "recipe.yaml"), str(out), *SHARDS]
    # What lies in this machine's cache of kernels must not decide what is said.
    environment = {**os.environ, "EVOMERGE_COMPILE": "never"}
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=prepared
    )


def unfinished(out: Path) -> list[Path]:
    return list(out.parent.glob(f".{out.name}.*.unfinished"))


def await_writing(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT
    while not unfinished(out) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def looks_like_a_model(folder: Path) -> bool:
    try:
        Checkpoint.open(str(folder))
    except CheckpointError:
        return False
    return True


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def send(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    process.send_signal(number)
    said = process.communicate(timeout=WAIT)[1]
    return process.returncode, said


def test_killed_at_any_moment_it_leaves_a_whole_model_or_none(world: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    assert begin(world, tmp_path / "timed").wait(WAIT) == 0
    seconds = time.monotonic() - began
    shutil.rmtree(tmp_path / "timed")
    out, moments = tmp_path / "out", random.Random(0)
    for number in range(KILLS):
        process = begin(world, out)
        if number:
            await_writing(out, process)
            time.sleep(moments.uniform(0, 0.15 * seconds))
        else:
            time.sleep(moments.uniform(0, seconds))
        send(process, signal.SIGKILL)
        if out.exists():
            same_bits(stored(out), stored(world / "whole"))
            shutil.rmtree(out)
        for left in unfinished(out):
            # config.json comes last: what can be opened has all that belongs to it.
            if looks_like_a_model(left):
                same_bits(stored(left), stored(world / "whole"))
                assert held(left) == held(world / "whole")
    assert begin(world, out).wait(WAIT) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    same_bits(stored(out), stored(world / "whole"))


def test_interrupted_it_says_so_and_leaves_nothing(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(TRIES):
        process = begin(world, out)
        await_writing(out, process)
        status, said = send(process, signal.SIGINT)
        if status != 0:
            break
        shutil.rmtree(out)  # the machine is so busy that all was written before we came to it
    assert (status, said) == (130, "Interrupted.\n")
    assert list(tmp_path.iterdir()) == []


def full_at_the_end(world: Path, folder: Path) -> Callable[[], None] | None:
    """A disk with room for the tensors, which is looked for first, but for nothing beside them."""
    tensors = sum(tensor.nbytes for tensor in stored(world / "whole").values())
    options = f"size={-(-tensors // 4096) * 4096 + 8192}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False)
    if not done or done.returncode:
        pytest.skip("file systems cannot be mounted here")
    return None


def full_in_the_middle(_world: Path, _folder: Path) -> Callable[[], None] | None:
    """No file may exceed 300 kB, as with a quota that is used up."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


@pytest.mark.parametrize(
    ("full", "reason"),
    [(full_at_the_end, "no space is left in"), (full_in_the_middle, "File too large")],
)
def test_a_disk_that_fills_up_is_told_and_left_as_it_was(
    full: Callable[[Path, Path], Callable[[], None] | None],
    reason: str,
    world: Path,
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    limit = full(world, disk)
    try:
        process = begin(world, disk / "out", limit)
        said = process.communicate(timeout=WAIT)[1]
        assert process.returncode == 1, said
        assert said.startswith("The checkpoint is refused:")
        assert f"{disk / 'out'}: " in said
        assert reason in said
        assert "Traceback" not in said
        assert list(disk.iterdir()) == []
    finally:
        if os.path.ismount(disk):
            subprocess.run(["umount", str(disk)], check=True)
