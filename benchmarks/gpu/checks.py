"""Every kernel against the reference, at sizes that fill a GPU's multiprocessors and at sizes that fill no word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import BUILDERS, Case, Tensors, variants
from benchmarks.gpu.parts import Context
from spikeprop.snn.engine.kernels import packed_kernels

# Of the largest value; bfloat16 rounds to 8 bits.
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8}
SIZES = ((20, 8, 32, 64), (70, 4, 8, 70), (4, 2, 4, 33), (1, 1, 2, 1))  # steps, batch, side, channels
SMALL = ((3, 1, 2, 33),)  # for the interpreter, whose time goes by the number of programs


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A record for each kernel at each setting: whether it equals the reference, and how far it is from it."""
    if context.small:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    kernels = packed_kernels(torch.device("cuda"))
    for size in SMALL if context.small else SIZES:
        for setting in variants(*size):
            for build in BUILDERS:
                torch.manual_seed(0)
                case = build(setting, "cpu")
                ours = case.call(kernels, case.copies(context.device))
                yield {"kernel": case.kernel, "setting": str(setting), **compared(case, ours)}


def compared(case: Case, ours: Tensors) -> dict[str, Any]:
    """The largest difference to the reference, of its largest value, and whether that is within rounding (0 where exact)."""
    wanted = case.reference()
    found = {name: _difference(ours[name].cpu(), value) for name, value in wanted.items()}
    good = all(
        difference <= (0 if case.exact else LIMITS[ours[name].dtype]) for name, difference in found.items()
    )  # a NaN is no good
    return {"good": good, "difference": max(found.values(), key=lambda x: (x != x, x))}


def _difference(ours: Tensor, wanted: Tensor) -> float:
    if not wanted.is_floating_point():
        return float((ours != wanted).sum())
    return float((ours.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
