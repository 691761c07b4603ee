"""Compiled kernels give the bits of the kernels as they are; what cannot be compiled is not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.merging import compiling, merge, programs
from evomerge.merging.fusion import Fusion
from evomerge.merging.kernels import Kernel
from evomerge.merging.mixtures import Mixture
from evomerge.merging.programs import AnyKernel, Programs, Runner
from evomerge.merging.taskvectors import Memory
from evomerge.recipe import METHODS, Contribution, TensorMerge
from evomerge.references import ModelReference
from tests.merging.worlds import bits

CPU = torch.device("cpu")
RECIPES = ("dare_ties", "ties", "della")


def spec_of(method: str, density: float) -> TensorMerge:
    known = METHODS[method]
    epsilon = 0.1 if known.sparsifier == "magprune" else 0.0
    gamma = 0.05 if known.sparsifier == "outliers" else 0.0
    parts = tuple(
        Contribution(ModelReference(f"m{i}"), f"m{i}", "w", weight, density, epsilon, gamma)
        for i, weight in enumerate((0.5, -0.25, 1.0))
    )
    base = (ModelReference("base"), "w")
    return TensorMerge("w", method, base, parts, known.normalize, known.rescale, 0.75, 0)


def drawn(shape: tuple[int, ...]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    base = torch.randn(shape, generator=random) * 0.02
    return [base.bfloat16()] + [
        (base + torch.randn(shape, generator=random) * 0.002).bfloat16() for _ in range(3)
    ]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    monkeypatch.setattr(programs, "_FAILED", set())
    return tmp_path


def by_angles(method: str, models: int, **changes: Any) -> TensorMerge:
    return replace(
        spec_of("task_arithmetic", 1.0),
        method=method,
        contributions=spec_of("task_arithmetic", 1.0).contributions[:models],
        **changes,
    )


SPECS = [
    *(spec_of(method, density) for method in RECIPES for density in (0.31, 0.8)),
    *(by_angles("slerp", 1, t=t) for t in (0.3, 0.8)),
    *(by_angles("sce", 3, select_topk=share) for share in (0.2, 0.9)),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_and_not_the_bits_are_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd sizes, one element, none; sums and all; with a memory and without."""
    asked: set[AnyKernel] = set()
    monkeypatch.setenv("EVOMERGE_COMPILE", "never")
    original = Runner.run_piece

    def noting(self: Runner, tensors: list[torch.Tensor]) -> None:
        asked.add(self.kernel)
        original(self, tensors)

    def merged(spec: TensorMerge, shape: tuple[int, ...], **given: Any) -> torch.Tensor:
        base, *tensors = drawn(shape)
        mine = tensors[: len(spec.contributions)]
        return merge(spec, base, mine, dtype=torch.bfloat16, **given)

    monkeypatch.setattr(Runner, "run_piece", noting)
    shapes = [(67, 301), (60_001,), (1,), (), (0, 3), (2, 1), (1, 7)]
    plain = {}
    for case in product(range(len(SPECS)), shapes):
        plain[case] = merged(SPECS[case[0]], case[1])
        merged(SPECS[case[0]], case[1], memory=Memory(1 << 24))
    monkeypatch.setattr(Runner, "run_piece", original)
    # The last: rows that each have a factor, and some of which stay.
    asked.add(MIXTURE)
    assert {type(kernel) for kernel in asked} == {Kernel, Mixture, Fusion}
    # As the one that selects, but for the selection; compiling each takes its time.
    asked -= {one for one in asked if isinstance(one, Fusion) and _is_plain(one)}
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(programs.compile_into_cache, asked))
    monkeypatch.setenv("EVOMERGE_COMPILE", "auto")
    ready = Programs(CPU)
    assert all(ready.of(kernel).compiled for kernel in asked)
    for case, expected in plain.items():
        for kept in (None, Memory(1 << 24)):
            found = merged(SPECS[case[0]], case[1], memory=kept, programs=ready)
            assert torch.equal(bits(found), bits(expected)), case
    for rows, columns in ((40, 33), (7, 1000), (1, 9), (9, 1)):
        given = mixture_of(rows, columns)
        expected_of = [tensor.clone() for tensor in given]
        MIXTURE.run(expected_of)
        ready.of(MIXTURE).run_piece(list(given))  # which it empties
        assert torch.equal(bits(given[4]), bits(expected_of[4]))
        assert torch.equal(given[4][::2], given[3][::2])
        assert not torch.equal(given[4][1::2], given[3][1::2]) or rows == 1


def _is_plain(kernel: Fusion) -> bool:
    return kernel.goal == "squares" and not kernel.selects


MIXTURE = Mixture(("float32",) * 3, "float32", "rows", rest=True, still="float32")


