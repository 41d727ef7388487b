"""How near each kernel comes to the memory: bytes it must move (``cases.py``) over its time, beside a copy's on the same GPU."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.cases import BUILDERS, FORMULAS, Case, Setting, Tensors
from benchmarks.gpu.parts import Context
from spikeprop.snn.engine.kernels import packed_kernels

SIZE = Setting(steps=32, batch=32, side=32, channels=64)  # currents of 256 MiB: several times the cache
SMALL = Setting(steps=3, batch=1, side=2, channels=33)
WORDS_ONLY = {"_any_of": 16, "_since_at_end": 8}  # times the batch: what reads bits alone
COPY_BYTES = 2 << 30
REPEATS = 20


def run(context: Context) -> Iterator[dict[str, Any]]:
    """First the bandwidth of a copy, then a record for each kernel and type."""
    if context.small:
        os.environ["TRITON_INTERPRET"] = "1"
    copy = copy_bandwidth(context)
    yield {"kernel": "copy", "bytes_per_s": copy}
    kernels = packed_kernels(torch.device("cuda"))
    settings = [SMALL] if context.small else [SIZE, replace(SIZE, dtype=torch.bfloat16), replace(SIZE, pool=2, to_zero=True)]
    for setting in settings:
        for build in BUILDERS:
            kernel = build.__name__ if build.__name__ != "pooled" else "pool"
            times = 1 if context.small else WORDS_ONLY.get(f"_{kernel}", 1)
            case = build(replace(setting, batch=setting.batch * times), context.device)
            yield {"setting": str(setting), **measured(case, kernels, context, copy)}
            del case


def measured(case: Case, kernels: Any, context: Context, copy: float) -> dict[str, Any]:
    """Median seconds of one launch; every launch has the inputs as they were."""
    first = case.copies(context.device)

    def prepared() -> Tensors:
        for name, tensor in case.inputs.items():
            first[name].copy_(tensor)
        return first

    seconds = timed(lambda t: case.call(kernels, t), prepared, 1 if context.small else REPEATS, context)
    rate = case.bytes / seconds
    compiled = _needs(kernels, case.kernel) if context.device != "cpu" else {}
    found = {"kernel": case.kernel, "formula": FORMULAS[case.kernel], "bytes": case.bytes, "seconds": seconds}
    return {**found, "bytes_per_s": rate, "of_copy": rate / copy, **compiled}


def _needs(kernels: Any, name: str) -> dict[str, int]:
    """Registers and spills of what the driver loaded, the most of all that were compiled here; nothing if Triton hides them."""
    loaded = [kernel for cache in getattr(kernels, name).device_caches.values() for kernel in dict(cache[0]).values()]
    known = [(k.n_regs, k.n_spills) for k in loaded if getattr(k, "n_regs", None) is not None]
    return {"registers": max(regs for regs, _ in known), "spilled": max(spills for _, spills in known)} if known else {}


def copy_bandwidth(context: Context) -> float:
    """Bytes a second that a copy reads and writes, a quarter of the free memory at most."""
    size = 1 << 20 if context.small else min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    seconds = timed(lambda _: target.copy_(source), dict, 1 if context.small else REPEATS, context)
    return 2 * size / seconds


def timed(action: Callable[[Tensors], Any], prepare: Callable[[], Tensors], repeats: int, context: Context) -> float:
    """Median seconds of ``action`` alone, after two warm-ups; on CUDA by its events.

    Half a gigabyte is written before each: it clears the cache, and keeps the GPU busy until the host has launched ``action``.
    """
    seconds = []
    scratch = torch.empty(0 if context.device == "cpu" else 1 << 29, dtype=torch.uint8, device=context.device)
    for number in range(repeats + 2):
        prepared = prepare()
        if context.device == "cpu":
            start = time.perf_counter()
            action(prepared)
            seconds.append(time.perf_counter() - start)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(4):
            scratch.zero_()
        begin.record()
        action(prepared)
        end.record()
        torch.cuda.synchronize()
        if number >= 2:
            seconds.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(seconds)
