"""Where models are held: planned from numbers, shared by processes, never felt in a result."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import CheckpointError, InputError
from evomerge.merging import MergeEngine, Needs, Room, devices_of, needs_of, plan_residency
from evomerge.merging.machine import free_host_memory
from tests.merging.worlds import (
    Family,
    llama,
    recipe_of,
    recipe_text,
    rewrite,
    same_bits,
    stored,
    write_family,
)

GB = 10**9
# What a user tells malloc is left as it is: here, to give everything back at once.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# Base and three fine-tuned models of 8B in bfloat16.
NEEDS = Needs(held=64 * GB, live=16 * GB, largest=4 * GB)


def engine_of(family: Family, **options: Any) -> MergeEngine:
    return MergeEngine(str(family.base), [str(path) for path in family.tuned], **options)


@pytest.mark.parametrize(
    ("room", "chosen", "message"),
    [
        # 80 GB of models into 9/10 of 141 GB, of 80 GB, of two times 80 GB.
        (Room(500 * GB, (141 * GB,)), "device", "on the accelerator: 80.0 GB of 141.0 GB free"),
        (Room(500 * GB, (80 * GB,)), "host", r"streamed: 64.0 GB of 500.0 GB free there, 24.0 GB"),
        (Room(500 * GB, (80 * GB, 80 * GB)), "device", "80.0 GB of 160.0 GB free"),
        # Half of the accelerator is another worker's.
        (Room(500 * GB, (141 * GB,), sharing=2, workers=2), "host", "of 70.5 GB free on the"),
        # On a CPU the workers share one copy: 64 + 4 · 16.
        (Room(500 * GB, workers=4), "host", "one copy for all 4 workers.*128.0 GB of 500.0 GB"),
    ],
)
def test_auto_takes_the_accelerator_where_all_fits(room: Room, chosen: str, message: str) -> None:
    plan = plan_residency("auto", NEEDS, room)
    assert plan.residency == chosen
    assert re.search(message, plan.message)
    assert "\n" not in plan.message


@pytest.mark.parametrize(
    ("wish", "room", "problem"),
    [
        (
            "auto",
            Room(60 * GB, (40 * GB,)),
            "device: 80.0 GB are needed on the accelerator, 40.0 GB are free, .*; host: 64.0 GB "
            "are needed in host memory, 60.0 GB are free, .*; use a larger machine, or fewer mod",
        ),
        ("auto", Room(500 * GB, (25 * GB,)), "host: 24.0 GB are needed on the accelerator, 25.0"),
        ("device", Room(500 * GB, (80 * GB,)), "allowed instead: residency host or auto"),
        ("auto", Room(130 * GB, workers=4), "128.0 GB are needed in host memory, 130.0 GB .*fewer"),
        ("device", Room(300 * GB, workers=4), "320.0 GB are needed in host memory"),
        ("gpu", Room(1), "'gpu'; allowed: auto, device, host"),
    ],
)
def test_what_fits_nowhere_is_refused_with_the_numbers(wish: Any, room: Room, problem: str) -> None:
    with pytest.raises(InputError, match=f"^resources: residency: .*{problem}"):
        plan_residency(wish, NEEDS, room, "resources: residency")


@pytest.mark.parametrize(
    ("wish", "room", "chosen", "message"),
    [
        # The gradient of 8B in float32 takes 32 GB.
        ("auto", Room(500 * GB, (141 * GB,)), "device", "80.0 GB of .* 32.0 GB there too"),
        # Streamed models and a gradient that stays: 16 + 2 · 4 + 32 of 80.
        ("auto", Room(500 * GB, (80 * GB,)), "host", "24.0 GB of 80.0 GB .* 32.0 GB there too"),
        ("device", Room(500 * GB, (90 * GB,)), "device", "worker's gradient of 32.0 GB in host"),
        ("auto", Room(500 * GB, (48 * GB,)), "host", "worker's gradient of 32.0 GB in host"),
        # 64 + 4 · (16 + 32)
        (
            "auto",
            Room(500 * GB, workers=4),
            "host",
            "256.0 GB of .* worker's gradient .32.0 GB. inc",
        ),
    ],
)
def test_where_the_gradient_is_held(wish: Any, room: Room, chosen: str, message: str) -> None:
    plan = plan_residency(wish, replace(NEEDS, gradient=32 * GB), room)
    assert plan.residency == chosen
    assert re.search(message, plan.message)


def test_a_gradient_that_fits_nowhere_is_refused_with_what_needs_none() -> None:
    needs = replace(NEEDS, gradient=32 * GB)
    problem = (
        "the models and a gradient do not fit .*host: 96.0 GB are needed in host memory, 100.0 GB "
        ".*none but ascent takes gradients"
    )
    with pytest.raises(InputError, match=problem):
        plan_residency("auto", needs, Room(100 * GB, (40 * GB,)))


sizes = st.integers(0, 200 * GB)


@given(
    st.builds(Needs, sizes, sizes, sizes, sizes),
    sizes,
    st.lists(sizes, max_size=3),
    st.integers(1, 9),
)
def test_a_plan_never_takes_more_than_there_is(
    needs: Needs, host: int, devices: list[int], workers: int
) -> None:
    room = Room(host, tuple(devices), sharing=min(workers, 2), workers=workers)
    try:
        plan = plan_residency("auto", needs, room)
    except InputError:
        # Then neither wish is granted.
        for wish in ("host", "device") if devices else ("host",):
            with pytest.raises(InputError):
                plan_residency(wish, needs, room)  # type: ignore[arg-type]
        return
    assert plan.host_bytes <= 0.9 * host
    assert plan.device_bytes <= 0.9 * sum(devices) / room.sharing
    assert plan == plan_residency(plan.residency, needs, room)
    if not devices:
        assert plan.device_bytes == 0


def test_needs_are_read_from_the_headers(half_family: Family) -> None:
    engine = engine_of(half_family)
    tensors = [stored(path) for path in half_family.all]
    needs = needs_of([engine.like] * 4, live=7)
    assert needs.held == sum(t.nbytes for one in tensors for t in one.values()) == engine.nbytes
    assert needs.largest == 4 * max(tensor.nbytes for tensor in tensors[0].values())
    assert needs.live == 7


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 4_096_000),
        # A container's limit, less what it uses, cached files apart; the tightest group counts.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "500000\n",
                "sys/fs/cgroup/a/memory.max": "1000000\n",
                "sys/fs/cgroup/a/memory.current": "700000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 300000\ninactive_file 400000\n",
            },
            700_000,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "900000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100000\n",
            },
            1_200_000,
        ),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, 4_096_000),
    ],
)
def test_free_memory_is_the_machines_within_the_containers_limit(
    files: dict[str, str], free: int, tmp_path: Path
) -> None:
    assert free_host_memory(write_tree(tmp_path, {**MEMINFO, **files})) == free


def test_free_memory_of_this_machine_is_a_number_of_its_size() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_host_memory() <= total


def test_an_engine_refuses_before_it_loads(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.merging.placing.free_host_memory", lambda: 1000)
    monkeypatch.setattr(
        "evomerge.checkpoints.Checkpoint.tensor", lambda *_, **__: pytest.fail("a tensor was read")
    )
    with pytest.raises(InputError, match=r"are needed in host memory, 1\.0 kB are free"):
        engine_of(family)


def test_the_residency_shows_in_no_result(half_family: Family) -> None:
    chosen = engine_of(half_family)
    assert chosen.residency is not None
    assert chosen.residency.residency == "host"
    engines = [chosen, *(engine_of(half_family, residency=one) for one in ("device", "host"))]
    live = [llama().to(torch.bfloat16) for _ in engines]
    for method in ("dare_ties", "ties", "linear"):
        recipe = recipe_of(half_family, method)
        for engine, model in zip(engines, live, strict=True):
            engine.merge_into(model, recipe)
            same_bits(model.state_dict(), live[0].state_dict())
    same_bits(live[0].state_dict(), dict(chosen.tensors(recipe)))


def test_devices_are_a_live_models(half_family: Family) -> None:
    """As a model over several accelerators would have it; here they are all the CPU."""
    live = llama().to(torch.bfloat16)
    devices = devices_of(live)
    assert set(live.state_dict()) <= set(devices)
    recipe = recipe_of(half_family, "ties")
    engine_of(half_family, device=devices).merge_into(live, recipe)
    same_bits(live.state_dict(), dict(engine_of(half_family).tensors(recipe)))


def test_merging_leaves_the_files_alone(own_family: Family) -> None:
    before = [(path / "model.safetensors").read_bytes() for path in own_family.all]
    engine, live = engine_of(own_family, residency="host"), llama()
    for weights in ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.3, 0.1)):
        engine.merge_into(live, recipe_of(own_family, "task_arithmetic", weights))
        for parameter in live.parameters():
            parameter.data.zero_()
    assert [(path / "model.safetensors").read_bytes() for path in own_family.all] == before


def test_files_that_change_under_a_search_are_told(own_family: Family) -> None:
    engine, live = engine_of(own_family, residency="host"), llama()
    copied = engine_of(own_family, residency="device")
    recipe = recipe_of(own_family, "ties")
    engine.merge_into(live, recipe)
    os.utime(own_family.tuned[1] / "model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match=f"{own_family.tuned[1]}: its files have changed"):
        engine.merge_into(live, recipe)
    copied.merge_into(live, recipe)  # has nothing to do with the files any more


def test_with_host_nan_is_refused_at_loading(own_family: Family) -> None:
    tensors = stored(own_family.tuned[0])
    tensors["lm_head.weight"][1, 1] = float("inf")
    rewrite(own_family.tuned[0], tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: 1 of"):
        engine_of(own_family, residency="host")


_PIECES = """
import resource, sys, torch
from evomerge.merging import MergeEngine
base, *tuned = sys.argv[1:]
MergeEngine(base, tuned)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(20):
        for numel in (1 << 18, 1 << 21):
            kept = [torch.zeros(numel) for _ in range(5)]
            kept.clear()
