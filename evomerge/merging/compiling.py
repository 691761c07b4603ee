"""The process that compiles a kernel: ``python -m evomerge.merging.compiling KERNEL FILE``."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from functools import singledispatch

import torch
from torch._inductor.cpp_builder import is_gcc

from evomerge.merging import kernels, programs
from evomerge.merging.entries import F, I
from evomerge.merging.fusion import Entry, Fusion
from evomerge.merging.kernels import WHOLE, Kernel
from evomerge.merging.mixtures import Mixture

_KERNELS = {kind.__name__: kind for kind in (Kernel, Mixture, Fusion)}
_LENGTH, _ROWS = 4096, 256  # of the example that the kernel is exported with; no other lengths


class _Module(torch.nn.Module):
    """A kernel as what torch exports."""

    def __init__(self, kernel: programs.AnyKernel) -> None:
        super().__init__()
        self._kernel = kernel

    def forward(self, tensors: list[torch.Tensor]) -> tuple[()]:
        self._kernel.run(tensors)
        return ()


@singledispatch
def example(kernel: programs.AnyKernel, numel: int) -> list[torch.Tensor]:
    """Tensors of the types and shapes that a kernel takes, without meaning.

    Args:
        kernel: a pass.
        numel: the length of the tensors' last dimension.
    """
    raise TypeError(f"{type(kernel).__name__} is no kernel; known: {', '.join(_KERNELS)}")


@example.register
def _(kernel: Kernel, numel: int) -> list[torch.Tensor]:
    types = iter(kernel.dtypes)
    made = {
        "base": lambda: torch.zeros(numel, dtype=getattr(torch, str(kernel.base))),
        "model": lambda: torch.zeros(numel, dtype=getattr(torch, next(types))),
        "ranks": lambda: torch.zeros(numel, dtype=getattr(torch, str(kernel.ranks))),
        "bits": lambda: torch.zeros(numel, dtype=kernels.bits_type(kernel.models)),
        "out": lambda: _example_out(kernel, numel),
        "values": lambda: torch.zeros(numel, dtype=torch.int64),
        "floats": lambda: torch.zeros((len(F), max(kernel.models, 2)), dtype=torch.float32),
        "ints": lambda: torch.zeros((len(I), max(kernel.models, 2)), dtype=torch.int32),
    }
    return [made[name]() for name in kernel.order()]


@example.register
def _(kernel: Mixture, numel: int) -> list[torch.Tensor]:
    shape = (numel,) if kernel.vectors == "whole" else (_ROWS, numel)
    count = {"whole": 1, "rows": _ROWS, "columns": numel}[kernel.vectors]
    names = [*kernel.dtypes, *([kernel.still] if kernel.still else []), kernel.out]
    tiles = [torch.zeros(shape, dtype=getattr(torch, name)) for name in names]
    still = [torch.zeros(count, dtype=torch.bool)] if kernel.still else []
    return [*tiles, torch.zeros(kernel.terms, count), *still]


@example.register
def _(kernel: Fusion, numel: int) -> list[torch.Tensor]:
    models = len(kernel.dtypes)
    inputs = [torch.zeros(numel, dtype=getattr(torch, n)) for n in (kernel.base, *kernel.dtypes)]
    if kernel.goal == "variances":
        outs = [torch.zeros(numel, dtype=one) for one in (torch.int32, torch.bool)]
    elif kernel.goal == "squares":
        outs = [torch.zeros(2 * models, dtype=torch.int64)]
    else:
        outs = [torch.zeros(numel, dtype=getattr(torch, str(kernel.out)))]
    tables = torch.zeros(models + 2), torch.zeros(len(Entry), dtype=torch.int32)
    return [*inputs, *outs, *tables]


def _example_out(kernel: Kernel, numel: int) -> torch.Tensor:
    if kernel.goal == "sums":
        return torch.zeros(kernel.models * (2 if kernel.totals else 1), dtype=torch.int64)
    if kernel.goal == "table":
        return torch.zeros(numel, dtype=torch.int64)
    return torch.zeros(numel, dtype=getattr(torch, str(kernel.out)))


def main(arguments: Sequence[str]) -> None:
    """Compile one kernel: its fields as JSON, and the file to write."""
    data = json.loads(arguments[0])
    kind = _KERNELS[data.pop("class")]
    kernel = kind(**{**data, "dtypes": tuple(data["dtypes"])})
    sizes = {_LENGTH: "length", _ROWS: "rows"}
    dims = {size: torch.export.Dim(name, min=2, max=WHOLE) for size, name in sizes.items()}
    tensors = example(kernel, _LENGTH)
    shapes = [
        {axis: dims[size] for axis, size in enumerate(tensor.shape) if size in dims} or None
        for tensor in tensors
    ]
    program = torch.export.export(_Module(kernel), (tensors,), dynamic_shapes=(shapes,))
    configs: dict[str, object] = {"cpp.dynamic_threads": True, **_by_the_compiler()}
    if isinstance(kernel, Fusion):
        # Its values are long to compute and read by many sums, but must not be stored for that.
        configs |= {"realize_opcount_threshold": 1 << 20, "realize_reads_threshold": 1 << 20}
    torch._inductor.aoti_compile_and_package(
        program, package_path=arguments[1], inductor_configs=configs
    )


def _by_the_compiler() -> dict[str, object]:
    """Plain loops, which GCC makes vectors of; where it is another compiler, torch makes them.

    GCC's are faster by a third: it knows what does not change in a loop, counts in vectors and
    keeps masks in registers of their own. Integers wrap around, and zeros have signs, as in torch.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not is_gcc():
        return {}
    wide = 512 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 256
    # One option of torch's that goes to the compiler as it is, behind torch's own options.
    flags = (
        "native -ftree-loop-vectorize -fwrapv -fsigned-zeros "
        # A kernel's tensors are many: as many pairs must be seen not to overlap.
        f"-mprefer-vector-width={wide} --param=vect-max-version-for-alias-checks=1000"
    )
    return {"cpp.simdlen": 1, "cpp.march": flags}


if __name__ == "__main__":
    main(sys.argv[1:])
