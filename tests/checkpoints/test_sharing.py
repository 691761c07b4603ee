"""What an adapter makes is computed once for all processes, and nothing of it stays."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.sharing import scratch_folder, sweep
from evomerge.errors import CheckpointError

pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of one's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield scratch_folder()
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def adapted(llama: Path, tmp_path: Path) -> str:
    """``base+lora``"""
    model = AutoModelForCausalLM.from_pretrained(llama)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    return f"{llama}+{tmp_path / 'lora'}"


_USER = """
import sys
from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.adapters import Adapter
apply, made = Adapter.apply, []
def counted(self, name, tensor):
    made.append(name)
    return apply(self, name, tensor)
Adapter.apply = counted
checkpoint = Checkpoint.open(sys.argv[1])
checkpoint.share()
kept = [checkpoint.tensor(name, mapped=True) for name in checkpoint.names]
print(len(made), flush=True)
sys.stdin.readline()
"""


def user(adapted: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _USER, adapted]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def test_shared_tensors_are_the_adapters(adapted: str, scratch: Path) -> None:
    one, other, plain = (Checkpoint.open(adapted) for _ in range(3))
    for checkpoint in (one, other):
        checkpoint.share()
        checkpoint.share()  # once is enough
        for name in plain.names:
            mine = checkpoint.tensor(name, check=True, mapped=True)
            assert torch.equal(mine, plain.tensor(name))
            assert torch.equal(checkpoint.tensor(name), mine)
    assert len(list(scratch.glob("*.lock"))) == 1
    del one
    gc.collect()  # a checkpoint and its adapter know each other
    assert len(list(scratch.glob("*/*.safetensors"))) == 1
    del other, checkpoint
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_one_process_computes_for_all_and_the_last_one_cleans_up(
    adapted: str, scratch: Path
) -> None:
    users = [user(adapted) for _ in range(3)]
    made = [int(str(one.stdout.readline())) for one in users if one.stdout]
    # q_proj and up_proj of two layers.
    assert sorted(made) == [0, 0, 4]
    for one in users[:2]:
        one.communicate("\n", timeout=60)
        assert len(list(scratch.glob("*/*.safetensors"))) == 1
    users[2].communicate("\n", timeout=60)
    assert list(scratch.iterdir()) == []


def test_what_a_killed_process_left_is_swept(adapted: str, scratch: Path) -> None:
    victim, survivor = user(adapted), user(adapted)
    for one in (victim, survivor):
        assert one.stdout
        one.stdout.readline()
    for one, left in ((victim, 1), (survivor, 0)):
        os.kill(one.pid, signal.SIGKILL)
        one.communicate()
        sweep()
        assert len(list(scratch.glob("*/*.safetensors"))) == left
    assert list(scratch.iterdir()) == []


def test_a_changed_adapter_has_a_file_of_its_own(adapted: str, scratch: Path) -> None:
    first = Checkpoint.open(adapted)
    first.share()
    weights = Path(adapted.partition("+")[2]) / "adapter_model.safetensors"
    os.utime(weights, ns=(1, 1))
    second = Checkpoint.open(adapted)
    second.share()
    assert len(list(scratch.glob("*.lock"))) == 2
    del first, second
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_no_room_for_the_scratch_file_is_told(
    adapted: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evomerge.checkpoints.behind.os.pwrite", full)
    with pytest.raises(CheckpointError, match=r"evomerge-\S+ \(TMPDIR .*No space left on device"):
        Checkpoint.open(adapted).share()
    assert not list(scratch.glob("*/*"))


def test_what_is_stored_as_it_is_needs_no_scratch_file(llama: Path, scratch: Path) -> None:
    Checkpoint.open(str(llama)).share()
    assert not scratch.exists()
