"""A chip without limits but the widths of its numbers: what a quantisation costs, before a chip is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from spikeprop_hardware.targets.target import Target

OWN = "no chip: what the integer simulator computes"


@dataclass(frozen=True, kw_only=True)
class Generic(Target):
    """``Generic(weight_bits=4)``, or by name ``generic-4``."""

    name: str = "generic"
    weight_bits: int = 8
    state_bits: int = 24
    per_channel: bool = True
    payload_bits: int = 7
    sources: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("weight_bits", "state_bits", "per_channel", "symmetric", "payload_bits", "several", "neurons", "resets", "layers",
         "poolings", "recurrent", "real_input", "real_output", "leaks", "forgets", "biases", "starts", "output_apart"), OWN,
    )  # fmt: skip
