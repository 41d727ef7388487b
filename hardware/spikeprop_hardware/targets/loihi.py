"""Intel's Loihi (2018) and Loihi 2 (2021).

Intel's own brief on Loihi 2 ("Taking Neuromorphic Computing to the Next Level with Loihi 2", 2021) and the paper on the first
Loihi (Davies et al. 2018, IEEE Micro 38(1)) were not available in full, so that numbers of the chips come from what was read:
secondary sources, and the code of Lava and of nengo-loihi. How a synapse and a neuron of Loihi 2 are stored is not published,
and assumed here: one byte for an 8-bit weight, one more for its target where a connection is not dense; three 32-bit words for
a neuron, in the core of the neuron that reads. Loihi 2 can share a convolution's weights, which is not counted on.

Energies of an operation exist for the *first* Loihi alone, from simulations before the silicon (table 2 there: "pre-silicon", the
synaptic operation a minimum): 23.6 pJ a synaptic operation, 52 pJ an update of an inactive neuron and 81 pJ of an active one;
3.0 to 4.0 pJ a hop between tiles, which keras-spiking adds, at 3.5 pJ, to each operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from spikeprop_hardware.targets.target import Joules, Target

ONM = 'open-neuromorphic.org, "Loihi 2 - Intel"'
LAVA = "Lava's bit-accurate processes (lava-nc 0.10, lava/proc/lif/models.py and lava/proc/sparse)"
NENGO = "nengo-loihi, nengo_loihi/block.py"
TABLE_2 = "Davies et al. 2018, IEEE Micro 38(1), table 2 (simulated before the silicon)"
MICROCODE = "assumed: neurons of Loihi 2 are programs (microcode); no such program of ours has run on silicon"
STORED = "assumed: not published"
SYNOP, UPDATE = Joules(23.6e-12, 27.1e-12), Joules(52e-12, 81e-12)


@dataclass(frozen=True, kw_only=True)
class Loihi2(Target):
    """Intel's second: programmable neurons, graded spikes. Its integers are those of ``integer.py``."""

    name: str = "loihi2"
    weight_bits: int = 8
    state_bits: int = 24
    payload_bits: int = 32
    cores: int | None = 128
    chips: int | None = 1152
    neurons_per_core: int | None = 8192
    bytes_per_core: int | None = 192 * 1024
    synapses: int | None = 120_000_000
    delay: int | None = 62
    priced_as: str | None = "loihi1"
    bytes_per_weight: int | None = 1
    bytes_per_target: int | None = 1
    bytes_per_neuron: int | None = 12
    bytes_per_sent: int | None = 4
    bytes_per_state: int | None = 4
    bytes_per_count: int | None = 2
    places: int | None = 15
    simulator: str = "lava"
    sources: ClassVar[Mapping[str, str]] = {
        "weight_bits": LAVA,
        "state_bits": LAVA,
        "per_channel": f"{LAVA}: one weight exponent a connection",
        "symmetric": f"{LAVA}: two's complement",
        "payload_bits": "Intel 2021, the brief on Loihi 2, as quoted by reviews: integers of up to 32 bits in a spike",
        "several": "one message a neuron and step",
        "neurons": MICROCODE,
        "resets": MICROCODE,
        "poolings": f"max: {MICROCODE}; average and sum are weights",
        "layers": "any synapses; a convolution is written out",
        "recurrent": ONM,
        "real_input": "integers in graded spikes",
        "real_output": "potentials that a probe reads",
        "leaks": f"{LAVA}: 4096ths",
        "forgets": MICROCODE,
        "biases": LAVA,
        "starts": LAVA,
        "output_apart": ONM,
        "cores": ONM,
        "chips": 'eenewseurope.com, "Intel breaks a billion neurons ...", April 2024: Hala Point (140,544 cores are 122 a chip)',
        "neurons_per_core": f"{ONM}: 1 million neurons a chip",
        "bytes_per_core": "matzavreview.com, 4 October 2021, on Intel's slides: 192 KB a core, 25 MB in all",
        "synapses": ONM,
        "delay": "lava-dl, lava/lib/dl/netx/hdf5.py, which clamps delays there",
        "priced_as": "Intel has published no energy of an operation of Loihi 2; the first Loihi's stand for it",
        "bytes_per_weight": STORED,
        "bytes_per_target": STORED,
        "bytes_per_neuron": STORED,
        "bytes_per_sent": STORED,
        "bytes_per_state": STORED,
        "bytes_per_count": STORED,
        "places": "processes/max_pool.py, which packs a window's spikes into one message",
    }


