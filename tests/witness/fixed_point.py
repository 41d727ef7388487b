"""The fixed-point law of Loihi's neurons and synapses, in plain Python integers and loops, from the formats that are published.

Lava's bit-accurate LIF (lava-nc, ``proc/lif/models.py``) and its documentation say:

- state variables u and v are 24 bits wide; thresholds have 17 bits, bias mantissas 13 with sign, bias exponents 3, decays 12;
- thresholds and arriving activation are aligned by a shift of 6 bits to the left;
- a current beyond 24 bits wraps around once (2^23 + k becomes k - 2^23), a potential stops at 2^23 - 1 and 1 - 2^23;
- a decay d leaves v (4096 - d) / 4096, rounded towards zero; the current does not outlive its step (du = 4095);
- a neuron fires where v is strictly above its threshold; the built-in neuron is then cleared.

A synapse's mantissa has 8 bits with sign, and where signs are mixed its lowest of nine bits is dropped: it counts twice. The sum
of what arrives by one connection is shifted by that connection's exponent, -8 to 7, to the right rounding down. The package's
README and the module ``integer`` add what a neuron program would do: reset by subtraction, graded spikes, pooling by counts, and
a readout that never fires. Nothing here is imported from the package: networks are given as lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = 2**23 - 1  # of a potential, either way
UNITY = 4096


@dataclass
class Synapses:
    """One connection: for each target the (source neuron, mantissa) pairs, and the exponent."""

    source: str
    rows: list[list[tuple[int, int]]]
    exponent: int


@dataclass
class Neurons:
    """A population; ``theta`` is None for the readout."""

    name: str
    synapses: list[Synapses]
    bias: list[int]
    bias_exponent: int
    decay: list[int]
    start: list[int]
    theta: list[int] | None
    clears: bool = False
    levels: int = 0  # of graded neurons, whose theta is the smallest
    rectify: bool = True
    pools: bool = False


@dataclass
class Trace:
    """Spikes and potentials by population, step and neuron; how often a current wrapped and a potential stopped at its limit."""

    spikes: dict[str, list[list[int]]] = field(default_factory=dict)
    potentials: dict[str, list[list[int]]] = field(default_factory=dict)
    wrapped: int = 0
    stopped: int = 0


def shifted(total: int, exponent: int) -> int:
    """A connection's sum of mantissas, doubled and shifted; Python's shift to the right rounds down, as the chip's does."""
    doubled = 2 * total
    return doubled << exponent if exponent >= 0 else doubled >> -exponent


def decayed(v: int, decay: int) -> int:
    """Rounded towards zero."""
    size = (abs(v) * (UNITY - decay)) >> 12
    return size if v >= 0 else -size


def run(populations: list[Neurons], inputs: list[list[int]], given: str = "input") -> Trace:
    """Simulate one sample; ``inputs`` holds each step's graded messages."""
    trace = Trace({p.name: [] for p in populations}, {p.name: [] for p in populations})
    v = {p.name: list(p.start) for p in populations}
    sent = {p.name: [0] * len(p.bias) for p in populations}
    counts: dict[tuple[str, int, int], int] = {}
    for message in inputs:
        arrived = {given: message}
        for p in populations:
            step = _pool(p, arrived, counts, v[p.name]) if p.pools else _step(p, arrived, v[p.name], sent[p.name], trace)
            arrived[p.name] = step
            trace.spikes[p.name].append(step)
            trace.potentials[p.name].append(list(v[p.name]))
    return trace


def _step(p: Neurons, arrived: dict[str, list[int]], v: list[int], sent: list[int], trace: Trace) -> list[int]:
    spikes = []
    for i in range(len(p.bias)):
        activation = 0
        for synapses in p.synapses:
            total = 0
            for j, mantissa in synapses.rows[i]:
                total += mantissa * arrived[synapses.source][j]
            activation += shifted(total, synapses.exponent)
        current = activation << 6
        if current > 2**23:
            current -= 2**24
            trace.wrapped += 1
        elif current <= -(2**23):
            current += 2**24
            trace.wrapped += 1
        u = decayed(v[i], p.decay[i]) + current + (p.bias[i] << p.bias_exponent)
        if abs(u) > MOST:
            u = MOST if u > 0 else -MOST
            trace.stopped += 1
        spike = 0
        if p.theta is not None:
            level = p.theta[i] << 6
            if p.levels:
                spike = graded(u, level, 2**p.levels - 1, sent[i] if p.rectify else None)
                u -= spike * level
            elif u > level:
                spike = 1
                u = 0 if p.clears else u - level
        sent[i] += spike
        v[i] = u
        spikes.append(spike)
    return spikes


def graded(u: int, level: int, most: int, sent: int | None) -> int:
    """The largest whole number whose multiple of the level is below u; below 0, the least taken back that lifts u to 0."""
    if u > 0:
        return min((u - 1) // level, most)
    back = min(-(u // level), most)
    return -(back if sent is None else min(back, sent))


def _pool(p: Neurons, arrived: dict[str, list[int]], counts: dict[tuple[str, int, int], int], v: list[int]) -> list[int]:
    """By how much the largest count of each window has grown; a window without places counts nothing."""
    spikes = []
    for i in range(len(p.bias)):
        largest = 0
        for k, synapses in enumerate(p.synapses):
            for j, _ in synapses.rows[i]:
                key = f"{p.name}/{i}/{k}", 0, j
                counts[key] = counts.get(key, 0) + arrived[synapses.source][j]
                largest = max(largest, counts[key])
        spikes.append(largest - v[i])
        v[i] = largest
    return spikes
