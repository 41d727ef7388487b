"""The chip's budget: hand-counted layers, limits met and broken, spikes and SynOps of networks known by heart."""

from __future__ import annotations

import re

import nir
import numpy as np
import pytest
from spikeprop_hardware import HardwareError
from spikeprop_hardware.chip import activity, budget
from spikeprop_hardware.network import ChipNetwork, lay_out
from spikeprop_hardware.quantization import quantize_network
from spikeprop_hardware.targets import Loihi2

from spikeprop.deploy import to_nir
from tests.hardware.random_networks import KINDS, random_network, simulate_in_torch


def conv_then_dense() -> ChipNetwork:
    """1x4x4 input, 3x3 convolution to 2 channels with padding 1, a dense layer of 5."""
    ones = np.ones((2, 4, 4))
    nodes = {
        "in": nir.Input(input_type={"input": np.array([1, 4, 4])}),
        "w": nir.Conv2d((4, 4), np.ones((2, 1, 3, 3)), (1, 1), (1, 1), (1, 1), 1, np.zeros(2)),
        "a": nir.IF(r=ones, v_threshold=ones * 100),
        "flat": nir.Flatten(input_type={"input": np.array([2, 4, 4])}, start_dim=0, end_dim=-1),
        "v": nir.Linear(weight=np.ones((5, 32))),
        "out": nir.Output(output_type={"output": np.array([5])}),
    }
    edges = [("in", "w"), ("w", "a"), ("a", "flat"), ("flat", "v"), ("v", "out")]
    return lay_out(nir.NIRGraph(nodes=nodes, edges=edges, type_check=False))


def test_counts_by_hand() -> None:
    found = budget(conv_then_dense())
    a, out = found.layers
    per_channel = 4 * 9 + 8 * 6 + 4 * 4  # inner places, borders, corners
    assert (a.neurons, a.synapses, a.fan_in, a.fan_out) == (32, 2 * per_channel, 9, 5)
    assert (a.axons, a.axons_per_core, a.cores, a.bound) == (16, 16, 1, "")
    assert a.bytes == 32 * 12 + 2 * per_channel * 2
    assert (out.neurons, out.synapses, out.fan_in, out.fan_out, out.axons) == (5, 160, 32, 0, 32)
    assert out.bytes == 5 * 12 + 160  # dense: no targets to name
    assert (found.cores, found.chips, found.problems) == (2, 1, [])


def test_a_layer_is_split_where_a_core_is_full() -> None:
    by_number = budget(conv_then_dense(), Loihi2(neurons_per_core=10))
    assert [layer.cores for layer in by_number.layers] == [4, 1]
    assert by_number.layers[0].bound == "neurons"
    # rows 0 to 2 of the first channel read all but the last row; the fourth core holds the second channel's last two neurons
    assert by_number.layers[0].axons_per_core == 16
    memory = by_number.layers[0].bytes // 2 + 1
    by_memory = budget(conv_then_dense(), Loihi2(bytes_per_core=memory, cores=1))
    assert [layer.cores for layer in by_memory.layers] == [2, 1]
    assert by_memory.layers[0].bound == "memory"
    assert by_memory.layers[0].axons == 2 * 16  # each core holds one channel, which reads every pixel
    assert by_memory.chips == 3


def test_a_layer_is_split_where_its_core_has_no_more_axons_for_output() -> None:
    """Each of its 32 neurons takes one for the core of the dense layer, or two where that has two."""
    found = budget(conv_then_dense(), Loihi2(axons_out=8))
    assert [(layer.cores, layer.bound) for layer in found.layers] == [(4, "axons out of a core"), (1, "")]
    assert found.problems == []
    two = budget(conv_then_dense(), Loihi2(axons_out=8, neurons_per_core=4))
    assert [(layer.cores, layer.bound) for layer in two.layers] == [(8, "neurons"), (2, "neurons")]
    (problem,) = budget(conv_then_dense(), Loihi2(axons_out=1, neurons_per_core=4)).problems
    assert "layer 'a' has a core with 2 axons for output, one for each core that a neuron sends to, and a core has 1" in problem


def test_what_cannot_be_placed_is_explained() -> None:
    network, _ = random_network(KINDS.index("residual"))
    plan = lay_out(to_nir(network))
    skip = max(c.delay for p in plan.populations for c in p.connections)
    assert skip > 0
    for chip, says in (
        (
            Loihi2(bytes_per_core=40),
            "layer 'out.*' has neurons with 32 synapses, 44 bytes, and a core holds 40; reduce what it reads",
        ),
        (Loihi2(bytes_per_core=150, cores=1, chips=2), "needs .* chips, and the largest system has 2; layer 'a' alone takes"),
    ):
        problems = budget(conv_then_dense(), chip).problems
        assert len(problems) == 1
        assert re.search(says, problems[0]), problems
    (problem,) = budget(plan, Loihi2(delay=skip - 1)).problems
    assert f"layer 'sum' delays spikes of 'c0' by {skip} steps, and a synapse delays them by at most {skip - 1}" in problem


@pytest.mark.parametrize("seed", range(len(KINDS)), ids=KINDS)
def test_synops_are_spikes_times_fan_out(seed: int) -> None:
    network, inputs = random_network(seed)
    plan = lay_out(to_nir(network))
    spikes, _, _ = simulate_in_torch(network, inputs)
    active = {layer.name: layer for layer in activity(plan, inputs)}
    assert active.keys() == {plan.input, *spikes}
    synops = 0.0
    for population in plan.populations:
        for c in population.connections:
            train = inputs if c.source == plan.input else spikes[c.source]
            sent = (train != 0).reshape(-1, c.matrix.shape[1]).sum(0)
            synops += float(((c.matrix != 0) @ sent).sum()) / len(inputs)
    stored = sum((c.matrix.data == 0).sum() for p in plan.populations for c in p.connections)
    total = sum(layer.synops for layer in active.values())
    assert total >= synops
    assert total == pytest.approx(synops) or stored


def test_an_integer_network_has_the_same_layout_and_wrong_inputs_are_refused() -> None:
    plan = conv_then_dense()
    assert budget(quantize_network(plan).network) == budget(plan)
    with pytest.raises(HardwareError, match="inputs have shape"):
        activity(plan, np.zeros((1, 2, 5)))
