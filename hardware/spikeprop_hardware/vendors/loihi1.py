"""Intel's Loihi 1: networks in its integers, and the emulator of nengo-loihi 1.1.0.

The equations are those of integer.py, of neurons that reset to zero, with spikes of one bit in and out, and

- every synapse takes a step, also that of an input, so that a layer's spikes are later by a step than those of the layer that it
  reads, and its bias works from the first step on: such a network *is* one with a ``lag`` of one more in each connection;
- a bias joins the potential and not the synaptic current, so neurons with a current that outlives its step have none;
- what arrives in a step has 22 bits, and exponents are not so low that a sum loses bits.

The readout is a neuron whose threshold is beyond every potential. Source: the emulator (nengo_loihi/emulator/interface.py), and
Davies et al. 2018, IEEE Micro 38(1), 82-99.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from spikeprop_hardware.environment import Environment
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import ALIGN, DECAY_UNITY, IntegerConnection, IntegerNetwork, IntegerPopulation
from spikeprop_hardware.network import ChipNetwork, Population
from spikeprop_hardware.quantization import LayerReport, Quantized, Widths, quantize_network
from spikeprop_hardware.reference import Simulator
from spikeprop_hardware.vendors.running import Arrays, refuse, run_jobs

ENVIRONMENT = Environment(
    "nengo-loihi", "nengo-loihi-1.1.0", ("nengo-loihi==1.1.0", "nengo<4.1", "numpy<2"), ("nengo_loihi", "numpy")
)
WIDTHS = Widths(exponents=range(-1, 8), symmetric=True)
ARRIVING = 2**21  # what arrives at a neuron in a step stays below
THRESHOLD = 2**24  # that no potential reaches


def lower(network: ChipNetwork, input_limit: float = 1.0, timesteps: int | None = None) -> IntegerNetwork:
    """A network in Loihi 1's integers and in its time.

    Args:
        network: laid out.
        input_limit: the most spikes of an input in a step.
        timesteps: of a simulation, which the readout gets room for.

    Raises:
        HardwareError: what the chip does not compute, naming the layer, with what to do.
    """
    made = _quantized(network, input_limit, timesteps).network
    return replace(made, populations=[_in_time(p, {made.input: input_limit}) for p in made.populations])


def rounded(network: ChipNetwork, input_limit: float = 1.0, timesteps: int | None = None) -> list[LayerReport]:
    """What the integers of ``lower`` do to each layer."""
    return _quantized(network, input_limit, timesteps).report


def _quantized(network: ChipNetwork, input_limit: float, timesteps: int | None) -> Quantized:
    if network.stride != 1:
        raise HardwareError("the network has a loop over several layers that takes one step, and Loihi 1 takes one a synapse")
    for p in network.populations:
        refuse(p.name, _unable(p))
    spiking = replace(network, encoder="Poisson")  # one-bit spikes are read
    return quantize_network(spiking, input_limit, timesteps, WIDTHS)


def late(network: ChipNetwork) -> int:
    """Steps by which the readout is later than the network's: each synapse takes one."""
    return network.depth


def _unable(p: Population) -> dict[str, bool]:
    """What Loihi 1 does not compute, as messages."""
    return {
        "is max pooling, which Loihi 1 has not: use average pooling": p.pools,
        "sends graded spikes, and Loihi 1's have one bit: use IF": p.levels > 0 and not p.pools,
        "has neurons whose thresholds adapt, which nengo-loihi's emulator has not: use LIF": p.adaptation is not None,
        "subtracts its threshold, and nengo-loihi's neurons reset to zero: reset: zero": p.theta is not None
        and not p.to_zero
        and not p.pools,
        "has a bias beside a synaptic current, where Loihi 1 adds it behind the current: bias: false": p.synaptic_leak is not None
        and bool(p.bias.any()),
        "forgets its potential at once, which Loihi 1's keeps in part: read the sum": p.leak is not None
        and bool((p.leak == 0).any()),
        "has a connection that delivers later than the others (a skip connection), and the emulator has no delays: make it a "
        "chain": any(c.delay for c in p.connections),
    }


