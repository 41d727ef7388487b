"""Deployment: NIR, other formats, simulation compared with PyTorch, the chip budget, quantisation-aware fine-tuning."""

from spikeprop_hardware import read_nir

from spikeprop.deploy.chip import chip_budget
from spikeprop.deploy.comparison import VENDORS, RunOn, compare, encoded, record
from spikeprop.deploy.files import export, export_netx, export_onnx
from spikeprop.deploy.interchange import portable
from spikeprop.deploy.precision import bits_curve, mixed_precision, sensitivity
from spikeprop.deploy.quantised import QuantisedBPTT
from spikeprop.deploy.reading import ENCODERS, from_nir, layer_names
from spikeprop.deploy.vendor import rounded_on_chip, simulate_on_chip
from spikeprop.deploy.writing import to_nir

__all__ = [
    "ENCODERS",
    "VENDORS",
    "QuantisedBPTT",
    "RunOn",
    "bits_curve",
    "chip_budget",
    "compare",
    "encoded",
    "export",
    "export_netx",
    "export_onnx",
    "from_nir",
    "layer_names",
    "mixed_precision",
    "portable",
    "read_nir",
    "record",
    "rounded_on_chip",
    "sensitivity",
    "simulate_on_chip",
    "to_nir",
]
