"""SynSense's Speck: networks in its integers, our model of them, and sinabs 3.1.3, the vendor's layers and quantisation.

Neurons integrate, send as many spikes as thresholds fit into the potential, which they subtract, and stop at a lower bound:

    u = v + w s + b;   n = floor(u / theta) where u > 0, else 0;   v = max(u - n theta, low)

A layer's 8-bit weights and biases and 16-bit thresholds and potentials share one scale, the largest at which all of them fit
(sinabs.backend.dynapcnn.discretize, with its float32 arithmetic). The chip has no clock and sends spikes one by one; sinabs
counts them by step, and so do we. Potentials beyond 16 bits, which sinabs does not bound, are an error here. The chip's output is
spikes; where this network's output is a sum of weights, the host takes it of the last layer's spikes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from spikeprop_hardware.environment import Environment
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.network import ChipNetwork, Population
from spikeprop_hardware.vendors.running import Arrays, Rounding, refuse, rounding, run_jobs

ENVIRONMENT = Environment(
    "sinabs", "sinabs-3.1.3", ("numpy", "pbr", "setuptools"), ("torch", "sinabs"), alone=("sinabs==3.1.3",), borrowed=("torch",)
)  # what sinabs says that it needs includes samna, which no package index has
LOW, HIGH = -(2**15), 2**15 - 1
WEIGHTS = (-128, 127)


@dataclass(frozen=True)
class SpeckLayer:
    """Integers of a layer, and the float32 numbers that they are made from.

    Attributes:
        sources: what it reads, one after another in its columns; "" is the network's input.
        weight, bias, v_init: real, in units of the threshold.
        low: the real lower bound.
        integers: weight (CSR), bias, start potential, threshold and lower bound on the chip.
    """

    name: str
    sources: tuple[str, ...]
    weight: sparse.csr_matrix
    bias: np.ndarray
    v_init: np.ndarray
    low: np.float32
    integers: tuple[sparse.csr_matrix, np.ndarray, np.ndarray, int, int]


@dataclass(frozen=True)
class SpeckNetwork:
    """Layers in the order in which they compute."""

    inputs: int
    layers: tuple[SpeckLayer, ...]


def lower(network: ChipNetwork, input_limit: float = 1.0, timesteps: int | None = None) -> SpeckNetwork:
    """A network in Speck's integers, which do not depend on ``input_limit`` and ``timesteps``.

    Raises:
        HardwareError: what the chip does not compute, naming the layer, with what to do.
    """
    layers = [p for p in network.populations if p.theta is not None]
    for p in layers:
        refuse(p.name, _unable(p))
    if not layers:
        raise HardwareError("the network has no neurons, which Speck's layers end in")
    return SpeckNetwork(int(np.prod(network.input_shape)), tuple(_layer(p, network.input) for p in layers))


def rounded(network: ChipNetwork, input_limit: float = 1.0, timesteps: int | None = None) -> list[Rounding]:
    """What the integers of ``lower`` do to each layer."""
    found = []
    for layer in lower(network, input_limit, timesteps).layers:
        whole, _, _, theta, _ = layer.integers
        largest = int(np.abs(whole.data + (whole.data < 0)).max(initial=0))
        found.append(rounding(layer.name, layer.weight.data.astype(np.float64), whole.data / theta, largest))
    return found


def late(network: ChipNetwork) -> int:
    """Steps by which the last spikes are later than the network's: sinabs computes layer after layer."""
    return 0


def _unable(p: Population) -> dict[str, bool]:
    """What Speck does not compute, as messages."""
    return {
        "is max pooling, which Speck has not: use sum or average pooling": p.pools,
        "sends graded spikes of both signs, which Speck's neurons do not: use IF": p.levels > 0 and not p.pools,
        "has neurons whose thresholds adapt, which Speck's do not: use IF": p.adaptation is not None,
        "has synaptic currents that outlive their step, which Speck has not: use IF": p.synaptic_leak is not None,
        "leaks, and Speck's neurons do not: use IF": p.leak is not None and bool((p.leak != 1).any()),
        "resets to zero, which Speck does spike by spike and this model, in steps, does not: reset: subtract": p.to_zero,
        "reads feedback, which Speck has not: make it a chain": any(c.lag for c in p.connections),
    }


def _layer(p: Population, first: str) -> SpeckLayer:
    """The scale is found as sinabs finds it, so that every integer is the same."""
    assert p.theta is not None
    joined = sparse.hstack([c.matrix for c in p.connections], format="csr")
    weight = (sparse.diags(1 / p.theta) @ joined).tocsr().astype(np.float32)
    bias, v_init = (p.bias / p.theta).astype(np.float32), np.broadcast_to(p.v_init, p.bias.shape).astype(np.float32)
    extremes = np.array([weight.data.min(initial=0), weight.data.max(initial=0)])
    scale = min(_fitting(extremes, *WEIGHTS), _fitting(bias, *WEIGHTS), _fitting(v_init, LOW, HIGH), np.float32(HIGH))
    low = np.float32(LOW) / scale
    scale = min(scale, _fitting(np.array([low, 1], np.float32), LOW, HIGH))
    whole = sparse.csr_matrix((np.rint(weight.data * scale).astype(np.int64), weight.indices, weight.indptr), weight.shape)
    integers = (
        whole, np.rint(bias * scale).astype(np.int64), np.rint(v_init * scale).astype(np.int64), int(np.rint(scale)),
        int(np.rint(low * scale)),
    )  # fmt: skip
    if integers[3] < 1:
        raise HardwareError(
            f"layer {p.name!r} has weights of {np.abs(extremes).max():.3g} thresholds, beside which a threshold is 0 in 8 bits"
        )
    sources = tuple("" if c.source == first else c.source for c in p.connections)
    return SpeckLayer(p.name, sources, weight, bias, v_init, low, integers)


