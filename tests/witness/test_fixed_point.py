"""The integer simulator against the law of ``fixed_point``: every spike, every potential, the readout, to the bit."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from spikeprop_hardware import HardwareError, IntegerNetwork, Recording, quantize, simulate
from spikeprop_hardware.integer import IntegerConnection, IntegerPopulation

from spikeprop import to_nir
from tests.witness import fixed_point
from tests.witness.fixed_point import Neurons, Synapses
from tests.witness.networks import Examination, draw

STEPS, SAMPLES = 60, 2
SHORT, LONG = 50, 600
INPUT, SCALE = "input", 256.0


class Draws:
    """A network at the edges of the formats: small or huge weights, thresholds, biases, decays and inputs, all exponents."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.shape = self.pick([(3,), (6,), (2, 2, 2), (3, 1, 2)])
        self.populations: list[Neurons] = []
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: self.shape}
        for i in range(self.pick([1, 2, 3])):
            if any(p.rectify for p in self.populations) and self.rng.random() < 0.2:
                self.pooling(f"pool{i}")
            else:
                self.neurons(f"layer{i}", last=False)
        self.neurons("readout", last=True)
        size = int(np.prod(self.shape))
        top = self.pick([1, 3, 60, 1000])  # graded messages
        messages = self.rng.integers(-top, top + 1, (SAMPLES, STEPS, size))
        self.messages = messages * (self.rng.random(messages.shape) < self.pick([0.2, 1.0]))
        self.inputs = (self.messages / SCALE).reshape(SAMPLES, STEPS, *self.shape)

    def neurons(self, name: str, last: bool) -> None:
        shape = self.pick([(2,), (5,), (2, 2, 2)]) if not last else (3,)
        size = int(np.prod(shape))
        sources = [s for s in self.shapes if s == list(self.shapes)[-1] or self.rng.random() < 0.3]
        largest = self.pick([1, 8, 127])
        synapses = [self.synapses(source, size, largest) for source in sources]
        theta = self.rng.integers(1, self.pick([3, 200, 2**17]), size).tolist()
        decay = self.rng.integers(0, self.pick([1, 2, 300, 4096]), size).tolist()
        bias = self.rng.integers(-self.pick([1, 50, 4096]), self.pick([1, 50, 4096]), size).tolist()
        start = self.rng.integers(-self.pick([1, 1000, 2**23 - 1]), self.pick([1, 1000, 2**23 - 1]), size).tolist()
        clears = bool(self.rng.random() < 0.4)
        own = Neurons(name, synapses, bias, self.pick([0, 3, 7]), decay, start, theta, clears)
        if last:
            own.theta, own.clears, own.decay, own.start = None, False, [0] * size, [0] * size
        elif not clears and self.rng.random() < 0.4:
            own.levels, own.rectify = self.pick([1, 1, 2, 3, 7]), bool(self.rng.random() < 0.7)
            own.decay = [0] * size
        self.populations.append(own)
        self.shapes[name] = shape

    def pooling(self, name: str) -> None:
        """Windows over all populations of neurons so far; a window may hold no place."""
        size = self.pick([1, 4])
        sources = [p.name for p in self.populations if p.rectify]
        synapses = []
        for source in sources:
            count = int(np.prod(self.shapes[source]))
            rows = [[(j, 1) for j in range(count) if self.rng.random() < 0.4] for _ in range(size)]
            synapses.append(Synapses(source, rows, -1))
        zeros = [0] * size
        levels = max((p.levels for p in self.populations if p.rectify), default=0)
        self.populations.append(Neurons(name, synapses, zeros, 0, zeros, zeros, [1] * size, levels=levels, pools=True))
        self.shapes[name] = (size,)

    def synapses(self, source: str, size: int, largest: int) -> Synapses:
        count = int(np.prod(self.shapes[source]))
        rows = []
        for _ in range(size):
            mantissas = self.rng.integers(-largest - 1, largest + 1, count).tolist()
            rows.append([(j, m) for j, m in enumerate(mantissas) if self.rng.random() < 0.7])
        return Synapses(source, rows, int(self.rng.integers(-8, 8)))

    def network(self) -> IntegerNetwork:
        """The same as the package has it."""
        return IntegerNetwork(
            input_shape=self.shape,
            input=INPUT,
            input_scale=SCALE,
            input_limit=float(np.abs(self.inputs).max()) + 1,
            readout_from=0,
            populations=[self.population(p) for p in self.populations],
        )

    def population(self, p: Neurons) -> IntegerPopulation:
        connections = [
            IntegerConnection(s.source, matrix(s.rows, int(np.prod(self.shapes[s.source]))), s.exponent) for s in p.synapses
        ]
        return IntegerPopulation(
            name=p.name,
            shape=self.shapes[p.name],
            connections=connections,
            depth=1,
            scale=1.0,
            bias_exponent=p.bias_exponent,
            theta=None if p.theta is None else np.array(p.theta, np.int32),
            to_zero=p.clears,
            levels=p.levels,
            rectify=p.rectify,
            pools=p.pools,
            bias=np.array(p.bias, np.int32),
            decay=np.array(p.decay, np.int32),
            v_init=np.array(p.start, np.int32),
        )

    def currents_wrap_once(self) -> bool:
        """Beyond one turn Lava's models do not wrap, and nothing is published."""
        payloads = {p.name: max(2**p.levels - 1, 1) for p in self.populations}
        for p in self.populations:
            for i in range(len(p.bias)):
                total = 0
                for s in p.synapses:
                    limit = int(np.abs(self.messages).max()) if s.source == INPUT else payloads[s.source]
                    total += abs(fixed_point.shifted(sum(abs(m) for _, m in s.rows[i]) * limit, s.exponent)) + 1
                if total << 6 > 3 * 2**23 - 1:
                    return False
        return True

    def pick(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]


