"""The reference simulator: many samples at once, in numpy and Numba, of a network in float64 or in integers.

All layers advance together, step by step, so memory does not grow with the number of steps unless spikes are recorded. In
float64 its sums have the order of Lava's, and in integers it has the arithmetic of integer.py, so both equal the Lava models of
processes/ to the bit. Lava's delays only align paths of different lengths; here a step passes through the complete network, as in
PyTorch, and a feedback connection reads what its source sent some steps before.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import IntegerConnection, IntegerNetwork, IntegerPopulation
from spikeprop_hardware.kernels import (
    NUMBA,
    adapt_fixed,
    adapt_float,
    add_channels,
    add_shifted,
    filter_fixed,
    filter_float,
    fire_fixed,
    fire_float,
    pool,
    run_layer,
    send_graded,
)
from spikeprop_hardware.network import ChipNetwork, Connection, Population
from spikeprop_hardware.recording import SimulationResult
from spikeprop_hardware.synapses import Synapses, aligned

CACHE = 2**17  # neurons of one layer in all samples that advance together: their state stays in the cache
BATCH = 512  # samples that advance together at most
TRAINS = 2**24  # spikes that are kept at once where one layer after the other runs through all steps
ROOM = 2**17  # sums of one sample, of some steps, before its neurons take them
INT16 = 2**15 - 1
Payloads = dict[str, tuple[int, bool]]  # by source, the largest number that it sends, and whether it has a sign
Values = dict[tuple[str, int], np.ndarray]  # what a source sent, by its name and how many steps before


class Simulator:
    """A network prepared for simulation; ``run`` may be called any number of times.

    Args:
        network: laid out (float64), or in integers.
        threads: batches of samples that run at once; default one for each processor that the process may use.
    """

    def __init__(self, network: ChipNetwork | IntegerNetwork, threads: int | None = None):
        self.network = network
        self.fixed = isinstance(network, IntegerNetwork)
        self.threads = threads or len(os.sched_getaffinity(0))
        orders = {network.input: np.arange(int(np.prod(network.input_shape)))}
        orders |= {p.name: _order(p.shape) for p in network.populations}
        payloads = {network.input: (0, True), **{p.name: (p.payload, p.signed) for p in network.populations}}  # 0: unknown
        self.layers: list[_Neurons | _Pooling] = [
            (_Pooling if p.pools else _Neurons)(p, orders, payloads) for p in network.populations
        ]
        self.lagging = {(c.source, c.lag) for p in network.populations for c in p.connections if c.lag}
        self.readout = next(layer for layer in self.layers if layer.name == network.readout.name)
        self.in_turn = NUMBA and self.fixed and not self.lagging  # each layer can run through all steps before the next
        self._largest = max(layer.size for layer in self.layers)

    def run(
        self,
        inputs: np.ndarray,
        *,
        record: bool = True,
        membranes: bool = False,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> SimulationResult:
        """Simulate.

        Args:
            inputs: (samples, steps, ...); a constant input may be ``np.broadcast_to`` over the steps and takes no memory.
            record: keep every spike: samples * steps * neurons bytes; spikes are counted in any case.
            membranes: keep every potential.
            progress: called with (time steps done, all time steps) of all samples.
        """
        samples, steps = inputs.shape[:2]
        if 0 in inputs.shape or inputs.shape[2:] != self.network.input_shape:
            raise HardwareError(
                f"inputs have shape {inputs.shape}; the network reads (samples, steps, {self.network.input_shape}), one or more"
            )
        kept = self._room(samples, steps, record, membranes)
        in_turn = self.in_turn and not membranes
        most = TRAINS // (steps * sum(layer.size for layer in self.layers)) if in_turn else CACHE // self._largest
        size = max(1, min(BATCH, most, -(-samples // self.threads)))
        batch = self._layers_in_turn if in_turn else self._batch

        def run_batch(start: int) -> tuple[dict[str, int], dict[str, int]]:
            return batch(inputs[start : start + size], kept, slice(start, start + size))

        done = 0
        with ThreadPoolExecutor(self.threads) as pool:
            for counts, clipped in pool.map(run_batch, range(0, samples, size)):
                for ours, theirs in ((kept.counts, counts), (kept.clipped, clipped)):
                    ours.update({name: ours.get(name, 0) + count for name, count in theirs.items()})
                done = min(done + size, samples)
                progress(done * steps, samples * steps)
        return kept

    def _room(self, samples: int, steps: int, record: bool, membranes: bool) -> SimulationResult:
        hidden = [(layer.name, (samples, steps, layer.size)) for layer in self.layers if layer is not self.readout]
        signed = {layer.name for layer in self.layers if layer.signed}
        state = np.int32 if self.fixed else np.float64
        return SimulationResult(
            {name: np.zeros(shape, np.int8 if name in signed else bool) for name, shape in hidden} if record else {},
            np.zeros((samples, steps, self.readout.size), state),
            {name: np.zeros(shape, state) for name, shape in hidden} if membranes else {},
        )

    def start(self, samples: int) -> SteppedSimulation:
        """All layers at rest, to be taken step by step."""
        return SteppedSimulation(self, samples)

    def _batch(self, inputs: np.ndarray, kept: SimulationResult, rows: slice) -> tuple[dict[str, int], dict[str, int]]:
        running = self.start(len(inputs))
        for t, (x, same) in enumerate(self._steps(inputs)):
            running.step(x, same)
            for layer, state in zip(self.layers, running.states):
                if layer.name in kept.spikes:
                    kept.spikes[layer.name][rows, t] = state.spikes[:, layer.back]
                if layer.name in kept.membranes:
                    kept.membranes[layer.name][rows, t] = state.v[:, layer.back]
            kept.output[rows, t] = running.potentials
        return running.counts, running.clipped

    def _layers_in_turn(self, inputs: np.ndarray, kept: SimulationResult, rows: slice) -> tuple[dict[str, int], dict[str, int]]:
        """``_batch`` where nothing reads what comes later: one layer after the other runs through all steps."""
        steps, counts, clipped = inputs.shape[1], {}, {}
        trains: dict[str, np.ndarray] = {}
        given = list(self._steps(inputs))
        for layer in self.layers:
            state: Any = layer.start(len(inputs))
            train = np.empty((steps, *state.spikes.shape), state.spikes.dtype)
            if isinstance(layer, _Neurons) and layer is not self.readout and layer.quick(trains, given):
                counts[layer.name] = layer.run(trains, given, state, train)
            else:
                for t, (x, same) in enumerate(given):
                    values = {(name, 0): sent[t] for name, sent in trains.items()}
                    layer.step(values | {(self.network.input, 0): x}, state, same)
                    train[t] = state.spikes
                    if layer is self.readout:
                        kept.output[rows, t] = state.v[:, layer.back]
                if layer is not self.readout:
                    counts[layer.name] = int(np.count_nonzero(train))
            if state.clipped:
                clipped[layer.name] = state.clipped
            if layer.name in kept.spikes:
                kept.spikes[layer.name][rows] = train.swapaxes(0, 1)[..., layer.back]
            trains[layer.name] = train
        return counts, clipped

    def _steps(self, inputs: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
        """Each step's input (B, values), and whether it is the one before again."""
        last: np.ndarray | None = None
        for t in range(inputs.shape[1]):
            same = last is not None and (inputs.strides[1] == 0 or np.array_equal(inputs[:, t], inputs[:, t - 1]))
            if last is None or not same:
                raw = inputs[:, t].reshape(len(inputs), -1)
                last = self.network.encode(raw) if isinstance(self.network, IntegerNetwork) else raw.astype(np.float64)
            yield last, same


