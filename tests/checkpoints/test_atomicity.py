"""A model is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from evomerge.checkpoints import Checkpoint, behind, shards, write_model
from evomerge.errors import CheckpointError, TrialError

Mount = Callable[[str], Path]


@pytest.fixture
def like(llama: Path) -> Checkpoint:
    return Checkpoint.open(str(llama))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts small file systems of one's own; needs the rights to."""
    points: list[Path] = []

    def at(options: str) -> Path:
        point = tmp_path / f"mount{len(points)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
        done = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False)
        if not done or done.returncode:
            pytest.skip("file systems cannot be mounted here")
        points.append(point)
        return point

    yield at
    for point in points:
        subprocess.run(["umount", str(point)], check=True)


def tensors(count: int = 6, size: int = 100_000) -> Iterator[tuple[str, torch.Tensor]]:
    for number in range(count):
        yield f"t{number}", torch.full((size,), float(number))


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_holds_something_is_left_as_it_is(like: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"exists and holds mine\.txt; name a new folder"):
        write_model(tmp_path, tensors(), like=like)
    assert held(tmp_path) == ["mine.txt"]


def test_an_empty_folder_and_missing_parents_will_do(like: Checkpoint, tmp_path: Path) -> None:
    for out in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        if out.name == "empty":
            out.mkdir()
        write_model(out, tensors(), like=like)
        assert "config.json" in held(out)
    assert held(tmp_path) == ["a", "empty"]
    mode = (tmp_path / "a" / "b" / "c").stat().st_mode & 0o777
    assert mode == (tmp_path / "a").stat().st_mode & 0o777