def _in_time(p: IntegerPopulation, sent: dict[str, float]) -> IntegerPopulation:
    """A population whose connections take a step; ``sent`` has the most spikes of a source, where it is not 1."""
    connections = [replace(c, lag=1) for c in p.connections]
    arriving = sum(abs(c.matrix).sum(1).A1 * 2.0 ** (c.exponent + 1 + ALIGN) * max(sent.get(c.source, 1), 1) for c in connections)
    if np.max(arriving) >= ARRIVING:
        raise HardwareError(f"layer {p.name!r} may get {np.max(arriving):,.0f} in a step, and Loihi 1 sums up to {ARRIVING:,}")
    return replace(p, connections=connections)


def simulate(network: IntegerNetwork, inputs: np.ndarray) -> Arrays:
    """Our model of the chip, in its time.

    Args:
        network: what ``lower`` made.
        inputs: (samples, steps, *shape), numbers of spikes.

    Returns:
        by layer, whether it spiked (samples, steps, neurons); of the readout, its potentials.
    """
    _checked(inputs)
    result = Simulator(network).run(inputs)
    if result.clipped:
        raise HardwareError(f"potentials stopped at the limits of 24 bits: {result.clipped}; quantise for more steps")
    return result.spikes | {network.readout.name: result.output}


def run(network: IntegerNetwork, inputs: np.ndarray, notify: Callable[[str], None] = print) -> Arrays:
    """The same by nengo-loihi's emulator; arguments and result as of ``simulate``."""
    return run_all([(network, inputs)], notify)[0]


def run_all(pairs: Sequence[tuple[IntegerNetwork, np.ndarray]], notify: Callable[[str], None] = print) -> list[Arrays]:
    """``run`` for many networks in one process."""
    found = run_jobs(ENVIRONMENT, "loihi1_worker", [_job(*pair) for pair in pairs], notify)
    return [
        {
            p.name: result[f"{'v' if p.theta is None else 'spikes'}{i}"] for i, p in enumerate(network.populations)
        }
        for (network, _), result in zip(pairs, found)
    ]  # fmt: skip


def _job(network: IntegerNetwork, inputs: np.ndarray) -> Arrays:
    numbers = {network.input: -1, **{p.name: i for i, p in enumerate(network.populations)}}
    given = _checked(inputs)
    job: Arrays = {"inputs": given.reshape(*given.shape[:2], -1), "count": np.array(len(network.populations))}
    for i, p in enumerate(network.populations):
        size = len(p.bias)
        current = np.full(size, DECAY_UNITY) if p.synaptic_decay is None else p.synaptic_decay
        job |= {
            f"decay_u{i}": current - 1, f"decay_v{i}": p.decay, f"bias{i}": p.bias << p.bias_exponent, f"start{i}": p.v_init,
            f"vth{i}": np.full(size, THRESHOLD) if p.theta is None else p.theta << ALIGN,
            f"sources{i}": np.array([numbers[c.source] for c in p.connections]),
        }  # fmt: skip
        for j, c in enumerate(p.connections):
            job[f"weight{i}_{j}"] = _weights(c)
    return job


def _weights(c: IntegerConnection) -> np.ndarray:
    """What a spike of each source adds, (sources, targets)."""
    return c.matrix.toarray().T.astype(np.int32) << (c.exponent + 1 + ALIGN)


def _checked(inputs: np.ndarray) -> np.ndarray:
    if (inputs != np.rint(inputs)).any() or inputs.min(initial=0) < 0:
        raise HardwareError("Loihi 1's inputs are spikes: whole numbers of them, 0 or more; encode them (Poisson, of 0..1)")
    return inputs.astype(np.int64)
