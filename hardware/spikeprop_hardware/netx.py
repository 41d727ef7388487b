"""A network in the HDF5 form that lava-dl's netx reads: integers, one chain of fully connected layers of hard-reset neurons.

    layer/I/type, shape, weight     "dense", (N,), (N, M): even integers in -256..254, no exponent
    layer/I/neuron/type, iDecay, vDecay, vThMant, refDelay

as ``lava.lib.dl.netx.hdf5.Network`` reads them: current decay iDecay = 4096 (a current does not outlive its step), potential
decay vDecay in 4096ths, threshold vThMant on the weights' scale, reset to zero, and all state starts at zero. The readout is a
layer whose threshold, 2^18 - 1, is beyond what 24 bits hold; read its potential. Convolutions and pooling are written out as
the matrices that they are, so that nothing depends on the order of axes: inputs are vectors in C-order, and so is every layer.

What netx would run differently, or what is not written for it, is refused: graded neurons, feedback, synaptic currents, reset by
subtraction, a start potential other than 0, max pooling of spikes, skip connections; biases, since there they charge each layer
from the first step on, before its input arrives; real-valued input, which would need an exponent. The format was read in
lava-dl's code and is tested by reading files back; lava-dl itself was not run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.graph import SPIKING_ENCODERS
from spikeprop_hardware.integer import IntegerNetwork
from spikeprop_hardware.network import ChipNetwork, Population, lay_out
from spikeprop_hardware.quantization import Quantized, Widths, quantize_network

NEVER = 2**18 - 1
CURRENT_DECAY = 4096
LARGEST = 2**28  # weights of one layer, written out


def quantize_for_netx(graph: nir.NIRGraph) -> Quantized:
    """An integer network without exponents, one threshold a layer; thresholds that differ go into the weights.

    Raises:
        HardwareError: something that netx does not have, naming the layer.
    """
    network = lay_out(graph)
    for population in network.populations:
        if population.pools:  # first, since no other change would help
            raise HardwareError(
                f"layer {population.name!r} is a max pooling of spikes by their counts, and netx has no neuron for it; train "
                "with average pooling in its place, or export as NIR"
            )
        if population.signed:
            raise HardwareError(
                f"layer {population.name!r} sends graded spikes, and netx's neurons send ones; convert with IF, reset: zero, or "
                "export as NIR"
            )
    _check_time(network)
    if network.encoder not in SPIKING_ENCODERS:
        raise HardwareError(
            f"netx has no exponent for real-valued input, and this network's encoder is {network.encoder or 'not named'}; export "
            "it as NIR, or convert with convert.encoder=Poisson"
        )
    if network.readout_from:
        raise HardwareError(
            f"the network's output counts from step {network.readout_from} on, and netx has no delayed readout: export it as "
            "NIR, or convert with delay: false"
        )
    before = network.input
    for population in network.populations:
        _check(population, before)
        before = population.name
    uniform = replace(network, populations=[_one_threshold(p) for p in network.populations])
    return quantize_network(uniform, widths=Widths(exponents=(0,), own_thresholds=False))


def write_netx(network: IntegerNetwork, path: Path) -> None:
    """Write what ``quantize_for_netx`` made; inputs are 0 and 1, or with ``has_graded_input`` -1 too."""
    with h5py.File(path, "w") as file:
        for i, population in enumerate(network.populations):
            group = file.create_group(f"layer/{i}")
            matrix = population.connections[0].matrix
            group["type"] = np.array([b"dense"])
            group["shape"] = np.array([matrix.shape[0]])
            group.create_dataset("weight", data=matrix.toarray().astype(np.int16) * 2, compression="gzip")
            neuron = group.create_group("neuron")
            neuron["type"] = np.array([b"CUBA"])
            neuron["iDecay"], neuron["refDelay"] = CURRENT_DECAY, 1
            neuron["vDecay"] = int(population.decay[0])
            neuron["vThMant"] = NEVER if population.theta is None else int(population.theta[0])


def _check_time(network: ChipNetwork) -> None:
    """No feedback, no state beside the potential, and the sum over all steps as the output."""
    for p in network.populations:
        if p.synaptic_leak is not None or p.adaptation is not None or any(c.lag for c in p.connections):
            what = "a synaptic current" if p.synaptic_leak is not None else "an adaptive threshold"
            what = "feedback or a delay" if any(c.lag for c in p.connections) else what
            raise HardwareError(f"layer {p.name!r} has {what}, which is not written for netx; export as NIR")
    if not network.accumulates:
        raise HardwareError("the output is no sum over the steps of what arrives, as netx's readout is; export as NIR")


def _check(population: Population, before: str) -> None:
    name = f"layer {population.name!r}"
    if len(population.connections) != 1 or population.connections[0].source != before:
        raise HardwareError(f"{name} does not read the layer before it alone; netx has no sums and no skip connections")
    if population.bias.any():
        raise HardwareError(f"{name} has biases, which in netx charge it before its input arrives; export as NIR")
    if population.connections[0].matrix.shape[0] * population.connections[0].matrix.shape[1] > LARGEST:
        raise HardwareError(f"{name} would have more than {LARGEST:,} weights as a fully connected layer; export as NIR")
    if population.theta is None or population.leak is None:
        return
    if not population.to_zero:
        raise HardwareError(f"{name} resets by subtraction, and netx's neurons reset to zero; convert with reset: zero")
    if np.any(population.v_init != 0):
        raise HardwareError(f"{name} starts at v_init other than 0, and netx's neurons start at 0; convert with v_init: 0")
    if np.any(population.leak != population.leak[0]):
        raise HardwareError(f"{name} has several leaks, and netx has one a layer")


def _one_threshold(population: Population) -> Population:
    """Spikes do not change when a neuron's weights and threshold are divided by one number."""
    theta = population.theta
    if theta is None or np.all(theta == theta[0]):
        return population
    (connection,) = population.connections
    matrix = (sparse.diags(1 / theta) @ connection.matrix).tocsr()
    return replace(population, connections=[replace(connection, matrix=matrix)], theta=np.ones_like(theta))
