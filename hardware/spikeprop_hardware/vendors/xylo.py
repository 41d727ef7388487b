"""SynSense's Xylo (Audio 2, SYNS61201): networks in its integers, our model of it, and xylosim 0.1.3, the vendor's.

One population of hidden neurons, which may read each other, and one of output neurons, which are the network's last layer of
neurons: the host takes the readout of their spikes. All state has 16 bits and saturates. In
a step, with w the 8-bit weight of a synapse shifted up, s up to 15 spikes of an input and up to 31 of a hidden neuron, the
latter's of the step before,

    i = clip(i + w) for each spike, one after another;   i = i - decay(i, syn)
    v = clip(v + clip(clip(i - decay(v, mem)) + bias))
    while v >= theta and fewer than 31 (output neurons: 1) were sent: one spike is sent, and v = v - theta
    decay(x, k) = x >> k, or 1 with the sign of x where that is 0

A current has decayed when a potential reads it first, unlike ours (neurons.py): weights are larger by 1 / synaptic leak.
Source: the vendor's description of the chip in rockpool 3.1 (rockpool.ai/devices/xylo-overview.html), held against xylosim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from spikeprop_hardware.environment import Environment
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.network import ChipNetwork, Population
from spikeprop_hardware.vendors.running import Arrays, Rounding, refuse, rounding, run_jobs

ENVIRONMENT = Environment("xylosim", "xylosim-0.1.3", ("numpy", "xylosim==0.1.3"), ("numpy", "xylosim"))
MOST_INPUT, MOST_HIDDEN, MOST_OUTPUT = 15, 31, 1  # spikes of a step
LOW, HIGH = -(2**15), 2**15 - 1
LARGEST_WEIGHT = 127
LARGEST_SHIFT = 7
LARGEST_DASH = 15
ROOM = 4  # the potential holds so many thresholds


@dataclass(frozen=True)
class XyloNetwork:
    """Integers of the chip; neurons are the hidden ones, then the output ones.

    Attributes:
        into, among, out: weights (sources, targets), int8: of inputs on hidden neurons, of hidden ones on each other, and on
            output neurons.
        shifts: by which these are shifted up.
        mem, syn: bit shifts of the decays.
        theta, bias: of potentials.
        layers: name and number of neurons of each population, in order; the last is the output.
        leak_error: largest difference of a factor from the network's own.
        roundings: what it does to the weights of each layer.
    """

    into: np.ndarray
    among: np.ndarray
    out: np.ndarray
    shifts: tuple[int, int, int]
    mem: np.ndarray
    syn: np.ndarray
    theta: np.ndarray
    bias: np.ndarray
    layers: dict[str, int] = field(default_factory=dict)
    leak_error: float = 0.0
    roundings: tuple[Rounding, ...] = ()


def lower(network: ChipNetwork, input_limit: float = 1.0, timesteps: int | None = None) -> XyloNetwork:
    """A network in Xylo's integers: leaks as powers of two, 8-bit weights with a scale of its own for each neuron.

    They do not depend on ``input_limit`` and ``timesteps``.

    Raises:
        HardwareError: what the chip does not compute, naming the layer, with what to do.
    """
    layers = _spiking(network)
    starts = dict(zip((p.name for p in layers), np.cumsum([0, *(len(p.bias) for p in layers)])))
    hidden, outputs = starts[layers[-1].name], len(layers[-1].bias)
    inputs, neurons = int(np.prod(network.input_shape)), hidden + outputs
    real = {"into": np.zeros((inputs, hidden)), "among": np.zeros((hidden, hidden)), "out": np.zeros((hidden, outputs))}
    theta, mem, syn, errors = np.zeros(neurons), np.zeros(neurons, int), np.zeros(neurons, int), [0.0]
    for p in layers:
        leak, synaptic = _leaks(p)
        here = slice(starts[p.name], starts[p.name] + len(p.bias))
        mem[here], syn[here], theta[here] = _dash(leak, 0), _dash(synaptic, 1), p.theta
        errors += [float(np.abs(1 - 2.0 ** -mem[here] - leak).max()), float(np.abs(1 - 2.0 ** -syn[here] - synaptic).max())]
        for c in p.connections:
            weights = (sparse.diags(1 / (1 - 2.0 ** -syn[here])) @ c.matrix).toarray().T
            kind = "out" if p is layers[-1] else "into" if c.source == network.input else "among"
            if kind == "out" and c.source not in starts:
                raise HardwareError(f"layer {p.name!r} is read as the output and reads the input; put a hidden layer before it")
            rows = slice(None) if kind == "into" else slice(starts[c.source], starts[c.source] + len(weights))
            columns = slice(None) if kind == "out" else here
            real[kind][rows, columns] += weights
    columns = np.hstack([np.vstack([real["into"], real["among"]]), np.vstack([np.zeros((inputs, outputs)), real["out"]])])
    scale, shift = _scale(columns, theta, 2.0**syn)
    parts = {"into": scale[:hidden], "among": scale[:hidden], "out": scale[hidden:]}
    weights = {name: np.rint(real[name] * parts[name]).astype(np.int8) for name in real}
    roundings = tuple(_rounding(p.name, real, weights, parts, starts, hidden) for p in layers)
    return XyloNetwork(
        **weights, shifts=(shift, shift, shift), mem=mem, syn=syn, bias=np.zeros(neurons, int), leak_error=max(errors),
        theta=np.maximum(np.rint(theta * scale * 2**shift), 1).astype(int), layers={p.name: len(p.bias) for p in layers},
        roundings=roundings,
    )  # fmt: skip


def rounded(network: ChipNetwork, input_limit: float = 1.0, timesteps: int | None = None) -> list[Rounding]:
    """What the integers of ``lower`` do to each layer."""
    return list(lower(network, input_limit, timesteps).roundings)


def late(network: ChipNetwork) -> int:
    """Steps by which the output neurons' spikes are later than the network's: a synapse between neurons takes one."""
    return max(p.depth for p in network.populations if p.theta is not None) - 1


def _rounding(name: str, real: Arrays, weights: Arrays, scales: Arrays, starts: Mapping[str, int], hidden: int) -> Rounding:
    """Of the synapses that end in a layer: those of output neurons are apart."""
    first = starts[name]
    after = min((start for start in starts.values() if start > first), default=None)
    kinds = ["out"] if first >= hidden else ["into", "among"]
    here = slice(None) if first >= hidden else slice(first, after)
    wanted = np.concatenate([real[kind][:, here].ravel() for kind in kinds])
    whole = np.concatenate([weights[kind][:, here].ravel() for kind in kinds]).astype(np.int64)
    held = np.concatenate([(weights[kind] / scales[kind])[:, here].ravel() for kind in kinds])
    there = wanted != 0
    return rounding(name, wanted[there], held[there], int(np.abs(whole).max(initial=0)))


def _spiking(network: ChipNetwork) -> list[Population]:
    """The populations of neurons, in order; the chip's output is the last one's spikes."""
    layers = [p for p in network.populations if p.theta is not None]
    readers = {c.source for p in network.populations if p.theta is None for c in p.connections}
    if not layers or readers - {layers[-1].name}:
        raise HardwareError(
            "Xylo's output is the spikes of its output neurons, and this network's readout reads others: it can read the last "
            "layer of neurons alone, of which the host takes the sum"
        )
    for p in layers:
        refuse(p.name, _unable(p, layers[-1].name))
    return layers


def _unable(p: Population, last: str) -> dict[str, bool]:
    """What Xylo does not compute, as messages."""
    read_back = any(c.source == last for c in p.connections)
    return {
        "is max pooling, which Xylo has not: use average pooling": p.pools,
        "sends graded spikes, which Xylo's neurons do not: use CubaLIF": p.levels > 0 and not p.pools,
        "has neurons whose thresholds adapt, which Xylo's do not: use CubaLIF": p.adaptation is not None,
        "resets to zero, and Xylo subtracts the threshold: reset: subtract": p.to_zero,
        "has no synaptic current, and Xylo's always outlives its step: use CubaLIF": p.synaptic_leak is None and not p.pools,
        "starts at v_init other than 0, which Xylo's neurons do not": bool(np.any(np.asarray(p.v_init) != 0)),
        "has biases, which Xylo adds behind the synaptic current and this network before it: bias: false": bool(p.bias.any()),
        "reads the output neurons, which send to nothing on Xylo: put a layer between": read_back,
        "has a connection that delivers later than the others (a skip connection, or feedback over layers), and Xylo's all "
        "take one step: make it a chain": any(c.delay for c in p.connections),
    }


def _leaks(p: Population) -> tuple[np.ndarray, np.ndarray]:
    assert p.synaptic_leak is not None
    leak = np.ones(len(p.bias)) if p.leak is None else p.leak
    if p.synaptic_leak.min() < 1 / 3:
        raise HardwareError(f"layer {p.name!r} has a synaptic leak of {p.synaptic_leak.min():.3g}, and Xylo's is at least 0.5")
    return leak, p.synaptic_leak


def _dash(leak: np.ndarray, least: int) -> np.ndarray:
    """The bit shift k whose factor 1 - 2^-k is nearest."""
    factors = 1 - 2.0 ** -np.arange(least, LARGEST_DASH + 1)
    return least + np.abs(factors - leak[:, None]).argmin(1)


def _scale(columns: np.ndarray, theta: np.ndarray, charge: np.ndarray) -> tuple[np.ndarray, int]:
    """The factor of each neuron's weights, and the shift of all, with which nothing saturates where each source sends one."""
    largest, reach = np.abs(columns).max(0, initial=0), np.abs(columns).sum(0) * charge
    needed = np.maximum(ROOM * theta, reach)
    scale = np.minimum(LARGEST_WEIGHT / np.where(largest, largest, 1e-9), HIGH / needed)
    shift = int(np.clip(np.floor(np.log2((HIGH / (needed * scale)).min())), 0, LARGEST_SHIFT))
    return scale, shift


