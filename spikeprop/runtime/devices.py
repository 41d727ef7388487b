"""The device that a recipe or ``--device`` means: auto, cpu, cuda or cuda:1."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

from spikeprop.errors import RecipeError

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, and of Arm
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def find_device(name: str) -> torch.device:
    """The device of this machine that a recipe or ``--device`` means; "auto" is CUDA where there is one.

    Raises:
        RecipeError: an unknown name, or a device that this machine lacks.
    """
    if not DEVICE.fullmatch(name):
        raise RecipeError(f"device: {name!r} is unknown; use auto, cpu, cuda or cuda:1")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if found else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= found:
        raise RecipeError(f"device: {name!r} is not on this machine, where torch finds {found} CUDA devices; use auto or cpu")
    return device


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; without them they take longer than those of float32."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:  # not Linux: torch knows x86
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return bool(words & BFLOAT16_FLAGS)
