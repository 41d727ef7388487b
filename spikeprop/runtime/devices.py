"""The device that a recipe or ``--device`` means: auto, cpu, cuda or cuda:1."""

from __future__ import annotations

import re

import torch

from spikeprop.errors import RecipeError

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