class SteppedSimulation:
    """Samples between two steps.

    Attributes:
        states: of the layers, in their order.
        counts: spikes by layer so far.
    """

    def __init__(self, simulator: Simulator, samples: int):
        self.simulator = simulator
        self.states: list[Any] = [layer.start(samples) for layer in simulator.layers]
        self.counts = dict.fromkeys((layer.name for layer in simulator.layers if layer is not simulator.readout), 0)
        self._values: Values = {(layer.name, 0): state.spikes for layer, state in zip(simulator.layers, self.states)}
        self._sent: dict[str, deque[np.ndarray]] = {}

    def step(self, x: np.ndarray, same: bool = False) -> None:
        """Advance by one step; ``x`` (B, values) is what ``encode`` made, or real numbers; ``same``: as the step before."""
        simulator, values = self.simulator, self._values
        values[simulator.network.input, 0] = x
        for source, lag in sorted(simulator.lagging) if not self._sent else ():
            self._sent[source] = deque([np.zeros_like(values[source, 0])] * lag, maxlen=lag)  # the longest lag is the last
        values |= {(source, lag): self._sent[source][-lag] for source, lag in simulator.lagging}
        for layer, state in zip(simulator.layers, self.states):
            layer.step(values, state, same)
            if layer.name in self.counts:
                self.counts[layer.name] += int(np.count_nonzero(state.spikes))
        for source, train in self._sent.items():
            train.append(values[source, 0].copy())

    @property
    def potentials(self) -> np.ndarray:
        """Of the readout: (B, classes)."""
        readout = self.simulator.readout
        return self.states[self.simulator.layers.index(readout)].v[:, readout.back]

    @property
    def clipped(self) -> dict[str, int]:
        """Potentials that stopped at the limits, by layer."""
        return {layer.name: state.clipped for layer, state in zip(self.simulator.layers, self.states) if state.clipped}