def simulate(network: XyloNetwork, inputs: np.ndarray) -> Arrays:
    """Our model of the chip.

    Args:
        network: integers.
        inputs: (samples, steps, ...), numbers of spikes.

    Returns:
        by layer, the numbers of spikes (samples, steps, neurons) in the chip's time: a layer's are later by a step than those of
        the layer that it reads.
    """
    given = _checked(network, inputs)
    hidden, count = len(network.among), len(network.theta)
    i, v = (np.zeros((len(given), count), np.int64) for _ in range(2))
    sent = np.zeros((len(given), hidden), np.int64)
    record = np.zeros((*given.shape[:2], count), np.uint8)
    most = np.repeat([MOST_HIDDEN, MOST_OUTPUT], [hidden, count - hidden])
    into, among, out = (w.astype(np.int64) << k for w, k in zip((network.into, network.among, network.out), network.shifts))
    for t in range(given.shape[1]):
        i[:, :hidden] = _deliver(i[:, :hidden], np.minimum(given[:, t], MOST_INPUT), into)
        i[:, :hidden] = _deliver(i[:, :hidden], sent, among)
        i[:, hidden:] = _deliver(i[:, hidden:], sent, out)
        i -= _decay(i, network.syn)
        change = np.clip(np.clip(i - _decay(v, network.mem), LOW, HIGH) + network.bias, LOW, HIGH)
        v = np.clip(v + change, LOW, HIGH)
        spikes = np.clip(v // network.theta, 0, most)
        v -= spikes * network.theta
        sent, record[:, t] = spikes[:, :hidden], spikes
    return _by_layer(network, record)


def _deliver(i: np.ndarray, spikes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Currents after the spikes; where one could saturate on the way, spike by spike in the order of their sources."""
    if (np.abs(i) + spikes @ np.abs(weights)).max(initial=0) <= HIGH:
        return i + spikes @ weights
    for source in np.flatnonzero(spikes.any(0)):
        for number in range(int(spikes[:, source].max())):
            i = np.clip(i + weights[source] * (spikes[:, source, None] > number), LOW, HIGH)
    return i


def _decay(x: np.ndarray, dash: np.ndarray) -> np.ndarray:
    change = x >> dash
    return np.where(change == 0, np.sign(x), change)


def run(network: XyloNetwork, inputs: np.ndarray, notify: Callable[[str], None] = print) -> Arrays:
    """The same by xylosim; arguments and result as of ``simulate``."""
    return run_all([(network, inputs)], notify)[0]


def run_all(pairs: Sequence[tuple[XyloNetwork, np.ndarray]], notify: Callable[[str], None] = print) -> list[Arrays]:
    """``run`` for many networks in one process."""
    jobs: list[Arrays] = [
        {
            "into": n.into, "among": n.among, "out": n.out, "shifts": np.array(n.shifts), "mem": n.mem, "syn": n.syn,
            "theta": n.theta, "bias": n.bias, "inputs": _checked(n, x),
        }
        for n, x in pairs
    ]  # fmt: skip
    found = run_jobs(ENVIRONMENT, "xylo_worker", jobs, notify)
    return [_by_layer(network, result["spikes"]) for (network, _), result in zip(pairs, found)]


def _checked(network: XyloNetwork, inputs: np.ndarray) -> np.ndarray:
    given = np.asarray(inputs).reshape(*inputs.shape[:2], -1)
    if given.shape[2] != len(network.into):
        raise HardwareError(f"inputs have {given.shape[2]} values a step, and the network reads {len(network.into)}")
    if (given != np.rint(given)).any() or given.min(initial=0) < 0 or given.max(initial=0) > MOST_INPUT:
        raise HardwareError(f"Xylo's inputs are 0 to {MOST_INPUT} spikes a channel and step; encode them (Poisson, of 0..1)")
    return given.astype(np.int64)


def _by_layer(network: XyloNetwork, spikes: np.ndarray) -> Arrays:
    edges = np.cumsum(list(network.layers.values()))[:-1]
    return dict(zip(network.layers, np.split(spikes, edges, axis=-1)))
