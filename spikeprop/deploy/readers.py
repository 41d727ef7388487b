"""What the NIR importers of other libraries make of neurons, according to their code, and the node that says ours there.

NIR's LIF is tau dv/dt = (v_leak - v) + r*I; a factor on a layer's current may be in r or in the weights before it. In a step,

- Norse 1.1 (``norse.torch.from_nir``) ignores r and steps by 1 ms: r goes into the weights, and tau is in s. Resets to zero.
- snnTorch 1.0 (``snntorch.import_nir.import_from_nir``) reads an IF as a leaky neuron that then cannot run, needs one threshold
  a layer, and steps by 0.1 ms: an IF is a LIF whose leak rounds to none, thresholds that differ go into the weights. To zero.
- sinabs 3.1 (``sinabs.nir.from_nir``) ignores r, and its leak is exp(-1/tau). It bounds an IF from below, so an IF is a LIF
  that does not leak. Subtracts, from u >= theta on, as many thresholds as u holds, each of which is a spike.
- Rockpool 3.1 (``rockpool.nn.modules.torch.nir.from_nir``) reads CubaLIF alone, on vectors. Its time step is tau_mem / (1 + r),
  its leaks exp(-dt/tau), and a current has leaked when a potential reads it first. Fires and subtracts as sinabs does.
- Spyx 1.0 (``spyx.nir.from_nir``) subtracts in an IF and a LIF after the leak, in a CubaLIF before it: all are CubaLIF. A spike
  leaves a step after the potential rose, so the output is later by a step for each layer, and only the first weights and the
  last may have a bias. It reads images with channels last, so only vectors are written.
- SpiNNaker2's (``spinnaker2.s2_nir``) rounds weights on the chip, and neither it nor the chip's neurons can be had from a package
  index: nothing shows that its spikes would be equal, so nothing is written.

sinabs and Rockpool send several spikes in a step where a potential holds several thresholds. What our neurons send is at most
one, and the same, if no set of spikes can make a potential of two; where that is not certain the graph is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import nir
import numpy as np
from spikeprop_hardware.graph import SPIKING_ENCODERS
from spikeprop_hardware.network import ChipNetwork

from spikeprop.errors import NirError

NORSE_DT = 1e-3
SNNTORCH_DT = 1e-4
NO_LEAK = 1e16  # steps of a time constant beside which 1 / NO_LEAK vanishes in float64


class Neurons(NamedTuple):
    """A layer's thresholds, the factor on its potential in each step and that on its current, 0 where none outlives its step."""

    theta: np.ndarray
    leak: float
    synaptic_leak: float


Written = tuple[Any, np.ndarray]  # a node, and the factor on the weights before it


def _for_norse(n: Neurons) -> Written:
    if n.leak == 1:
        return nir.IF(r=np.ones_like(n.theta), v_threshold=n.theta, v_reset=np.zeros_like(n.theta)), np.ones(())
    tau = np.full_like(n.theta, NORSE_DT / (1 - n.leak))
    zeros = np.zeros_like(n.theta)
    neuron = nir.LIF(tau=tau, r=np.ones_like(n.theta), v_leak=zeros, v_threshold=n.theta, v_reset=zeros)
    return neuron, np.asarray(1 / (1 - n.leak))


def _for_snntorch(n: Neurons) -> Written:
    theta, factor = n.theta.astype(np.float64), np.ones(())
    if np.any(theta != theta.flat[0]):
        factor, theta = 1 / theta, np.ones_like(theta)
    steps = 1 / (1 - n.leak) if n.leak < 1 else NO_LEAK
    theta = theta.astype(np.float32)  # a leak in float64 would meet weights in float32
    zeros, r = np.zeros_like(theta), np.full_like(theta, steps)
    return nir.LIF(tau=r * SNNTORCH_DT, r=r, v_leak=zeros, v_threshold=theta, v_reset=zeros), factor


def _for_sinabs(n: Neurons) -> Written:
    theta = _above(n.theta)
    zeros = np.zeros_like(theta)
    tau = np.full_like(theta, _tau(n.leak))
    return nir.LIF(tau=tau, r=zeros + 1, v_leak=zeros, v_threshold=theta, v_reset=zeros), np.ones(())


