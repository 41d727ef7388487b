"""SynSense's Xylo Audio 2 (SYNS61201): up to 1000 leaky neurons with synaptic currents, for audio.

Read: rockpool.ai/devices/xylo-overview.html and open-neuromorphic.org, "Xylo - SynSense". A hidden neuron may send up to 31
spikes in a step, which our neurons never do; an output neuron sends one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from spikeprop_hardware.targets.target import Target

OVERVIEW = "rockpool.ai/devices/xylo-overview.html"
ONM = 'open-neuromorphic.org, "Xylo - SynSense"'


@dataclass(frozen=True, kw_only=True)
class Xylo(Target):
    """Synchronous, in steps that the user sets; one core."""

    name: str = "xylo"
    weight_bits: int = 8
    state_bits: int = 16
    exponents: tuple[int, ...] | None = tuple(range(-1, 7))
    neurons: tuple[str, ...] = ("CubaLIF",)
    resets: tuple[str, ...] = ("subtract",)
    poolings: tuple[str, ...] = ("average", "sum")
    several: bool = True
    real_input: bool = False
    real_output: bool = False
    leaks: str = "powers of two"
    biases: tuple[str, ...] = ()
    starts: bool = False
    output_apart: bool = True
    delay: int | None = 0
    fan_in: int | None = 63
    fan_out: int | None = 64
    cores: int | None = 1
    chips: int | None = 1
    neurons_per_core: int | None = 1008
    synapses: int | None = 64_000
    inputs: int | None = 16
    hidden: int | None = 1000
    outputs: int | None = 8
    idle_watts: float | None = 219e-6
    simulator: str = "xylosim"
    sources: ClassVar[Mapping[str, str]] = {
        "weight_bits": OVERVIEW,
        "state_bits": ONM,
        "symmetric": "vendors/xylo.py scales each neuron's largest weight to 127",
        "per_channel": f"{OVERVIEW}: 8-bit weights, no exponents but one shift a group",
        "exponents": "rockpool, config_from_specification: weights of a group are shifted to the left; how far is not published",
        "payload_bits": f"{OVERVIEW}: events",
        "several": f"{OVERVIEW}: up to 31 of a hidden neuron",
        "neurons": f"{OVERVIEW}: LIF with exponential synapses; a current decays before it is read (vendors/xylo.py)",
        "resets": OVERVIEW,
        "layers": f"{OVERVIEW}: any weights between neurons; a convolution is written out",
        "poolings": "average and sum are weights",
        "recurrent": OVERVIEW,
        "real_input": f"{OVERVIEW}: up to 15 events a channel and step",
        "real_output": f"{OVERVIEW}: output neurons spike",
        "leaks": f"{OVERVIEW}: bit-shift decay",
        "forgets": f"{OVERVIEW}: bit-shift decay, by 0 places all of it",
        "biases": "xylosim: a bias joins the potential behind the synaptic current, and ours before it",
        "starts": "xylosim: all state starts at 0",
        "output_apart": f"{OVERVIEW}: input, hidden and output weights; hidden neurons alone have recurrent ones",
        "delay": f"{OVERVIEW}: every connection takes one step",
        "fan_in": ONM,
        "fan_out": OVERVIEW,
        "cores": OVERVIEW,
        "chips": "no system of several is published",
        "neurons_per_core": f"{OVERVIEW}: 1000 hidden and 8 output neurons",
        "synapses": ONM,
        "inputs": OVERVIEW,
        "hidden": OVERVIEW,
        "outputs": OVERVIEW,
        "idle_watts": f"{ONM}: measured in an audio application",
    }
