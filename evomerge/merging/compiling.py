"""The process that compiles a kernel: ``python -m evomerge.merging.compiling KERNEL FILE``."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch._inductor.cpp_builder import is_gcc

from evomerge.merging import kernels
from evomerge.merging.entries import F, I
from evomerge.merging.kernels import WHOLE, Kernel

_LENGTH = 4096  # of the example that the kernel is exported with


class _Module(torch.nn.Module):
    """A kernel as what torch exports."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self._kernel = kernel

    def forward(self, tensors: list[torch.Tensor]) -> tuple[()]:
        kernels.run(self._kernel, tensors)
        return ()


def example(kernel: Kernel, numel: int, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """Tensors of the types and shapes that a kernel takes, without meaning."""
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
    return [made[name]().to(device) for name in kernel.order()]


def _example_out(kernel: Kernel, numel: int) -> torch.Tensor:
    if kernel.goal == "sums":
        return torch.zeros(kernel.models * (2 if kernel.totals else 1), dtype=torch.int64)
    if kernel.goal == "table":
        return torch.zeros(numel, dtype=torch.int64)
    return torch.zeros(numel, dtype=getattr(torch, str(kernel.out)))


def main(arguments: Sequence[str]) -> None:
    """Compile one kernel: its fields as JSON, and the file to write."""
    data = json.loads(arguments[0])
    kernel = replace(
        Kernel(**{field.name: data[field.name] for field in fields(Kernel)}),
        dtypes=tuple(data["dtypes"]),
    )
    length = torch.export.Dim("length", min=2, max=WHOLE)
    tensors = example(kernel, _LENGTH)
    shapes = [{0: length} if tensor.shape[:1] == (_LENGTH,) else None for tensor in tensors]
    program = torch.export.export(_Module(kernel), (tensors,), dynamic_shapes=(shapes,))
    configs: dict[str, object] = {"cpp.dynamic_threads": True, **_by_the_compiler()}
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
