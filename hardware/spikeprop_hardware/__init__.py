"""Runs a NIR file of a spiking network on Lava processes or in a batched simulator equal to them, in floating point or in the
integers of Loihi 2: ``simulate(nir_file, inputs)`` returns every spike and output, ``quantize(graph)`` the integer network,
``budget(network)`` what it takes on the chip. What a NIR file means, and what is refused, is written here and nowhere else."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spikeprop_hardware.errors import HardwareError, LavaMissing, NirError, SimulatorMissing, SpikepropError

if TYPE_CHECKING:
    from spikeprop_hardware.chip import Activity, Budget, LayerBudget, activity, budget
    from spikeprop_hardware.environment import lava_is_ready, why_no_lava
    from spikeprop_hardware.events import binned
    from spikeprop_hardware.graph import ALIF, GradedIF, SpikingMaxPool2d, StepLIF
    from spikeprop_hardware.integer import IntegerNetwork
    from spikeprop_hardware.network import ChipNetwork, lay_out
    from spikeprop_hardware.netx import quantize_for_netx, write_netx
    from spikeprop_hardware.onnx_step import run_onnx, step_model
    from spikeprop_hardware.quantization import LayerReport, Quantized, quantize
    from spikeprop_hardware.reading import read_nir
    from spikeprop_hardware.recording import Recording, SimulationResult
    from spikeprop_hardware.reference import Simulator
    from spikeprop_hardware.simulation import simulate
    from spikeprop_hardware.streaming import Decision, Stream
    from spikeprop_hardware.targets import Target, target
    from spikeprop_hardware.targets.energy import energy_table
    from spikeprop_hardware.targets.fitting import Finding, Fit, fits

__all__ = [
    "ALIF",
    "Activity",
    "Budget",
    "ChipNetwork",
    "Decision",
    "Finding",
    "Fit",
    "GradedIF",
    "HardwareError",
    "IntegerNetwork",
    "LavaMissing",
    "LayerBudget",
    "LayerReport",
    "NirError",
    "Quantized",
    "Recording",
    "SimulationResult",
    "Simulator",
    "SimulatorMissing",
    "SpikepropError",
    "SpikingMaxPool2d",
    "StepLIF",
    "Stream",
    "Target",
    "activity",
    "binned",
    "budget",
    "energy_table",
    "fits",
    "lava_is_ready",
    "lay_out",
    "quantize",
    "quantize_for_netx",
    "read_nir",
    "run_onnx",
    "simulate",
    "step_model",
    "target",
    "why_no_lava",
    "write_netx",
]
__version__ = "0.1.0"
_MODULES = (
    "graph",
    "reading",
    "network",
    "integer",
    "recording",
    "quantization",
    "netx",
    "onnx_step",
    "reference",
    "chip",
    "simulation",
    "streaming",
    "events",
    "environment",
    "targets",
    "targets.fitting",
    "targets.energy",
)


def __getattr__(name: str) -> Any:
    """numpy, scipy, nir and HDF5 are imported when a name that needs them is used; the errors need none of them."""
    for module in _MODULES if name in __all__ else ():
        found = vars(import_module(f"spikeprop_hardware.{module}"))
        if name in found:
            return found[name]
    raise AttributeError(f"module 'spikeprop_hardware' has no attribute {name!r}")