def _for_rockpool(n: Neurons) -> Written:
    theta = _above(n.theta)
    zeros, tau = np.zeros(theta.shape), np.full(theta.shape, _tau(n.leak))
    neuron = nir.CubaLIF(
        tau_syn=zeros + _tau(n.synaptic_leak), tau_mem=tau, r=tau - 1, v_leak=zeros, v_threshold=theta.astype(np.float64),
        v_reset=zeros,
    )  # fmt: skip
    return neuron, np.asarray(1 / n.synaptic_leak)


def _for_spyx(n: Neurons) -> Written:
    zeros = np.zeros(n.theta.shape, np.float32)
    tau, tau_syn = (zeros + (1 / (1 - leak) if leak < 1 else NO_LEAK) for leak in (n.leak, n.synaptic_leak))
    theta = n.theta.astype(np.float32)
    return nir.CubaLIF(tau_syn=tau_syn, tau_mem=tau, r=zeros + 1, v_leak=zeros, v_threshold=theta, v_reset=zeros), np.ones(())


def _tau(leak: float) -> float:
    """In steps, of a factor exp(-1/tau)."""
    return NO_LEAK if leak == 1 else float(-1 / np.log(leak)) if leak > 0 else 1 / NO_LEAK


def _above(theta: np.ndarray) -> np.ndarray:
    """The next number in float32, which a potential reaches where it is above the threshold."""
    return np.nextafter(theta.astype(np.float32), np.float32(np.inf))


@dataclass(frozen=True)
class Reader:
    """How a library reads neurons, and what it does not read.

    Attributes:
        write: our neurons as it reads them.
        reset: the only one that it has.
        current: of a synaptic current: "none", "any" or "needed".
        several: it sends a spike for each threshold in a potential.
        vectors: it reads dense layers alone.
        late: its spikes leave a step late.
        average: it reads average pooling.
        affine: it reads no weights without a bias.
    """

    write: Callable[[Neurons], Written]
    reset: str
    current: str = "none"
    several: bool = False
    vectors: bool = False
    late: bool = False
    average: bool = False
    affine: bool = False


READERS = {
    "norse": Reader(_for_norse, "zero"),
    "snntorch": Reader(_for_snntorch, "zero", average=True),
    "sinabs": Reader(_for_sinabs, "subtract", several=True, affine=True),
    "rockpool": Reader(_for_rockpool, "subtract", current="needed", several=True, vectors=True),
    "spyx": Reader(_for_spyx, "subtract", current="any", vectors=True, late=True),
}
NOT_WRITTEN = {
    "spinnaker2": "SpiNNaker2's importer (py-spinnaker2) rounds weights to whole numbers on the chip, and neither it nor the "
    "chip's neurons can be had from a package index: nothing shows that the spikes would be equal, so nothing is written for it"
}


def reader_of(library: str) -> Reader:
    """The reader of that name.

    Raises:
        NirError: one that is not known, or that nothing is written for.
    """
    if library in NOT_WRITTEN:
        raise NirError(NOT_WRITTEN[library])
    if library not in READERS:
        raise NirError(f"there is no way to write for {library!r}; known: {', '.join(READERS)}")
    return READERS[library]


def check_one_spike(network: ChipNetwork, name: str, library: str) -> None:
    """Refuse neurons whose potential may hold two thresholds, for a reader that would send two spikes.

    With at most one spike a step a potential is at most its threshold after it, so at most leak * theta + current before it.
    """
    population = next(p for p in network.populations if p.name == name)
    assert population.theta is not None
    most = population.bias.astype(np.float64)
    for c in population.connections:
        if c.source == network.input:
            if network.encoder not in SPIKING_ENCODERS:
                raise NirError(
                    f"node {name!r} reads the network's inputs, which have no bound, and {library} sends two spikes where a "
                    "potential holds two thresholds; encode them as spikes (encoder: Poisson)"
                )
            most = most + abs(c.matrix).sum(1).A1
        else:
            most = most + c.matrix.maximum(0).sum(1).A1
    leak = 1.0 if population.leak is None else population.leak
    if population.synaptic_leak is not None:
        with np.errstate(divide="ignore"):
            most = np.where(most > 0, most / (1 - population.synaptic_leak), 0)
    highest = ((np.maximum(most, 0) + leak * population.theta) / population.theta).max()
    if highest >= 2:
        raise NirError(
            f"node {name!r} may reach {highest:.3g} thresholds in a step, where {library} sends {int(highest)} spikes and this "
            "network one: a larger threshold, or smaller weights, would make them the same"
        )