work()
before = faults()
work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
@pytest.mark.parametrize(("environment", "few"), [({}, True), (GIVEN_BACK, False)])
def test_the_memory_of_pieces_is_used_again(
    environment: dict[str, str], few: bool, family: Family
) -> None:
    """Pages that come empty from the system cost more than the arithmetic; 900 MB are 230 000."""
    taken = ("MALLOC_", "GLIBC_", "LD_PRELOAD")
    own = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    done = subprocess.run(
        [sys.executable, "-c", _PIECES, *map(str, family.all)],
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) < 3000) == few


_WORKER = """
import sys, torch
from evomerge.checkpoints import Checkpoint
from evomerge.merging import MergeEngine
from evomerge.recipe import Recipe
base, *tuned = sys.argv[3:]
checkpoint = Checkpoint.open(base)
live = checkpoint.load_model()
def pss():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
recipe = Recipe.from_yaml(open(sys.argv[2]).read())
before = pss()
engine = MergeEngine(checkpoint, tuned, residency=sys.argv[1])
engine.merge_into(live, recipe)
print("ready", before, flush=True)
sys.stdin.readline()
print(pss(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
@pytest.mark.parametrize(("residency", "least", "most"), [("host", 0.8, 1.3), ("device", 1.9, 3.2)])
def test_two_workers_share_one_copy(
    residency: str, least: float, most: float, tmp_path: Path
) -> None:
    """The memory of two real processes that hold four models, each page by how many share it."""
    family = write_family(tmp_path, hidden_size=512, intermediate_size=1536, num_hidden_layers=5)
    text = recipe_text(family, "task_arithmetic", dtype="float32")
    (tmp_path / "recipe.yaml").write_text(text)
    arguments = [residency, str(tmp_path / "recipe.yaml"), *map(str, family.all)]
    command = [sys.executable, "-c", _WORKER, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    try:
        before = [int(str(one.stdout.readline()).split()[1]) for one in workers if one.stdout]
        after = []
        for one in workers:
            assert one.stdin
            assert one.stdout
            one.stdin.write("\n")
            one.stdin.flush()
            after.append(int(one.stdout.readline()))
    finally:
        for one in workers:
            one.communicate("\n", timeout=60)
    models = sum((path / "model.safetensors").stat().st_size for path in family.all)
    taken = sum(after) - sum(before)
    assert models > 150_000_000
    # With ``device`` the pages that were read for the two copies count as long as they are mapped.
    assert least * models < taken < most * models
