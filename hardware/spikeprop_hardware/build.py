"""A network as connected Lava processes, run over all samples in one run; this module runs in Lava's Python.

Each population is a SoftIF (ChipIF in integers) or a MaxPool, each connection a Sparse synapse (graded messages, since encoded
input may be signed or real and neurons graded), the output a Readout (ChipReadout). A synapse sends what it received a time step
before, so that a loop of them does not wait for itself. Samples follow one another in the same run; processes/soft_reset.py
explains how they are separated, and what a step of the network is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from spikeprop_hardware.integer import IntegerConnection, IntegerNetwork, IntegerPopulation
from spikeprop_hardware.network import ChipNetwork, Connection, Population
from spikeprop_hardware.recording import BITS_PER_NUMBER, SimulationResult


def run_on_lava(
    network: ChipNetwork | IntegerNetwork,
    inputs: np.ndarray,
    progress: Callable[[int, int], None],
    slices: int = 100,
    membranes: bool = False,
) -> SimulationResult:
    """Run every sample through Lava; an integer network runs on the fixed-point models, potentials and output as integers.

    Args:
        network: laid out, or in integers.
        inputs: (samples, steps, values) float64, or the int32 that an integer network's ``encode`` makes.
        progress: called with (time steps done, all time steps).
        slices: how often progress is called; a caller takes a long time without a call as a sign that Lava hangs.
        membranes: record potentials, which Lava returns slowly.
    """
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.source import RingBuffer

    samples, period, size = inputs.shape
    steps = samples * period
    given = np.zeros((samples, period + network.gap, network.stride, size), inputs.dtype)
    given[:, :period, 0] = inputs
    source = RingBuffer(data=np.ascontiguousarray(given.reshape(-1, size).T))
    run = {"period": period, "gap": network.gap, "stride": network.stride, "steps": steps}
    processes = {p.name: _process(p, run, membranes) for p in network.populations}
    senders = {p.name: processes[p.name].s_out for p in network.populations if p.theta is not None}
    for p in network.populations:
        _connect(p, processes[p.name], {network.input: source.s_out, **senders})
    readout = processes[network.readout.name]
    select = "fixed_pt" if isinstance(network, IntegerNetwork) else "floating_pt"
    done, total = 0, len(given) * given.shape[1] * given.shape[2] + max(p.depth for p in network.populations)
    try:
        while done < total:
            count = min(max(1, total // slices), total - done)
            readout.run(condition=RunSteps(num_steps=count), run_cfg=Loihi2SimCfg(select_tag=select))
            done += count
            progress(done, total)
        shape = (samples, period, -1)
        layers = [(p, processes[p.name]) for p in network.populations if p is not network.readout]
        spikes, traces = {}, {}
        for p, process in layers:
            spikes[p.name] = _trains(p, process, steps).reshape(shape)
            if membranes:
                traces[p.name] = process.trace.get().T.reshape(shape)
            progress(done, total)  # what is recorded is returned slowly
        output = readout.potentials.get().T.reshape(shape)
        clipped = _clipped(network, processes)
    finally:
        readout.stop()
    return SimulationResult(spikes, output, traces, clipped=clipped)


def _clipped(network: ChipNetwork | IntegerNetwork, processes: dict[str, Any]) -> dict[str, int]:
    """Potentials that stopped at the limits of 24 bits, by population."""
    able = [p.name for p in network.populations if isinstance(p, IntegerPopulation) and not p.pools]
    counts = {name: int(processes[name].clipped.get().sum()) for name in able}
    return {name: count for name, count in counts.items() if count}


def _process(population: Any, run: dict[str, int], trace: bool) -> Any:
    from spikeprop_hardware.processes.declaration import timing_of
    from spikeprop_hardware.processes.fixed_point import ChipIF, ChipReadout
    from spikeprop_hardware.processes.soft_reset import Readout, SoftIF

    timing = timing_of(population.depth, run)
    if population.pools:
        return _pooling(population, timing, trace)
    fixed = isinstance(population, IntegerPopulation)
    if population.theta is None:
        return (ChipReadout if fixed else Readout)(population, timing=timing)
    return (ChipIF if fixed else SoftIF)(population, timing=timing, trace=trace)


def _connect(population: Any, process: Any, ports: dict[str, Any]) -> None:
    """Make a population's synapses."""
    from spikeprop_hardware.processes.declaration import parts_of
    from spikeprop_hardware.processes.soft_reset import DelayLine

    connections = _by_source(population) if population.pools else _by_exponent(population)
    if not population.pools and parts_of(population) > 1:
        connections = _beside(population)
    for connection in connections:
        port = ports[connection.source]
        if connection.delay:
            line = DelayLine(size=connection.matrix.shape[1], delay=connection.delay)
            port.connect(line.s_in)
            port = line.s_out
        synapse = _synapse(connection)
        port.connect(synapse.s_in)
        synapse.a_out.connect(process.a_in)


