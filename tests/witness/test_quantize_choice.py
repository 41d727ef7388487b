"""The scale that ``quantize`` chooses, against a search of every scale and exponent of the same formats, by brute force here.

A layer's error is what its integers stand for, against its real numbers: weights in root mean square relative to their own,
thresholds and biases relative to the threshold (of the readout, to the largest current). A scale is allowed if no current can
leave 24 bits whatever the spikes, and if currents and thresholds have the package's room (4 times; 16 for the readout). The
choice may be at most twice as bad as the best of the brute force and two hundredths; where even that is bad, it is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import pytest
from spikeprop_hardware import HardwareError, quantize, simulate

SHORT, LONG = 48, 300
LARGEST = 2**17 - 1  # of an activation before its alignment by 6 bits, and of a threshold
BAD = 0.5  # an error that no user wants as a row of a table
KINDS = [
    "plain",
    "large inputs",
    "tiny inputs",
    "large weights",
    "tiny weights",
    "unequal branches",
    "one large bias",
    "large thresholds",
    "small thresholds",
    "one large weight",
    "poisson",
    "images of bytes",
]


@dataclass
class Layer:
    """Real numbers of a layer: weights by connection with the largest input of each and the factor that its messages carry."""

    weights: list[np.ndarray]
    limits: list[float]
    factors: list[float]
    bias: np.ndarray
    theta: np.ndarray | None

    @property
    def reach(self) -> float:
        """The largest current that any input can cause."""
        total = np.abs(self.bias) + sum(np.abs(w).sum(1) * limit for w, limit in zip(self.weights, self.limits))
        return float(np.max(total))

    @property
    def norm(self) -> float:
        return self.reach if self.theta is None else float(self.theta.min())

    @property
    def largest_scale(self) -> float:
        room = 16 if self.theta is None else 4
        return (LARGEST + 1) / room / max(self.reach, 0.0 if self.theta is None else float(self.theta.max()))

    def error(self, mantissas: list[np.ndarray], exponents: list[int], bias: np.ndarray, theta: Any, scale: Any) -> float:
        """What integers are worth: ``bias`` in 24 bits, mantissas as they are; a scale, or one for each neuron."""
        squares = energy = 0.0
        of_rows = scale[:, None] if np.ndim(scale) else scale
        for m, e, w, x in zip(mantissas, exponents, self.weights, self.factors):
            squares += float(((m * 2.0 ** (e + 1) * x / of_rows - w) ** 2).sum())
            energy += float((w**2).sum())
        rest = float(np.abs(bias / 64 / scale - self.bias).max()) / self.norm
        if self.theta is not None:
            rest += float(np.abs(theta / scale / self.theta - 1).max())
        return (squares / energy) ** 0.5 + rest

    def best(self) -> float:
        """The least error of all scales that are allowed, six an octave."""
        return min(self.at(self.largest_scale * 2.0 ** (-n / 6)) for n in range(18 * 6))

    def at(self, scale: float) -> float:
        """The error of a scale, each connection with its best exponent; rounding and clipping as the formats have it."""
        mantissas, exponents = [], []
        for w, x in zip(self.weights, self.factors):
            factors = scale / x / 2.0 ** np.arange(-7.0, 9.0).reshape(-1, *(1,) * w.ndim)
            tried = np.clip(np.rint(w * factors), -128, 127)
            least = int(((tried / factors - w) ** 2).reshape(16, -1).sum(1).argmin())
            exponents.append(least - 8)
            mantissas.append(tried[least])
        shift = next((b for b in range(8) if np.abs(np.rint(self.bias * scale * 64 / 2**b)).max() <= 4095), 7)
        bias = np.clip(np.rint(self.bias * scale * 64 / 2**shift), -4096, 4095) * 2**shift
        theta = None if self.theta is None else np.clip(np.rint(self.theta * scale), 1, LARGEST)
        return self.error(mantissas, exponents, bias, theta, scale)


@dataclass
class Case:
    """A network of one layer of neurons and a readout, as NIR and as real numbers."""

    graph: nir.NIRGraph
    layers: list[Layer]
    limit: float
    kind: str
    inputs: int


def case(seed: int) -> Case:
    """The network of a seed: its kind in turn, its numbers drawn."""
    rng, kind = np.random.default_rng(seed), KINDS[seed % len(KINDS)]
    n, hidden, out = int(rng.integers(4, 40)), int(rng.integers(4, 30)), int(rng.integers(2, 6))
    limits = {"large inputs": 10.0 ** rng.uniform(1, 4), "tiny inputs": 0.05, "images of bytes": 255.0, "poisson": 1.0}
    limit = limits.get(kind, 4.0)
    weight = rng.standard_normal((hidden, n)) / n**0.5 / (limit if limit > 4 else 1.0)
    other = rng.standard_normal((hidden, n)) / n**0.5
    bias, theta = rng.normal(0, 0.2, hidden), rng.uniform(0.5, 2.0, hidden)
    last = rng.standard_normal((out, hidden)) / hidden**0.5
    if kind == "images of bytes":
        weight, bias, theta = weight * 255, bias * 255, theta * 255
    if kind in ("large weights", "tiny weights"):
        factor = 10.0 ** (rng.uniform(2, 5) * (1 if kind == "large weights" else -1))
        weight, bias, theta, last = weight * factor, bias * factor, theta * factor, last * factor
    if kind == "one large bias":
        bias[0] = 10.0 ** rng.uniform(1, 2.5)
    if kind == "large thresholds":
        theta[: hidden // 2] = 10.0 ** rng.uniform(1.5, 3)
    if kind == "small thresholds":
        theta = theta * 10.0 ** rng.uniform(-2.5, -1)
    if kind == "one large weight":
        weight[0, 0] = 30.0
    nodes: dict[str, Any] = {
        "input": nir.Input(input_type={"input": np.array([n])}),
        "w": nir.Affine(weight=weight, bias=bias),
        "h": nir.IF(r=np.ones(hidden), v_threshold=theta, v_reset=np.zeros(hidden), metadata={"reset": "subtract"}),
        "last": nir.Linear(weight=last),
        "output": nir.Output(output_type={"output": np.array([out])}),
    }
    edges = [("input", "w"), ("w", "h"), ("h", "last"), ("last", "output")]
    largest = {"poisson": 1.0, "tiny inputs": 256 * 32 * limit, "large inputs": 1024.0, "images of bytes": 1020.0}.get(
        kind, 1024.0
    )
    factor = 2.0 ** np.floor(np.log2(largest / limit * (1 + 1e-9)))  # of the messages, which are whole numbers
    first = Layer([weight], [limit], [factor], bias, theta)
    layers = [first, Layer([last], [1.0], [1.0], np.zeros(out), None)]
    if kind == "unequal branches":  # two populations of very different weight into the readout
        other = other * 0.9
        small = rng.standard_normal((out, hidden)) / hidden**0.5 * 10.0 ** rng.uniform(-4, -1.5)
        nodes["v"] = nir.Linear(weight=other)
        nodes["g"] = nir.IF(r=np.ones(hidden), v_threshold=theta, v_reset=np.zeros(hidden), metadata={"reset": "subtract"})
        nodes["small"] = nir.Linear(weight=small)
        edges += [("input", "v"), ("v", "g"), ("g", "small"), ("small", "output")]
        layers.insert(1, Layer([other], [limit], [factor], np.zeros(hidden), theta))
        layers[-1] = Layer([last, small], [1.0, 1.0], [1.0, 1.0], np.zeros(out), None)
    metadata = {"encoder": "Poisson"} if kind == "poisson" else {}
    return Case(nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata, type_check=False), layers, limit, kind, n)


def error_of(population: Any, layer: Layer, order: list[str]) -> float:
    """What the package's integers of a layer are worth."""
    held = {c.source: c for c in population.connections}
    connections = [held[name] for name in order]
    mantissas = [c.matrix.toarray().astype(float) for c in connections]
    bias = population.bias.astype(np.int64) << population.bias_exponent
    return layer.error(mantissas, [c.exponent for c in connections], bias.astype(float), population.theta, population.scale)


