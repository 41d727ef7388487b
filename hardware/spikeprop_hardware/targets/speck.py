"""SynSense's Speck (2e, 2f): an event camera and nine cores, each of which is one convolution, its neurons and a sum pooling.

Read: sinabs' documentation (docs/speck/overview.md and faqs/available_network_arch.md of synsense/sinabs), its
sinabs/backend/dynapcnn/chips/dynapcnn.py, and the page of samna on Speck 2e. A core's memory of weights is addressed by channel
and by place in the kernel in powers of two:

    entries = channels in * 2^(ceil(log2(kernel height * kernel width)) + ceil(log2(channels out)))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from spikeprop_hardware.targets.target import Target

OVERVIEW = "synsense/sinabs, docs/speck/overview.md"
ARCHITECTURE = "synsense/sinabs, docs/source/faqs/available_network_arch.md"
BUILDER = "synsense/sinabs, sinabs/backend/dynapcnn/chips/dynapcnn.py"
KI = 1024


@dataclass(frozen=True, kw_only=True)
class Speck(Target):
    """Asynchronous: a spike is computed as it comes, so that there is no time step and no energy of one."""

    name: str = "speck"
    weight_bits: int = 8
    state_bits: int = 16
    exponents: tuple[int, ...] | None = (-1,)
    neurons: tuple[str, ...] = ("IF",)
    layers: tuple[str, ...] = ("Linear", "Conv2d")
    poolings: tuple[str, ...] = ("average", "sum")
    recurrent: bool = False
    several: bool = True
    real_input: bool = False
    real_output: bool = False
    cores: int | None = 9
    chips: int | None = 1
    weight_memory: tuple[int, ...] | None = (16 * KI, 16 * KI, 16 * KI, 32 * KI, 32 * KI, 64 * KI, 64 * KI, 16 * KI, 16 * KI)
    neuron_memory: tuple[int, ...] | None = (64 * KI, 64 * KI, 64 * KI, 32 * KI, 32 * KI, 16 * KI, 16 * KI, 16 * KI, 16 * KI)
    destinations: int | None = 2
    branches: int | None = 1
    input_size: int | None = 128
    output_size: int | None = 64
    channels: int | None = 1024
    kernel: int | None = 16
    strides: tuple[int, ...] | None = (1, 2, 4, 8)
    padding: int | None = 7
    pool_sizes: tuple[int, ...] | None = (1, 2, 4)
    idle_watts: float | None = 0.42e-3
    simulator: str = "sinabs"
    unsimulated: tuple[str, ...] = ("zero",)
    sources: ClassVar[Mapping[str, str]] = {
        "weight_bits": OVERVIEW,
        "state_bits": OVERVIEW,
        "per_channel": f"{BUILDER}: integers as they are, no exponents",
        "symmetric": f"{BUILDER}: -128 to 127",
        "exponents": f"{BUILDER}: integers as they are",
        "payload_bits": f"{OVERVIEW}: events",
        "several": f"{ARCHITECTURE}: neurons spike as their potential passes the threshold; sinabs' IAF counts them (MultiSpike)",
        "neurons": f"{ARCHITECTURE}: IAF; the leak is a constant a clock tick, which no neuron here has",
        "resets": f"{BUILDER}: return_to_zero or not",
        "layers": f"{ARCHITECTURE}: Conv2d, Linear (as a convolution over the complete map), Flatten",
        "poolings": f"{OVERVIEW}: sum pooling; an average's factor goes into the next weights",
        "recurrent": f"{ARCHITECTURE}: cores may be connected by hand, which sinabs does not do",
        "real_input": f"{OVERVIEW}: events of the camera or from elsewhere",
        "real_output": f"{ARCHITECTURE}: a core's neurons always spike",
        "leaks": "none of IF",
        "forgets": "no leak",
        "biases": f"{BUILDER}: at each tick of the leak's clock",
        "starts": f"{BUILDER}: neurons_initial_value",
        "output_apart": "a core may be read by the host and by others",
        "cores": OVERVIEW,
        "chips": "no system of several is published",
        "weight_memory": BUILDER,
        "neuron_memory": BUILDER,
        "destinations": OVERVIEW,
        "branches": f"{ARCHITECTURE}: a core is one convolution, its neurons and a pooling",
        "input_size": OVERVIEW,
        "output_size": OVERVIEW,
        "channels": OVERVIEW,
        "kernel": f"{OVERVIEW}; square: {BUILDER}",
        "strides": OVERVIEW,
        "padding": OVERVIEW,
        "pool_sizes": OVERVIEW,
        "idle_watts": "Yao et al. 2024, Nature Communications 15, 4464: the processor at rest",
    }