@dataclass(frozen=True, kw_only=True)
class Loihi1(Target):
    """Intel's first: leaky neurons with a hard reset, one-bit spikes."""

    name: str = "loihi1"
    weight_bits: int = 8
    state_bits: int = 24
    symmetric: bool = True
    exponents: tuple[int, ...] | None = tuple(range(-1, 8))
    neurons: tuple[str, ...] = ("IF", "LIF", "CubaLIF")
    resets: tuple[str, ...] = ("zero",)
    poolings: tuple[str, ...] = ("average", "sum")
    real_input: bool = False
    forgets: bool = False
    biases: tuple[str, ...] = ("IF", "LIF")
    axons_in: int | None = 4096
    axons_out: int | None = 4096
    cores: int | None = 128
    chips: int | None = 768
    neurons_per_core: int | None = 1024
    bytes_per_core: int | None = 128 * 1024
    synop_joules: Joules | None = SYNOP
    update_joules: Joules | None = UPDATE
    bytes_per_weight: int | None = 1
    bytes_per_target: int | None = 1
    bytes_per_neuron: int | None = 0
    simulator: str = "nengo-loihi"
    unsimulated: tuple[str, ...] = ("delays", "loops")
    sources: ClassVar[Mapping[str, str]] = {
        "weight_bits": f"{NENGO}: weights of 0 to 6 and of 8 bits",
        "state_bits": f"{NENGO}: potentials of up to 2^23 - 1",
        "per_channel": f"{NENGO}: one weight exponent a synapse group",
        "symmetric": f"{NENGO}: a sign and eight bits, of which the last is dropped",
        "exponents": f"{NENGO} and its emulator: weight exponents; lower ones lose bits of a sum there",
        "payload_bits": "Davies et al. 2018: spikes are single bits",
        "several": "Davies et al. 2018: a neuron spikes once a step",
        "neurons": "Davies et al. 2018: leaky integrate-and-fire with a synaptic current",
        "resets": f"{NENGO} and its emulator: a spike sets the potential to 0",
        "poolings": "average and sum are weights; max pooling needs a program, which the chip has not",
        "layers": "any synapses; a convolution is written out",
        "recurrent": "Davies et al. 2018",
        "real_input": "Davies et al. 2018: spikes are single bits",
        "real_output": "potentials that a probe reads",
        "leaks": f"{NENGO}: 4096ths",
        "forgets": f"{NENGO} and its emulator: a decay of a potential is at most 4095 of 4096",
        "biases": f"{NENGO}; of neurons without a synaptic current alone (vendors/loihi1.py)",
        "starts": "the emulator's potentials, which the host may set",
        "output_apart": "Davies et al. 2018: any neuron may send to any",
        "axons_in": NENGO,
        "axons_out": NENGO,
        "cores": "Davies et al. 2018",
        "chips": "Intel, March 2020: Pohoiki Springs",
        "neurons_per_core": NENGO,
        "bytes_per_core": f"{NENGO}: 1,048,576 bits of synapses",
        "synop_joules": f"{TABLE_2}; the most with 3.5 pJ a hop, as keras_spiking/model_energy.py adds",
        "update_joules": f"{TABLE_2}: inactive and active",
        "bytes_per_weight": f"{NENGO}: 8 bits",
        "bytes_per_target": "assumed: sparse formats of synapses are not published",
        "bytes_per_neuron": "state is not in the memory of synapses",
    }
