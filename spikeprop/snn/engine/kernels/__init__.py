"""Kernels that run neurons over several time steps, forward and backward, and the one place that chooses among them.

``reference`` is plain torch with floats; ``packed_reference``, ``cpu`` (Numba) and ``cuda`` (Triton) work on packed spikes.
"""

from __future__ import annotations

from types import ModuleType

import torch

__all__ = ["has_fast_kernels", "packed_kernels"]


def has_fast_kernels(device: torch.device) -> bool:
    """Whether kernels that are faster than the reference exist for a device."""
    return device.type == "cpu" or (device.type == "cuda" and _has_triton())


def packed_kernels(device: torch.device) -> ModuleType:
    """The module of kernels over packed spikes for a device; the plain one where there is no better."""
    if device.type == "cpu":
        from spikeprop.snn.engine.kernels import cpu

        return cpu
    if has_fast_kernels(device):
        from spikeprop.snn.engine.kernels import cuda

        return cuda
    from spikeprop.snn.engine.kernels import packed_reference

    return packed_reference


def _has_triton() -> bool:
    """Torch brings it where there is one for the platform."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
