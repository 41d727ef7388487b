"""Compile every kernel for GPUs that are not here, and say what each needs: registers, spills, shared memory.

Triton compiles for the target of its driver. A driver of which only the architecture exists lets kernels be launched up to the
point where they would run. ptxas and cuobjdump come with Triton. Registers are those of the machine code; its stack and local
memory are what was spilled.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import BUILDERS, variants
from spikeprop.snn.engine.kernels import packed_kernels

TARGETS = (80, 90, 100)
NOWHERE = 10_000  # the number of a device that does not exist: keeps what is compiled for it apart from real devices
WARPS, REGISTERS = 64, 65_536  # most warps, and registers, of a multiprocessor of these targets
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class _Nowhere:
    """A driver whose device has nothing but an architecture."""

    def __init__(self, target: Any):
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return NOWHERE

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compile_only(target: int) -> Iterator[list[Any]]:
    """Kernels that are launched inside are compiled for sm_``target``, appended to the list, and not run."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    found: list[Any] = []
    run, active = JITFunction.run, driver._active

    def instead(self: Any, *arguments: Any, warmup: bool, **how: Any) -> None:
        found.append(run(self, *arguments, warmup=True, **how))

    driver._active = _Nowhere(GPUTarget("cuda", target, 32))  # type: ignore[assignment]
    JITFunction.run = instead  # type: ignore[method-assign]
    try:
        yield found
    finally:
        driver._active, JITFunction.run = active, run  # type: ignore[method-assign]
        for kernel in vars(packed_kernels(torch.device("cuda"))).values():
            if isinstance(kernel, JITFunction):
                kernel.device_caches.pop(NOWHERE, None)


def compiled(target: int, widths: Sequence[int] = (64, 70)) -> Iterator[dict[str, Any]]:
    """What each kernel needs on one target, at each setting that the engine uses; Triton knows of 64 that 16 divides it."""
    kernels = packed_kernels(torch.device("cuda"))
    for setting in (setting for channels in widths for setting in variants(20, 1, 4, channels)):
        for build in BUILDERS:
            case = build(setting, "cpu")
            with compile_only(target) as found:
                case.call(kernels, case.inputs)
            for kernel in found:
                yield {"target": f"sm_{target}", "kernel": kernel.name, "setting": str(setting), **needs(kernel)}


def needs(kernel: Any) -> dict[str, int]:
    """Registers a thread, bytes a thread spilled, bytes of shared memory a program, warps that registers leave room for."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        tool = Path(str(triton.__file__)).parent / "backends/nvidia/bin/cuobjdump"
        shown = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True)
    usage = USAGE.search(shown.stdout + shown.stderr)
    assert usage is not None, shown.stdout
    registers, stack, _, local = map(int, usage.groups())
    per_warp = 32 * -(-registers // 8) * 8
    return {
        "registers": registers,
        "spilled": stack + local,
        "shared": int(kernel.metadata.shared),
        "warps": min(WARPS, REGISTERS // per_warp),
    }


def by_kernel(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """The most that any setting of a kernel needs on each target; the fewest warps."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        known = found.setdefault(row["kernel"], {}).setdefault(row["target"], {})
        for name in ("registers", "spilled", "shared"):
            known[name] = max(known.get(name, 0), row[name])
        known["warps"] = min(known.get("warps", WARPS), row["warps"])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A line a kernel: registers / bytes spilled / bytes of shared memory / warps, for each target."""
    found = by_kernel(rows)
    targets = list(dict.fromkeys(row["target"] for row in rows))
    lines = [f"{'registers/spilled/shared/warps':<32}" + "".join(f"{target:>18}" for target in targets)]
    for kernel, of in found.items():
        cells = ["/".join(map(str, of[target].values())) for target in targets]
        lines.append(f"{kernel:<32}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