def _fitting(values: np.ndarray, low: int, high: int) -> np.float32:
    """The largest factor with which values fit between two integers; PyTorch divides a number by a tensor so."""
    least, most = np.float32(values.min()), np.float32(values.max())
    one = np.float32(1)
    with np.errstate(divide="ignore"):
        if abs(least) <= abs(most) * np.float32(abs(low / high)):
            return abs(np.float32(high) * (one / most))
        return abs(np.float32(low) * (one / least))


def simulate(network: SpeckNetwork, inputs: np.ndarray) -> Arrays:
    """Our model of the chip.

    Args:
        network: integers.
        inputs: (samples, steps, ...), numbers of spikes.

    Returns:
        by layer, the numbers of spikes (samples, steps, neurons).

    Raises:
        HardwareError: inputs that are not numbers of spikes, or a potential beyond 16 bits.
    """
    given = _checked(network, inputs)
    trains: Arrays = {"": given}
    for layer in network.layers:
        weight, bias, v_init, theta, low = layer.integers
        arriving = np.concatenate([trains[source] for source in layer.sources], -1)
        v, sent = np.repeat(v_init[None], len(given), 0), np.zeros((*given.shape[:2], len(bias)), np.int64)
        for t in range(given.shape[1]):
            v = v + (weight @ arriving[:, t].T).T + bias
            if v.max(initial=0) > HIGH:
                raise HardwareError(
                    f"layer {layer.name!r} reaches a potential of {v.max():,} at step {t + 1}, and Speck's have 16 bits"
                )
            sent[:, t] = np.maximum(v, 0) // theta
            v = np.maximum(v - sent[:, t] * theta, low)
        trains[layer.name] = sent
    return {layer.name: trains[layer.name] for layer in network.layers}


def run(network: SpeckNetwork, inputs: np.ndarray, notify: Callable[[str], None] = print) -> Arrays:
    """The same by sinabs, which quantises the layers itself; arguments and result as of ``simulate``.

    Raises:
        SimulatorMissing: its environment cannot be made.
        HardwareError: its integers are others.
    """
    return run_all([(network, inputs)], notify)[0]


def run_all(pairs: Sequence[tuple[SpeckNetwork, np.ndarray]], notify: Callable[[str], None] = print) -> list[Arrays]:
    """``run`` for many networks in one process."""
    jobs: list[Arrays] = []
    for network, inputs in pairs:
        job: Arrays = {"inputs": _checked(network, inputs), "count": np.array(len(network.layers))}
        numbers = {"": -1, **{layer.name: i for i, layer in enumerate(network.layers)}}
        for i, layer in enumerate(network.layers):
            job |= {
                f"weight{i}": layer.weight.toarray(),
                f"bias{i}": layer.bias,
                f"v{i}": layer.v_init,
                f"low{i}": np.array(layer.low),
                f"sources{i}": np.array([numbers[source] for source in layer.sources]),
            }
        jobs.append(job)
    found = run_jobs(ENVIRONMENT, "speck_worker", jobs, notify)
    for (network, _), result in zip(pairs, found):
        _check_integers(network, result)
    return [
        {layer.name: result[f"spikes{i}"] for i, layer in enumerate(network.layers)} for (network, _), result in zip(pairs, found)
    ]


def _check_integers(network: SpeckNetwork, theirs: Arrays) -> None:
    for i, layer in enumerate(network.layers):
        weight, bias, v_init, theta, low = layer.integers
        ours = {"weight": weight.toarray(), "bias": bias, "v": v_init, "bounds": np.array([theta, low])}
        for what, numbers in ours.items():
            differing = int(np.count_nonzero(numbers != theirs[f"{what}{i}"].reshape(numbers.shape)))
            if differing:
                raise HardwareError(f"layer {layer.name!r}: sinabs rounds {differing} numbers of {what} in another way")


def _checked(network: SpeckNetwork, inputs: np.ndarray) -> np.ndarray:
    given = np.asarray(inputs).reshape(*inputs.shape[:2], -1)
    if given.shape[2] != network.inputs:
        raise HardwareError(f"inputs have {given.shape[2]} values a step, and the network reads {network.inputs}")
    if (given != np.rint(given)).any() or given.min(initial=0) < 0:
        raise HardwareError("Speck's inputs are events: whole numbers of them, 0 or more; encode them (Poisson, of 0..1)")
    return given.astype(np.int64)
