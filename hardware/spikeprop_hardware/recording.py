"""What a simulation keeps, and what it returns; the same of Lava and of the reference simulator."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spikeprop_hardware.integer import IntegerNetwork, IntegerPopulation
from spikeprop_hardware.network import ChipNetwork


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a simulation keeps: every spike (bytes: samples * steps * neurons), every potential (slow on Lava)."""

    spikes: bool = True
    membranes: bool = False


SPIKES = Recording()
BITS_PER_NUMBER = 48  # of spikes, packed into a number: Lava returns variables as float64, which is exact up to 2^53


@dataclass
class SimulationResult:
    """What a simulation returns, by population.

    Attributes:
        spikes: (samples, steps, *shape) bool, of graded neurons int8, the number sent; empty where they were not to be recorded.
        output: (samples, steps, classes): what the output would be if the simulation ended at that step, the sum of its values
            unless the network says otherwise (``read``).
        membranes: (samples, steps, *shape): potentials after each step's reset, of an integer network in the chip's integers; of
            max pooling, a window's largest count; empty unless asked for.
        counts: spikes over all samples and steps.
        clipped: of an integer network, how many potentials stopped at the limits of 24 bits, over all samples, steps and neurons;
            populations without any are left out. The readout's are wrong from there on; a neuron's only where it should have
            sunk lower.
    """

    spikes: dict[str, np.ndarray]
    output: np.ndarray
    membranes: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)


def shaped(result: SimulationResult, network: ChipNetwork | IntegerNetwork) -> SimulationResult:
    """Flat arrays (samples, steps, neurons) in the populations' shapes, the output in real units and from ``readout_from`` on."""
    shapes = {p.name: (*result.output.shape[:2], *p.shape) for p in network.populations}
    last = network.readout
    output = read_out(result.output, network)
    return SimulationResult(
        {name: train.reshape(shapes[name]) for name, train in result.spikes.items()},
        output * last.unit if isinstance(last, IntegerPopulation) else output,
        {name: trace.reshape(shapes[name]) for name, trace in result.membranes.items()},
        result.counts,
        result.clipped,
    )


def read_out(potentials: np.ndarray, network: ChipNetwork | IntegerNetwork) -> np.ndarray:
    """The output by step, of the readout's potentials (samples, steps, classes), which may change."""
    delay, read = network.readout_from, network.read
    if read == "last":
        return potentials
    if read == "max":
        start = delay if delay < potentials.shape[1] else 0
        potentials[:, start:] = np.maximum.accumulate(potentials[:, start:], axis=1)
        return potentials
    sums = counted_from(potentials if network.accumulates else np.cumsum(potentials, axis=1), delay)
    if read == "sum":
        return sums
    steps = np.arange(1, sums.shape[1] + 1)
    return sums / np.where(steps > delay, steps - delay, steps)[:, None]


def counted_from(output: np.ndarray, delay: int) -> np.ndarray:
    """Accumulated outputs (samples, steps, classes) without the first ``delay`` steps, once more steps have passed; in place."""
    if 0 < delay < output.shape[1]:
        output[:, delay:] -= output[:, delay - 1 : delay].copy()
    return output