def mixture_of(rows: int, columns: int) -> list[torch.Tensor]:
    """Its tensors; every other row stays."""
    random = torch.Generator().manual_seed(rows)
    tiles = [torch.randn(rows, columns, generator=random) for _ in range(5)]
    still = torch.arange(rows) % 2 == 0
    return [*tiles, torch.randn(MIXTURE.terms, rows, generator=random), still]


KERNEL = Kernel("merge", ("float32",), "float32", "float32")


def run_once(ready: Programs) -> torch.Tensor:
    tensors = compiling.example(KERNEL, 8)
    tensors[0] += 1
    ready.of(KERNEL).run_piece(tensors)
    return tensors[2]


@pytest.mark.parametrize("kind", [Kernel, Mixture])
def test_a_device_runs_as_many_kernels_as_a_search_asks_for(
    kind: type[AnyKernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch compiles one code object 8 times at most, and a search of methods asks for more."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    programs._compiled_in_process.cache_clear()
    types = list(product(("float32", "bfloat16", "float16"), repeat=2))
    for one, out in types:
        kernel: AnyKernel = Kernel("merge", (one,), one, out)
        if kind is Mixture:
            kernel = Mixture((one, one), out, "whole")
        run = programs._compiled_in_process(kernel, CPU)
        for length in (4096, 3000, 1):
            tensors = [tensor + 1 for tensor in compiling.example(kernel, length)]
            plain = [tensor.clone() for tensor in tensors]
            run(tensors)
            kernel.run(plain)
            assert all(map(torch.equal, tensors, plain))
        assert run is programs._compiled_in_process(kernel, CPU), "once for all engines"
    assert len(types) > 8
    programs._compiled_in_process.cache_clear()


def test_a_program_runs_once_at_a_time() -> None:
    """A second call of torch's loader waits with Python's lock in its hand: both would for ever."""
    runner, running, most = Runner(KERNEL, CPU), [], []

    def program(tensors: list[torch.Tensor]) -> None:
        running.append(1)
        time.sleep(0.01)
        most.append(len(running))
        running.pop()

    runner.program = program
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(runner.run_piece, [compiling.example(KERNEL, 8) for _ in range(6)]))
    assert most == [1] * 6


def test_without_a_compiler_the_merge_goes_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_COMPILE", "always")
    monkeypatch.setattr(programs.sys, "executable", "/nowhere/python")
    with pytest.warns(UserWarning, match="without a compiler"):
        found = run_once(Programs(CPU))
    assert torch.equal(found, torch.ones(8))


def test_a_damaged_file_of_the_cache_is_deleted_and_told(cache: Path) -> None:
    path = programs._path(KERNEL)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a program")
    with pytest.warns(UserWarning, match="cannot be loaded"):
        found = run_once(Programs(CPU))
    assert torch.equal(found, torch.ones(8))
    assert not path.exists()


def test_what_another_process_compiles_is_not_waited_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setenv("EVOMERGE_COMPILE", "always")
    path = programs._path(KERNEL)
    path.parent.mkdir(parents=True)
    with path.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = run_once(Programs(CPU))
    assert torch.equal(found, torch.ones(8))
    assert not path.exists()


def test_little_work_compiles_nothing(cache: Path) -> None:
    ready = Programs(CPU, ahead=1000)
    run_once(ready)
    assert not ready.of(KERNEL).compiled
    assert not list(cache.rglob("*.pt2"))


def test_scratch_memory_is_the_same_again_and_each_threads_own() -> None:
    """Taken anew for each tensor, it lay between what is kept, and a peak of 5 models became 10."""
    ready = Programs(CPU)
    first = ready.scratch(1000, torch.int64)
    assert first.shape == (1000,)
    assert first.dtype == torch.int64
    again = ready.scratch(7, torch.uint8)
    assert again.shape == (7,)
    assert again.data_ptr() == first.data_ptr()
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(ready.scratch, 1000, torch.int64).result()
        assert theirs.data_ptr() != first.data_ptr()


def test_little_scratch_memory_is_kept() -> None:
    ready = Programs(CPU)
    small, large = (ready.scratch(numel, torch.uint8) for numel in (10, (64 << 20) + 1))
    assert large.shape == ((64 << 20) + 1,)
    assert ready.scratch(10, torch.uint8).data_ptr() == small.data_ptr() != large.data_ptr()


def test_every_kind_of_kernel_has_a_name_of_its_own(cache: Path) -> None:
    kinds = {
        programs._path(replace(KERNEL, normalize=n, elect=e))
        for n in (True, False)
        for e in (None, "plus", "given")
    }
    assert len(kinds) == 6


@pytest.mark.parametrize("problem", [PermissionError("no"), RuntimeError("no home")])
def test_without_a_cache_the_merge_goes_on(
    problem: Exception, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def nowhere() -> Path:
        raise problem

    monkeypatch.setattr(programs, "cache_folder", nowhere)
    with pytest.warns(UserWarning, match="without a compiler"):
        found = run_once(Programs(CPU))
    assert torch.equal(found, torch.ones(8))