@dataclass
class _State:
    v: np.ndarray
    spikes: np.ndarray
    sums: list[np.ndarray]
    sent: np.ndarray | None  # of graded neurons, the sum of what they have sent
    current: np.ndarray | None  # where it outlives its step
    raised: np.ndarray | None  # of adaptive neurons, by how much the threshold is raised
    clipped: int = 0  # potentials that stopped at the limits of 24 bits


class _Neurons:
    """A population with its connections, with its neurons in an order of its own: channels last."""

    def __init__(self, population: Population | IntegerPopulation, orders: dict[str, np.ndarray], payloads: Payloads):
        self.name, self.size = population.name, len(population.bias)
        order = orders[population.name]
        self.back = np.argsort(order)
        self.sources = [((c.source, c.lag), payloads[c.source][0] == 0 and not c.lag) for c in population.connections]
        self.fixed = isinstance(population, IntegerPopulation)
        self.synapses = [
            Synapses(c.matrix, order, orders[c.source], _dtype(c, *payloads[c.source]), not self.fixed, *payloads[c.source])
            for c in population.connections
        ]
        self.exponents = [
            np.ascontiguousarray(c.exponent[order], np.int32) if isinstance(c.exponent, np.ndarray) else c.exponent
            for c in population.connections
            if isinstance(c, IntegerConnection)
        ]
        self.align, self.limit = (population.align, population.limit) if isinstance(population, IntegerPopulation) else (0, 0)
        never = self.limit if self.fixed else np.inf  # a threshold that is not reached
        theta = np.full(self.size, never) if population.theta is None else population.theta
        if isinstance(population, IntegerPopulation):
            bias = population.bias.astype(np.int64) << population.bias_exponent
            shift = 0 if population.theta is None else self.align
            numbers = [n.astype(np.int32) for n in (bias, theta.astype(np.int64) << shift, population.decay)]
            factors = [population.synaptic_decay, population.adaptation, population.adaptation_decay]
            rest = population.v_init
        else:
            leak = np.ones(self.size) if population.leak is None else population.leak
            numbers = [population.bias, theta, leak]
            factors = [population.synaptic_leak, population.adaptation, population.adaptation_leak]
            rest = np.zeros(self.size) if population.theta is None else population.v_init * population.theta
        self.parameters = [np.ascontiguousarray(n[order]) for n in numbers]
        self.synaptic, self.raise_by, self.raised_leak = [None if n is None else np.ascontiguousarray(n[order]) for n in factors]
        self.bias = self.parameters[0]
        if self.synaptic is not None:
            self.parameters[0] = np.zeros_like(self.bias)  # it is part of the current
        self.levels, self.rectify, self.theta = population.levels, population.rectify, self.parameters[1]
        if self.levels or self.raise_by is not None:
            self.parameters[1] = np.full_like(self.theta, never)  # fire_* integrate, and send_graded or adapt_* decides
        self.rest = rest[order]
        self.leaky = isinstance(population, IntegerPopulation) and bool(population.decay.any())
        self.to_zero, self.signed = bool(population.to_zero), population.signed

    def start(self, samples: int) -> _State:
        """The state of ``samples`` samples before the first step."""
        shape = (samples, self.size)
        sums = [np.empty(shape, s.dtype) for s in self.synapses]
        v = np.repeat(self.rest[None], samples, 0)
        sent = np.zeros(shape, np.int32) if self.signed else None
        current = None if self.synaptic is None else np.zeros_like(v)
        raised = None if self.raise_by is None else np.zeros_like(v)
        return _State(v, np.zeros(shape, np.int8 if self.signed else np.uint8), sums, sent, current, raised)

    def step(self, values: Values, state: _State, same_input: bool) -> None:
        """Advance one step, in place."""
        for (source, own), synapses, sums in zip(self.sources, self.synapses, state.sums):
            if not (own and same_input):
                synapses.deliver(values[source], sums)
        if self.fixed:
            total, exponent, align = *self._total_fixed(state), self.align
            if state.current is not None:
                filter_fixed(total, exponent, align, self.limit, state.current, self.bias, self.synaptic)
                total, exponent, align = state.current, -1, 0
            arguments = state.v, state.spikes, *self.parameters, self.leaky, self.to_zero
            state.clipped += fire_fixed(total, exponent, align, self.limit, *arguments)
        else:
            total = self._total_float(state)
            if state.current is not None:
                filter_float(total, state.current, self.bias, self.synaptic)
                total = state.current
            fire_float(total, state.v, state.spikes, *self.parameters, self.to_zero)
        if state.sent is not None:
            send_graded(state.v, state.spikes, self.theta, self.levels, self.rectify, state.sent)
        if state.raised is not None:
            arguments = state.v, state.spikes, self.theta, self.to_zero, state.raised, self.raise_by, self.raised_leak
            adapt_fixed(*arguments, self.limit) if self.fixed else adapt_float(*arguments)

    def quick(self, trains: dict[str, np.ndarray], given: list[tuple[np.ndarray, bool]]) -> bool:
        """Whether ``run`` can take the layer through all steps at once."""
        plain = self.synaptic is None and self.raise_by is None
        if not plain or len(self.synapses) != 1 or not isinstance(self.exponents[0], int):
            return False
        sent = trains.get(self.sources[0][0][0])
        return all(same for _, same in given[1:]) if sent is None else self.synapses[0].quick(sent.dtype)

    def run(self, trains: dict[str, np.ndarray], given: list[tuple[np.ndarray, bool]], state: _State, train: np.ndarray) -> int:
        """All steps; writes the spikes (T, B, neurons), and returns how many there are."""
        (synapses,), sent = self.synapses, trains.get(self.sources[0][0][0])
        constant = sent is None
        if sent is None:
            sums, sent = state.sums[0], np.zeros((1, 1, 1), np.uint8)
            synapses.deliver(given[0][0], sums)
        else:
            steps = max(1, min(len(train), ROOM // self.size))
            sums = aligned((steps, self.size), synapses.dtype)
        numbers = (self.exponents[0], self.align, self.limit, self.leaky, self.to_zero, self.levels, self.rectify)
        taken = np.zeros((1, 1), np.int32) if state.sent is None else state.sent
        clipped, count = run_layer(
            sent, synapses.runs, synapses.pool, synapses.groups, sums, constant, numbers, state.v, train,
            tuple(self.parameters), state.sent is not None, self.theta, taken,
        )  # fmt: skip
        state.clipped += clipped
        return count

    def _total_fixed(self, state: _State) -> tuple[np.ndarray, int]:
        """Sums and the exponent that makes them a current; several are summed as currents, and -1 undoes the factor 2."""
        if len(state.sums) == 1 and isinstance(self.exponents[0], int):
            return state.sums[0], self.exponents[0]
        total = np.zeros_like(state.v)
        for sums, exponent in zip(state.sums, self.exponents):
            (add_shifted if isinstance(exponent, int) else add_channels)(sums, exponent, total)
        return total, -1

    def _total_float(self, state: _State) -> np.ndarray:
        return state.sums[0] if len(state.sums) == 1 else reduce(np.add, state.sums)


@dataclass
class _Counts:
    v: np.ndarray  # the largest count of each window
    spikes: np.ndarray
    counts: np.ndarray  # of each source, one connection's after the other's
    clipped: int = 0


class _Pooling:
    """Windows of max pooling, in either precision the same integers; see graph.py."""

    def __init__(self, population: Population | IntegerPopulation, orders: dict[str, np.ndarray], _: Payloads):
        self.name, self.size, self.signed = population.name, len(population.bias), population.signed
        order = orders[population.name]
        self.back = np.argsort(order)
        self.sources = [c.source for c in population.connections]
        held = sparse.hstack([c.matrix[order][:, orders[c.source]] for c in population.connections], format="csr")
        self.windows = held.indptr.astype(np.int64), held.indices.astype(np.int32)
        self.edges = np.cumsum([0, *(c.matrix.shape[1] for c in population.connections)])

    def start(self, samples: int) -> _Counts:
        """The state of ``samples`` samples before the first step."""
        shape = (samples, self.size)
        spikes = np.zeros(shape, np.int8 if self.signed else np.uint8)
        return _Counts(np.zeros(shape, np.int32), spikes, np.zeros((samples, self.edges[-1]), np.int32))

    def step(self, values: Values, state: _Counts, same_input: bool) -> None:
        """Advance one step, in place."""
        for source, edge in zip(self.sources, pairwise(self.edges)):
            state.counts[:, slice(*edge)] += values[source, 0]
        pool(state.counts, state.v, state.spikes, *self.windows)


def _dtype(connection: Connection | IntegerConnection, payload: int, signed: bool) -> Any:
    """16 bits where no set of spikes can overflow them: twice as many at once; a payload of 0 is not known. Spikes without a sign
    reach the sum of the weights of one sign at most."""
    if isinstance(connection, Connection):
        return np.float64
    matrix = connection.matrix
    sizes = [abs(matrix)] if signed else [matrix.maximum(0), -matrix.minimum(0)]
    largest = max(int(part.sum(axis=1).max()) for part in sizes) * payload if matrix.nnz else 0
    return np.int32 if payload == 0 or largest > INT16 else np.int16


def _order(shape: tuple[int, ...]) -> np.ndarray:
    """C-order index by position: channels last, which makes the compiled loops faster."""
    index = np.arange(int(np.prod(shape)))
    return np.moveaxis(index.reshape(shape), 0, -1).ravel() if len(shape) > 1 and NUMBA else index