def matrix(rows: list[list[tuple[int, int]]], columns: int) -> sparse.csr_matrix:
    held = [[m for _, m in row] for row in rows]
    at = [[j for j, _ in row] for row in rows]
    ends = np.cumsum([0, *map(len, rows)])
    data = np.array([m for row in held for m in row], np.int32)
    return sparse.csr_matrix((data, np.array([j for row in at for j in row], np.int32), ends), shape=(len(rows), columns))


def rows_of(held: sparse.csr_matrix) -> list[list[tuple[int, int]]]:
    ends, at, data = held.indptr.tolist(), held.indices.tolist(), held.data.tolist()
    return [list(zip(at[a:b], data[a:b])) for a, b in pairwise(ends)]


def compare(populations: list[Neurons], network: IntegerNetwork, inputs: np.ndarray, messages: np.ndarray) -> Counter[str]:
    """Every spike and potential of a network against the law; what was met on the way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the output's potentials stopped")  # counted below
        found = simulate(network, inputs, backend="reference", precision="fixed", record=Recording(membranes=True))
    counts: Counter[str] = Counter({"networks": 1})
    for b, sample in enumerate(messages.tolist()):
        wanted = fixed_point.run(populations, sample, network.input)
        for p in populations[:-1]:
            spikes, v = found.spikes[p.name][b], found.membranes[p.name][b]
            steps = len(spikes)
            np.testing.assert_array_equal(spikes.reshape(steps, -1).astype(int), wanted.spikes[p.name], f"spikes of {p.name}")
            np.testing.assert_array_equal(v.reshape(steps, -1), wanted.potentials[p.name], f"potentials of {p.name}")
            counts["spikes"] += int(np.abs(spikes.astype(int)).sum())
            counts["spikes taken back"] += int((spikes.astype(int) < 0).sum())
            counts["payloads above 1"] += int((np.abs(spikes.astype(int)) > 1).sum())
        last = network.populations[-1]
        output = np.array(wanted.potentials[last.name], float) * last.unit
        np.testing.assert_array_equal(found.output[b].reshape(len(output), -1), output, "output")
        counts["currents that wrapped"] += wanted.wrapped
        counts["potentials stopped at 24 bits"] += wanted.stopped
        counts["potentials compared"] += sum(len(step) for trace in wanted.potentials.values() for step in trace)
    assert sum(found.clipped.values()) == counts["potentials stopped at 24 bits"], "potentials that stopped at 24 bits"
    return counts


@pytest.mark.parametrize("block", [0, *(pytest.param(b, marks=pytest.mark.slow) for b in range(1, LONG // SHORT))])
def test_random_layers_at_the_edges_of_the_formats(block: int, counted: Callable[[Counter[str]], None]) -> None:
    total: Counter[str] = Counter()
    for seed in range(block * SHORT, (block + 1) * SHORT):
        drawn = Draws(seed)
        if not drawn.currents_wrap_once():
            total["left out, currents of several turns"] += 1
            continue
        try:
            total += compare(drawn.populations, drawn.network(), drawn.inputs, drawn.messages)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}\n{drawn.populations}") from error
    counted(total)
    assert total["networks"] > SHORT / 3
    for met in (
        "spikes",
        "potentials stopped at 24 bits",
        *(("spikes taken back", "payloads above 1", "currents that wrapped") if block == 0 else ()),
    ):
        assert total[met] > 10, met


@pytest.mark.parametrize("block", [0, *(pytest.param(b, marks=pytest.mark.slow) for b in range(1, 25))])
def test_quantised_networks_run_by_the_law(block: int, counted: Callable[[Counter[str]], None]) -> None:
    """Networks of tests/witness/networks.py, converted, quantised, and run here neuron by neuron."""
    total: Counter[str] = Counter()
    for seed in range(block * 12, (block + 1) * 12):
        examination = Examination(draw(seed))
        network = examination.converted()
        if network is None:
            continue
        examination.prepare(network)
        x = examination.x[:1]
        inputs = network.encoded(x, 8).transpose(0, 1).contiguous().numpy()
        limit = float(np.abs(inputs).max())
        integers = examination.attempt("quantize", lambda n=network, m=limit: quantize(to_nir(n), input_limit=m).network)
        if integers is None:
            continue
        messages = np.rint(inputs * integers.input_scale).astype(int).reshape(1, 8, -1)
        total += compare([as_law(p) for p in integers.populations], integers, inputs, messages)
    counted(total)
    assert total["networks"] >= 5
    assert total["spikes"] > 300


def as_law(p: IntegerPopulation) -> Neurons:
    """A population of the package as the law has it."""
    theta = None if p.theta is None else p.theta.tolist()
    synapses = [Synapses(c.source, rows_of(c.matrix), int(c.exponent)) for c in p.connections]
    numbers = p.bias.tolist(), p.bias_exponent, p.decay.tolist(), p.v_init.tolist()
    return Neurons(p.name, synapses, *numbers, theta, bool(p.to_zero), p.levels, p.rectify, bool(p.pools))


@pytest.mark.parametrize(
    ("v", "decay", "left"),
    [(1, 1, 0), (-1, 1, 0), (4096, 1, 4095), (-4096, 1, -4095), (4095, 2048, 2047), (-4095, 2048, -2047), (3, 2048, 1)],
)
def test_a_decay_rounds_towards_zero(v: int, decay: int, left: int) -> None:
    """One silent neuron that starts at v: after one step it has the stated rest."""
    own = Neurons("one", [Synapses(INPUT, [[]], 0)], [0], 0, [decay], [v], [2**17 - 1])
    assert first_potential(own, 0) == left == fixed_point.decayed(v, decay)


@pytest.mark.parametrize(
    ("message", "mantissa", "exponent", "arrives"),
    [(1, 1, -8, 0), (1, -1, -8, -1), (1, 64, -8, 0), (1, -64, -7, -1), (3, -1, -2, -2), (1, 127, 7, 254 * 128), (0, 5, -3, 0)],
)
def test_a_shift_to_the_right_rounds_down(message: int, mantissa: int, exponent: int, arrives: int) -> None:
    own = Neurons("one", [Synapses(INPUT, [[(0, mantissa)]], exponent)], [0], 0, [0], [0], [2**17 - 1])
    assert first_potential(own, message) == arrives * 64


@pytest.mark.parametrize(("start", "fires"), [(64 * 5, False), (64 * 5 + 1, True), (64 * 5 - 1, False)])
def test_a_potential_that_meets_its_threshold_does_not_fire(start: int, fires: bool) -> None:
    own = Neurons("one", [Synapses(INPUT, [[]], 0)], [0], 0, [0], [start], [5])
    assert first_potential(own, 0) == (start - 64 * 5 if fires else start)


def test_currents_wrap_once_and_potentials_stop() -> None:
    def after(activation: int, start: int) -> int:
        own = Neurons("one", [Synapses(INPUT, [[(0, 1)]], -1)], [0], 0, [0], [start], [2**17 - 1])
        return first_potential(own, activation)

    fired = 2**23 - 1 - 64 * (2**17 - 1)  # what is left of a potential that stopped at the upper limit
    assert after(2**17, 0) == fired  # 2^23 itself stays a current
    assert after(2**17 + 1, 0) == -(2**23) + 64
    assert after(-(2**17), -1) == fired  # -2^23 becomes 2^23
    assert after(-(2**17) + 1, -1000) == 1 - 2**23


def first_potential(own: Neurons, message: int) -> int:
    """After one step, by the package; the law must say the same."""
    readout = Neurons("readout", [Synapses("one", [[(0, 1)]], 0)], [0], 0, [0], [0], None)
    drawn = object.__new__(Draws)
    drawn.populations, drawn.shape, drawn.shapes = [own, readout], (1,), {INPUT: (1,), "one": (1,), "readout": (1,)}
    drawn.messages = np.array([[[message]]])
    drawn.inputs = drawn.messages / SCALE
    network = drawn.network()
    compare(drawn.populations, network, drawn.inputs, drawn.messages)
    found = simulate(network, drawn.inputs, backend="reference", precision="fixed", record=Recording(membranes=True))
    return int(found.membranes["one"].ravel()[0])


def test_a_wrong_law_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to the nearest, or a threshold that is met, shows in these very networks."""
    drawn = next(d for d in map(Draws, range(200)) if d.currents_wrap_once() and any(any(p.decay) for p in d.populations))
    compare(drawn.populations, drawn.network(), drawn.inputs, drawn.messages)
    monkeypatch.setattr(fixed_point, "decayed", lambda v, d: round(v * (4096 - d) / 4096))
    with pytest.raises(AssertionError):
        compare(drawn.populations, drawn.network(), drawn.inputs, drawn.messages)


def test_messages_are_the_nearest_multiples_of_a_256th_and_no_larger_ones_are_taken() -> None:
    drawn = Draws(0)
    network = drawn.network()
    x = np.random.default_rng(0).uniform(-1, 1, (1, STEPS, *drawn.shape))
    assert np.abs(network.encode(x) - x * 256).max() <= 0.5
    with pytest.raises(HardwareError, match="but the network was quantised for up to"):
        network.encode(x + 2 * network.input_limit)
