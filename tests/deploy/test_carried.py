"""A NIR file holds the network or is not written: attributes that nodes do not carry, hooks; what graphs from elsewhere mean."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError, Simulator, budget, simulate
from spikeprop_hardware.chip import activity
from spikeprop_hardware.network import lay_out
from torch import nn

from spikeprop import IF, LIF, Direct, GradedIF, SignedIF
from spikeprop.deploy import export, from_nir, portable, read_nir, record, to_nir
from spikeprop.deploy.carried import CARRIED, IGNORED
from spikeprop.deploy.writing import _WRITERS
from spikeprop.errors import NirError
from spikeprop.snn import INPUT, Layer, Neuron, SpikingNetwork, Synapse
from spikeprop.snn.pooling import SpikingMaxPool


def network(*ops: nn.Module, neuron: Any = None, shape: tuple[int, ...] = (2, 6, 6)) -> SpikingNetwork:
    """Operations into neurons into a readout."""
    torch.manual_seed(0)
    synapse = Synapse(ops)
    made = neuron or IF(v_threshold=0.5)
    with torch.no_grad():
        after = synapse(torch.zeros(1, 1, *shape)).shape[2:]
    size = int(np.prod(made.output_shape(tuple(after))))
    layers = {"a": Layer([(INPUT, synapse)], made), "out": Layer([("a", Synapse([nn.Flatten(), nn.Linear(size, 3)]))], None)}
    return SpikingNetwork(layers, Direct(), shape).eval()


@pytest.mark.parametrize(
    ("op", "attribute"),
    [
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), "padding_mode = 'reflect'"),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), "padding_mode = 'replicate'"),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), "padding_mode = 'circular'"),
        (nn.AvgPool2d(4, ceil_mode=True), "ceil_mode = True"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad = False"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override = 3"),
        (nn.Flatten(2), "start_dim = 2"),
        (nn.Flatten(1, 2), "end_dim = 2"),
    ],
    ids=str,
)
def test_an_attribute_that_a_node_does_not_carry_is_refused(op: nn.Module, attribute: str) -> None:
    with pytest.raises(NirError, match=f"layer 'a': {type(op).__name__} has {attribute}, which its NIR node cannot say"):
        to_nir(network(op))


@pytest.mark.parametrize(
    "op",
    [
        nn.Conv2d(2, 3, 3, padding_mode="reflect"),  # without padding it means nothing
        nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), groups=2),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.AvgPool2d(3, stride=1, padding=1),
        nn.AvgPool2d((2, 3), padding=(1, 0), divisor_override=1),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(1, 3),
    ],
    ids=str,
)
def test_what_a_node_carries_is_read_back_and_simulated_equally(tmp_path: Path, op: nn.Module) -> None:
    made = network(op).double()
    export(made, tmp_path / "n.nir")
    back = from_nir(read_nir(tmp_path / "n.nir"))
    x = torch.rand(3, 2, 6, 6)
    (ours, output), (theirs, their_output) = record(made, x, 9), record(back, x, 9)
    assert ours["a"].any()
    np.testing.assert_array_equal(ours["a"], theirs["a"])
    np.testing.assert_allclose(output, their_output)
    found = simulate(tmp_path / "n.nir", ours["input"], backend="reference")
    np.testing.assert_array_equal(found.spikes["a"], ours["a"])


def test_every_attribute_without_a_default_is_carried() -> None:
    assert set(_WRITERS) <= set(CARRIED)
    for kind, carried in CARRIED.items():
        parameters = inspect.signature(kind.__init__).parameters
        needed = {name for name, p in parameters.items() if p.default is p.empty and name not in IGNORED}
        assert needed <= carried <= set(parameters), kind


def test_pooling_of_spikes_and_hooks_are_checked_too() -> None:
    pool, head = SpikingMaxPool(2), Synapse([nn.Flatten(), nn.Linear(18, 3)])
    layers = {
        "a": Layer([(INPUT, Synapse([]))], IF()),
        "m": Layer([("a", Synapse([]))], pool),
        "out": Layer([("m", head)], None),
    }
    made = SpikingNetwork(layers, Direct(), (2, 6, 6))
    to_nir(made)
    pool.window.dilation, head.ops[1] = 2, nn.Linear(8, 3)
    with pytest.raises(NirError, match="layer 'm': MaxPool2d has dilation = 2"):
        to_nir(made)
    conv: Any = nn.Conv2d(2, 3, 3)
    hook = conv.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(NirError, match="layer 'a': Conv2d has a hook or a forward of its own"):
        to_nir(network(conv))
    hook.remove()
    to_nir(network(conv))
    conv.forward = lambda x: x
    with pytest.raises(NirError, match="a hook or a forward of its own"):
        to_nir(network(conv))


@pytest.mark.parametrize("neuron", [IF(), LIF(), SignedIF(), GradedIF(levels=3)], ids=str)
def test_every_setting_of_a_neuron_is_written(neuron: Neuron) -> None:
    neuron.v_threshold, neuron.v_init = torch.tensor(0.7), torch.tensor(0.25)
    back = from_nir(to_nir(network(neuron=neuron))).neurons()["a"]
    for name in ("v_threshold", "leak", "v_init"):
        torch.testing.assert_close(getattr(back, name), getattr(neuron, name))
    assert (type(back), back.reset, back.payload) == (type(neuron), neuron.reset, neuron.payload)


# graphs from elsewhere --------------------------------------------------------------------------------------------------------


def graph(cell: Any = None, extra: dict[str, Any] | None = None, edges: Sequence[tuple[str, str]] = ()) -> nir.NIRGraph:
    """Input, weights, neurons "h", weights, output."""
    rng = np.random.default_rng(0)
    nodes: dict[str, Any] = {
        "input": nir.Input(input_type={"input": np.array([3])}),
        "w": nir.Linear(weight=rng.normal(size=(4, 3))),
        "h": cell or nir.IF(r=np.ones(4), v_threshold=np.full(4, 0.7)),
        "last": nir.Linear(weight=rng.normal(size=(2, 4))),
        "output": nir.Output(output_type={"output": np.array([2])}),
        **(extra or {}),
    }
    own = [("input", "w"), ("w", "h"), ("h", "last"), ("last", "output")]
    return nir.NIRGraph(nodes=nodes, edges=[*own, *edges], type_check=False)


@pytest.mark.parametrize("edge", [("input", "w"), ("w", "h"), ("last", "output")])
def test_an_edge_listed_twice_is_refused_everywhere(edge: tuple[str, str]) -> None:
    for read in (from_nir, lay_out):
        with pytest.raises(NirError, match=f"the edge from '{edge[0]}' to '{edge[1]}' is listed twice"):
            read(graph(edges=[edge]))


def test_edges_to_nowhere_and_into_the_input_are_refused() -> None:
    for read in (from_nir, lay_out):
        with pytest.raises(NirError, match="names 'ghost', which is no node"):
            read(graph(edges=[("h", "ghost")]))
        with pytest.raises(NirError, match="ends in the graph's input"):
            read(graph(edges=[("h", "input")]))


def test_the_output_is_the_one_that_is_named_whatever_lies_beside_it() -> None:
    ones = np.ones(7)
    extra = {
        "d": nir.Linear(weight=np.ones((7, 4))),
        "dead": nir.IF(r=ones, v_threshold=ones),
        "e": nir.Linear(weight=np.ones((7, 7))),
        "deader": nir.IF(r=ones, v_threshold=ones),
    }
    own, beside = graph(), graph(extra=extra, edges=[("h", "d"), ("d", "dead"), ("dead", "e"), ("e", "deader")])
    inputs = np.random.default_rng(1).uniform(0, 1, (2, 12, 3))
    plain, wide = lay_out(own), lay_out(beside)
    for order in (wide.populations, wide.populations[::-1]):  # by name, wherever it lies
        found = type(wide)(**{**vars(wide), "populations": order})
        assert found.readout.name == "output"
        assert found.depth == plain.depth
        assert {layer.name for layer in budget(found).layers} == {"h", "dead", "deader", "output"}
    np.testing.assert_array_equal(Simulator(plain).run(inputs).output, Simulator(wide).run(inputs).output)
    assert [a.name for a in activity(wide, inputs)] == ["input", "h", "dead", "deader"]
    network = from_nir(beside)
    _, output = record(network, torch.from_numpy(inputs[:, 0]), 12)
    np.testing.assert_allclose(
        output, Simulator(wide).run(np.broadcast_to(inputs[:, :1], inputs.shape)).output, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", ["training", "forward", "keys", "parameters", "T_destination", "a.b", ""])
def test_a_node_may_have_any_name(tmp_path: Path, name: str) -> None:
    made = graph()
    made.nodes = {name if key == "h" else key: node for key, node in made.nodes.items()}
    made.edges = [(name if a == "h" else a, name if b == "h" else b) for a, b in made.edges]
    network = from_nir(made)
    x = torch.rand(2, 3)
    spikes, _ = record(network, x, 9)
    (layer,) = network.neurons()
    assert spikes[layer].any()
    again = from_nir(to_nir(network))
    np.testing.assert_array_equal(record(again, x, 9)[0][layer], spikes[layer])


@pytest.mark.parametrize("factor", [0.25, 3.0, "by neuron"])
@pytest.mark.parametrize("leaky", [False, True])
def test_a_factor_on_the_current_is_scaled_exactly(factor: Any, leaky: bool) -> None:
    f = np.array([0.5, 1.0, 2.0, 4.0]) if factor == "by neuron" else np.full(4, factor)
    theta, zeros = np.full(4, 0.75), np.zeros(4)
    tau = np.full(4, 8.0)  # leak 7/8
    if leaky:
        cell: Any = nir.LIF(tau=tau, r=f * 8, v_leak=zeros, v_threshold=theta, v_reset=zeros, metadata={"dt": 1.0})
    else:
        cell = nir.IF(r=f, v_threshold=theta, v_reset=zeros)
    made = graph(cell)
    nodes: Any = made.nodes
    weight = nodes["w"].weight = np.round(nodes["w"].weight * 16) / 16
    x = np.random.default_rng(2).integers(0, 16, (5, 3)) / 16
    v, wanted = np.zeros((5, 4)), []
    for _ in range(20):  # NIR's own equation, one Euler step
        v = (7 / 8 if leaky else 1.0) * v + f * (x @ weight.T)
        fired = v > theta
        v = np.where(fired, 0.0, v)
        wanted.append(fired)
    spikes = np.stack(wanted, 1)
    assert spikes.any()
    np.testing.assert_array_equal(record(from_nir(made), torch.from_numpy(x), 20)[0]["h"], spikes)
    inputs = np.broadcast_to(x[:, None], (5, 20, 3))
    np.testing.assert_array_equal(Simulator(lay_out(made)).run(inputs).spikes["h"], spikes)
    for library in ("norse", "snntorch"):
        written: Any = portable(made, library).nodes["h"]
        scaled: Any = lay_out(made).populations[0].theta
        np.testing.assert_allclose(scaled, theta / f)
        assert written.v_threshold.shape == (4,)


def test_a_factor_that_is_not_positive_is_refused() -> None:
    for r in (0.0, -1.0):
        with pytest.raises(NirError, match=f"node 'h' scales its current by r = {r:.4g}"):
            lay_out(graph(nir.IF(r=np.full(4, r), v_threshold=np.ones(4))))


def test_steps_that_are_none_are_refused() -> None:
    for said in (0, -3, "many"):
        made = graph()
        made.metadata = {"timesteps": said}
        with pytest.raises(NirError, match="timesteps"):
            lay_out(made)
    with pytest.raises(NirError, match="timesteps is 0"):
        export(network(nn.Conv2d(2, 2, 1)), Path("never.nir"), timesteps=0)
    with pytest.raises(HardwareError, match="at least one of each"):
        simulate("never.nir", np.zeros((1, 0, 3)), backend="reference")


@pytest.mark.parametrize("place", ["network", "layer", "synapse", "forward", "subclass", "encoder"])
def test_what_hangs_on_containers_is_refused(place: str) -> None:
    made = network(nn.Flatten(), nn.Linear(72, 4))
    first = made.layers[next(iter(made.layers))]
    assert isinstance(first, Layer)
    if place == "forward":
        made.forward = lambda *_, **__: torch.zeros(1)  # type: ignore[method-assign]
    elif place == "subclass":
        first.synapses[0].__class__ = type("Own", (Synapse,), {})
    elif place == "encoder":
        made.encoder = type("Direct", (Direct,), {})()
    else:
        found: Any = {"network": made, "layer": first, "synapse": first.synapses[0]}[place]
        found.register_forward_hook(lambda *_: None)
    with pytest.raises(NirError, match=r"a hook or a forward of its own|cannot hold|another class"):
        to_nir(made)
