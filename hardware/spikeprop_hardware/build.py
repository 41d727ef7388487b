"""Plan -> connected Lava processes, run over all samples in one go.

Each population is a SoftIF, each connection a Sparse synapse (graded messages, since coded input may be signed or
real), the output a Readout. Samples follow one another in the same run; see processes/soft_reset.py for how they are
kept apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spikeprop_hardware.plan import Plan, Population

BITS = 48  # spikes a number: Lava hands variables back as float64, whole up to 2^53


def run_on_lava(
    plan: Plan, inputs: np.ndarray, progress: Callable[[int, int], None], slices: int = 100
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run every sample through Lava.

    Args:
        plan: the network.
        inputs: (samples, steps, values) float64.
        progress: called with (time steps done, all time steps).
        slices: how often progress is told; often enough that its absence means that Lava hangs.

    Returns:
        spikes by population (samples, steps, neurons) bool, and the accumulated output (samples, steps, classes).
    """
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.source import RingBuffer

    samples, period, _ = inputs.shape
    steps = samples * period
    source = RingBuffer(data=np.ascontiguousarray(inputs.reshape(steps, -1).T))
    ports = {plan.input: source.s_out}
    processes = [_add(population, ports, period, steps) for population in plan.populations]
    done, total = 0, steps + plan.depth
    try:
        while done < total:
            count = min(max(1, total // slices), total - done)
            processes[-1].run(condition=RunSteps(num_steps=count), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
            done += count
            progress(done, total)
        shape = (samples, period, -1)
        spikes = {p.name: _unpack(proc.bits.get(), steps).reshape(shape) for p, proc in zip(plan.populations[:-1], processes)}
        output = processes[-1].sums.get().T.reshape(shape)
    finally:
        processes[-1].stop()
    return spikes, output


def _add(population: Population, ports: dict[str, Any], period: int, steps: int) -> Any:
    """Make a population's process and its synapses, connected; records its output port in ``ports``."""
    from lava.proc.sparse.process import Sparse

    from spikeprop_hardware.processes.soft_reset import DelayLine, Readout, SoftIF

    common: dict[str, Any] = {"bias": population.bias, "onset": population.depth, "period": period, "steps": steps}
    if population.theta is None:
        process: Any = Readout(**common)
    else:
        process = SoftIF(
            theta=population.theta, leak=population.leak, v_init=population.v_init, to_zero=population.to_zero, **common
        )
        ports[population.name] = process.s_out
    for connection in population.connections:
        port = ports[connection.source]
        if connection.delay:
            line = DelayLine(size=connection.matrix.shape[1], delay=connection.delay)
            port.connect(line.s_in)
            port = line.s_out
        synapse = Sparse(weights=connection.matrix, num_message_bits=32)
        port.connect(synapse.s_in)
        synapse.a_out.connect(process.a_in)
    return process


def _unpack(packed: np.ndarray, steps: int) -> np.ndarray:
    """(neurons, words) of 48 steps each to (steps, neurons) bool."""
    k = np.arange(steps)
    return ((packed.astype(np.int64)[:, k // BITS] >> (k % BITS)) & 1).astype(bool).T