def choose(seed: int) -> Counter[str]:
    """Compare every layer of a case with the brute force."""
    made = case(seed)
    best = [layer.best() for layer in made.layers]
    where = f"seed {seed}, {made.kind}"
    try:
        network = quantize(made.graph, input_limit=made.limit).network
    except HardwareError as error:
        if max(best) < 0.02:
            raise AssertionError(f"{where}: refused, though the best errors are {best}") from error
        return Counter({"networks": 1, "refused": 1})
    assert max(best) <= BAD, f"{where}: no scale is good (errors at best {best}), and nothing was refused"
    sources = {"h": ["input"], "g": ["input"], "output": ["h", "g"] if made.kind == "unequal branches" else ["h"]}
    by_name = {p.name: p for p in network.populations}
    names = ["h", "g", "output"] if made.kind == "unequal branches" else ["h", "output"]
    for name, layer, least in zip(names, made.layers, best):
        found = error_of(by_name[name], layer, sources[name])
        assert found <= 2 * least + 0.02, f"{where}, layer {name}: error {found:.4g}, by brute force {least:.4g}"
    return Counter({"networks": 1, "layers": len(best)})


@pytest.mark.parametrize("seed", [*range(SHORT), *(pytest.param(s, marks=pytest.mark.slow) for s in range(SHORT, LONG))])
def test_the_chosen_scale_is_about_the_best(seed: int, counted: Callable[[Counter[str]], None]) -> None:
    counted(choose(seed))


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("unequal branches", "one large weight")])
def test_integers_spike_as_often_as_real_numbers(kind: str) -> None:
    """The whole way: spike counts of the layer over 100 steps, in the chip's integers and in float64, within a twentieth."""
    seed = KINDS.index(kind)
    made = case(seed)
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.2, 1, (20, 1, made.inputs)) * min(made.limit, 10_000.0)
    if kind == "poisson":
        x = np.ones_like(x)
    inputs = np.broadcast_to(x, (20, 100, made.inputs))
    first = made.layers[0]
    v = np.zeros((20, len(first.bias)))
    counts = np.zeros_like(v)
    assert first.theta is not None
    for t in range(100):
        v += inputs[:, t] @ first.weights[0].T + first.bias
        fired = v > first.theta
        v -= first.theta * fired
        counts += fired
    try:
        network = quantize(made.graph, input_limit=made.limit, timesteps=100).network
    except HardwareError:
        return
    found = simulate(network, inputs, backend="reference", precision="fixed").spikes["h"].sum(1)
    off = np.abs(found - counts).sum() / max(counts.sum(), 1)
    assert counts.sum() > 500
    assert off < 0.05, f"spike counts differ by {off:.2%}"