def _by_exponent(population: Any) -> list[Any]:
    """Connections of one exponent each: one with exponents by neuron is the sum of those."""
    found = []
    for connection in population.connections:
        exponent = getattr(connection, "exponent", 0)
        for e in np.unique(exponent) if isinstance(exponent, np.ndarray) else ():
            rows = sparse.diags((exponent == e).astype(np.int32), format="csr")
            found.append(replace(connection, matrix=(rows @ connection.matrix).tocsr(), exponent=int(e)))
        found += [] if isinstance(exponent, np.ndarray) else [connection]
    return found


def _by_source(population: Population | IntegerPopulation) -> list[Connection | IntegerConnection]:
    """A max pooling's connections, with a separate target for each source: their spikes must not be added."""
    edges = np.cumsum([0, *(c.matrix.shape[1] for c in population.connections)])
    own = []
    for connection, first in zip(population.connections, edges):
        size = connection.matrix.shape[1]
        ones = np.ones(size, connection.matrix.dtype)
        matrix = sparse.csr_matrix((ones, (first + np.arange(size), np.arange(size))), shape=(edges[-1], size))
        own.append(replace(connection, matrix=matrix))
    return own


def _beside(population: Population) -> list[Connection]:
    """A population's connections, with separate targets for each."""
    count = len(population.connections)
    own = []
    for i, connection in enumerate(population.connections):
        held = connection.matrix
        starts = np.concatenate([np.zeros(i * held.shape[0], held.indptr.dtype), held.indptr])
        starts = np.append(starts, np.full(count * held.shape[0] + 1 - len(starts), held.indptr[-1]))
        matrix = sparse.csr_matrix((held.data, held.indices, starts), shape=(count * held.shape[0], held.shape[1]))
        own.append(replace(connection, matrix=matrix))
    return own


def _pooling(population: Population | IntegerPopulation, timing: np.ndarray, trace: bool) -> Any:
    from spikeprop_hardware.processes.max_pool import MaxPool

    held = sparse.hstack([c.matrix for c in population.connections], format="csr")
    return MaxPool(
        sources=held.shape[1], first=held.indptr.astype(np.int64), places=held.indices.astype(np.int64),
        levels=population.levels, timing=timing, trace=trace,
    )  # fmt: skip


def _synapse(connection: Connection | IntegerConnection) -> Any:
    from lava.proc.sparse.process import Sparse
    from lava.utils.weightutils import SignMode

    if isinstance(connection, Connection):
        return Sparse(weights=connection.matrix, num_message_bits=32)
    # nine bits with the lowest dropped, whatever the signs: quantize chooses mantissas for this format
    return Sparse(weights=connection.matrix * 2, num_message_bits=32, weight_exp=connection.exponent, sign_mode=SignMode.MIXED)


def _trains(population: Population | IntegerPopulation, process: Any, steps: int) -> np.ndarray:
    """(steps, neurons) of what the record holds in two's complement: bool, or int8 of graded neurons."""
    k, width = np.arange(steps), population.spike_bits
    number, place = np.divmod(k, BITS_PER_NUMBER // width)
    sent = (process.bits.get().astype(np.int64)[:, number] >> (width * place)) & (2**width - 1)
    if not population.signed:
        return sent.astype(bool).T
    return (sent - ((sent >> (width - 1)) << width)).astype(np.int8).T
