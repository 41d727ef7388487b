"""Runs a NIR file of a spiking network on Lava processes or in a batched simulator equal to them, in floating point or in the
integers of Loihi 2: ``simulate(nir_file, inputs)`` returns every spike and output, ``quantize(graph)`` the integer network,
``budget(plan)`` what it takes on the chip."""

from spikeprop_hardware.budget import Activity, Budget, Chip, LayerBudget, activity, budget, energy_joules
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import IntegerNetwork
from spikeprop_hardware.netx import quantize_for_netx, write_netx
from spikeprop_hardware.plan import make_plan
from spikeprop_hardware.quantize import LayerReport, Quantized, quantize
from spikeprop_hardware.reading import read_graph
from spikeprop_hardware.reference import Simulator
from spikeprop_hardware.simulate import Recording, Simulation, simulate

__all__ = [
    "Activity",
    "Budget",
    "Chip",
    "HardwareError",
    "IntegerNetwork",
    "LayerBudget",
    "LayerReport",
    "Quantized",
    "Recording",
    "Simulation",
    "Simulator",
    "activity",
    "budget",
    "energy_joules",
    "make_plan",
    "quantize",
    "quantize_for_netx",
    "read_graph",
    "simulate",
    "write_netx",
]
__version__ = "0.1.0"
