"""Graphs with loops, delays, subgraphs, synaptic currents, adaptive thresholds and integrators, against a loop over their nodes."""

from __future__ import annotations

from pathlib import Path

import nir
import numpy as np
import pytest
from spikeprop_hardware import Recording, lay_out, quantize, read_nir, simulate
from spikeprop_hardware.reference import Simulator
from tests.hardware.random_graphs import random_graph, run_nodes
from tests.hardware.test_lava import lava_or_skip

ALL = Recording(membranes=True)


def test_graphs_with_loops_spike_as_their_nodes_do() -> None:
    fired, strides = 0, set()
    for seed in range(60):
        graph, inputs = random_graph(seed)
        network = lay_out(graph)
        spikes, output = run_nodes(graph, inputs)
        ours = Simulator(network, threads=1).run(inputs)
        for name, train in spikes.items():
            np.testing.assert_array_equal(ours.spikes[name], train, f"seed {seed}, {name}")
            fired += int(train.sum())
        from spikeprop_hardware.recording import shaped
        np.testing.assert_allclose(shaped(ours, network).output, output, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        strides.add(network.stride)
    assert fired > 3000
    assert {1, 2, 3} <= strides