def test_files_links_and_mount_points_are_refused(
    like: Checkpoint, tmp_path: Path, mount: Mount
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    point = mount("size=1m")
    for out, reason in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "link", "is a link"),
        (point, "is a mount point"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            write_model(out, tensors(), like=like)
    assert held(tmp_path / "target") == held(point) == []


@pytest.mark.parametrize("problem", [KeyboardInterrupt, TrialError, MemoryError, SystemExit])
@pytest.mark.parametrize("parents", ["", "new/newer"])
def test_nothing_stays_when_the_tensors_fail(
    problem: type[BaseException], parents: str, like: Checkpoint, tmp_path: Path
) -> None:
    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield from tensors()
        raise problem

    with pytest.raises(problem):
        write_model(tmp_path / parents / "out", failing(), like=like, max_shard_bytes=500_000)
    assert held(tmp_path) == []


def test_an_empty_folder_stays_when_the_tensors_fail(like: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="t0 comes twice"):
        write_model(tmp_path / "out", [*tensors(1), *tensors(1)], like=like)
    with pytest.raises(ValueError, match="no tensor to write"):
        write_model(tmp_path / "out", [], like=like)
    assert held(tmp_path) == ["out"]
    assert held(tmp_path / "out") == []


@pytest.mark.parametrize("limit", [5_000_000_000, 500_000])
def test_a_full_disk_is_told_and_left_as_it_was(limit: int, like: Checkpoint, mount: Mount) -> None:
    disk = mount("size=1m")
    with pytest.raises(CheckpointError, match=r"out: no space is left in .*mount0"):
        write_model(disk / "out", tensors(), like=like, max_shard_bytes=limit)
    assert held(disk) == []
    assert shutil.disk_usage(disk).used == 0


def test_after_a_failed_write_nothing_more_is_written(
    like: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that wait for the disk when it is found full are given up, however many."""
    calls: list[int] = []

    def full(_file: int, _content: memoryview, offset: int) -> int:
        calls.append(offset)
        time.sleep(0.05)  # so that more of them wait
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(behind.os, "pwrite", full)
    with pytest.raises(CheckpointError, match="no space is left"):
        write_model(tmp_path / "out", tensors(50, 1000), like=like, max_shard_bytes=20_000)
    assert len(calls) == 1
    assert held(tmp_path) == []


def test_a_slow_disk_holds_up_the_making_of_tensors(
    like: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the disk is bounded: 256 MiB, or one tensor."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def slow(file: int, content: memoryview, offset: int) -> int:
        time.sleep(0.02)
        return min(len(content), 1 << 27)  # said to be written

    def large() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for number in range(10):
            # Pages that are never touched cost no memory.
            tensor = torch.empty(1 << 26, dtype=torch.int8)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield f"t{number}", tensor
            del tensor

    monkeypatch.setattr(behind.os, "pwrite", slow)
    write_model(tmp_path / "out", large(), like=like)
    # Four wait, one is new; the one being written may still be held by its writer.
    assert 2 <= most <= 6


def test_a_disk_too_small_is_refused_before_a_tensor_is_made(
    like: Checkpoint, mount: Mount
) -> None:
    disk = mount("size=1m")

    def never() -> Iterator[tuple[str, torch.Tensor]]:
        pytest.fail("a tensor was asked for")
        yield

    with pytest.raises(CheckpointError, match=r"needs 2\.4 MB, but .* has 1\.0 MB left"):
        write_model(disk / "new" / "out", never(), like=like, total_bytes=2_400_000)
    assert held(disk) == []


def test_a_full_disk_at_the_last_moment(
    like: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems find out only when the data are brought to the disk."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(CheckpointError, match="no space is left"):
        write_model(tmp_path / "out", tensors(), like=like)
    assert held(tmp_path) == []


def test_a_read_only_disk_is_told(like: Checkpoint, mount: Mount) -> None:
    disk = mount("size=1m,ro")
    for out in (disk / "out", disk / "new" / "out"):
        with pytest.raises(CheckpointError, match="is read-only for you"):
            write_model(out, tensors(), like=like)


def test_a_parent_that_is_a_file_is_told(like: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be made: .*/file is a file"):
        write_model(tmp_path / "file" / "new" / "out", tensors(), like=like)


def test_a_folder_filled_meanwhile_is_not_overwritten(like: Checkpoint, tmp_path: Path) -> None:
    def slow() -> Iterator[tuple[str, torch.Tensor]]:
        yield from tensors()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("")

    with pytest.raises(CheckpointError, match="filled by somebody else meanwhile"):
        write_model(tmp_path / "out", slow(), like=like)
    assert held(tmp_path) == ["out"]
    assert held(tmp_path / "out") == ["theirs"]


_KILLED = """
import sys, time, torch
from evomerge.checkpoints import Checkpoint, write_model
def tensors():
    for number in range(10 ** 6):
        yield f"t{number}", torch.zeros(100_000)
        if number == 8:
            print("writing", flush=True)
            time.sleep(60)
write_model(sys.argv[2], tensors(), like=Checkpoint.open(sys.argv[1]), max_shard_bytes=1_000_000)
"""


def test_a_killed_writer_leaves_no_model_and_the_next_one_cleans_up(
    like: Checkpoint, llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", _KILLED, str(llama), str(out)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        # While it lives, its folder is not touched.
        write_model(tmp_path / "other", tensors(), like=like)
        (mine,) = [p for p in tmp_path.iterdir() if p.name.startswith(".out.")]
        write_model(out, tensors(), like=like)
        assert mine.exists()
        shutil.rmtree(out)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()
    assert not out.exists()
    assert not any(path.suffix == ".safetensors" for path in mine.iterdir())
    with pytest.raises(CheckpointError):
        Checkpoint.open(str(mine))
    # The kernel gives the lock back when the last of the process is gone.
    time.sleep(0.1)
    write_model(out, tensors(), like=like)
    assert held(tmp_path) == ["other", "out"]


@pytest.mark.parametrize(
    "name", ["config.json", "../x", "/x", "", "model.safetensors", "x.bin", "a.safetensors"]
)
def test_names_of_files_are_checked(name: str, like: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is (no name|written)"):
        write_model(tmp_path / "out", tensors(), like=like, files={name: ""})
    assert held(tmp_path) == []
