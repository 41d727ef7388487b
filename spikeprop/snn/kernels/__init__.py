"""Kernels that run a neuron over several time steps, forward and backward."""

from spikeprop.snn.kernels.bits import PackedSpikes
from spikeprop.snn.kernels.reference import integrate_and_fire

__all__ = ["PackedSpikes", "integrate_and_fire"]
