"""Compiled kernels give the bits of the kernels as they are; what cannot be compiled is not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge.merging import compiling, kernels, merge, programs
from evomerge.merging.kernels import Kernel
from evomerge.merging.programs import Programs
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_and_not_the_bits_are_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd sizes, one element, none; sums and all; with a memory and without."""
    asked: set[Kernel] = set()
    monkeypatch.setenv("EVOMERGE_COMPILE", "never")
    original = kernels.run

    def noting(kernel: Kernel, tensors: list[torch.Tensor]) -> None:
        asked.add(kernel)
        original(kernel, tensors)

    monkeypatch.setattr(kernels, "run", noting)
    shapes = [(67, 301), (60_001,), (1,), (), (0, 3), (2, 1)]
    plain = {}
    for method in RECIPES:
        for shape in shapes:
            for density in (0.31, 0.8):
                base, *tensors = drawn(shape)
                spec = spec_of(method, density)
                plain[method, shape, density] = merge(spec, base, tensors, dtype=torch.bfloat16)
                merge(spec, base, tensors, dtype=torch.bfloat16, memory=Memory(1 << 24))
    monkeypatch.setattr(kernels, "run", original)
    assert len(asked) >= 6
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(programs.compile_into_cache, asked))
    monkeypatch.setenv("EVOMERGE_COMPILE", "auto")
    ready = Programs(CPU)
    assert all(ready.of(kernel).compiled for kernel in asked)
    for (method, shape, density), expected in plain.items():
        base, *tensors = drawn(shape)
        for kept in (None, Memory(1 << 24)):
            found = merge(
                spec_of(method, density),
                base,
                tensors,
                dtype=torch.bfloat16,
                memory=kept,
                programs=ready,
            )
            assert torch.equal(bits(found), bits(expected)), (method, shape, density)


KERNEL = Kernel("merge", ("float32",), "float32", "float32")


def run_once(ready: Programs) -> torch.Tensor:
    tensors = compiling.example(KERNEL, 8)
    tensors[0] += 1
    ready.of(KERNEL).run_piece(tensors)
    return tensors[2]


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
