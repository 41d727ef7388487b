"""Runs a NIR file of a spiking network on Lava processes: ``simulate(nir_file, inputs)`` returns every spike and output."""

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.simulate import Simulation, simulate

__all__ = ["HardwareError", "Simulation", "simulate"]
__version__ = "0.1.0"
