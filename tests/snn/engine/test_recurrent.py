"""A layer that feeds back to itself, packed: against the plain reference, a loop with autograd, and however it is cut."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import ALIF, IF, LIF, CubaLIF, Direct, Frames, SpikingNetwork
from spikeprop.snn import INPUT, STDB, ATan, FastSigmoid, Layer, Synapse, Triangle
from spikeprop.snn.engine import batch
from spikeprop.snn.engine.layerwise import LayerwiseRun
from spikeprop.snn.leaving import Leaving
from spikeprop.snn.synapse import SampleDropout


class Spike(torch.autograd.Function):
    """1 where u > theta; the derivative is that of the neuron's surrogate."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, since: Tensor, surrogate: Any) -> Tensor:
        ctx.save_for_backward(u, theta, since)
        ctx.surrogate = surrogate
        return (u > theta).to(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        u, theta, since = ctx.saved_tensors
        through = grads[0] * ctx.surrogate(u / theta - 1, since) / theta
        return through, (-through * u / theta).sum_to_size(theta.shape), None, None


def by_hand(network: SpikingNetwork, x_TB: Tensor) -> tuple[Tensor, Tensor]:
    """The readout's current (T, B, K) and the layer's spikes, one step after another."""
    layer, out = network.layers["rec"], network.layers["out"]
    neuron: Any = layer.neuron
    forward, back, readout = layer.synapses[0].ops[-1], layer.synapses[1].ops[0], out.synapses[0].ops[-1]  # type: ignore
    v = x_TB.new_zeros(x_TB.shape[1], len(back.weight)) + neuron.v_init * neuron.v_threshold
    spikes, since, currents, trains = torch.zeros_like(v), torch.full_like(v, torch.inf), [], []
    for x in x_TB:
        u = neuron.leak * v + forward(x) + back(spikes)
        since = torch.where(u.detach() > neuron.v_threshold, 0, since + 1)
        spikes = Spike.apply(u, neuron.v_threshold, since, neuron.surrogate)  # type: ignore
        fired = spikes.detach()
        v = u * (1 - fired) if neuron.reset == "zero" else u - neuron.v_threshold * fired
        currents.append(readout(spikes))
        trains.append(fired)
    return torch.stack(currents), torch.stack(trains)


def recurrent(neurons: int, neuron: Any, inputs: int = 12, encoder: Any = None, *, bias: bool = True, dropout: float = 0) -> Any:
    drop = [SampleDropout(dropout)] if dropout else []
    layers = {
        "rec": Layer(
            [(INPUT, Synapse([nn.Linear(inputs, neurons)]))],
            neuron,
            feedback=[("rec", Synapse([nn.Linear(neurons, neurons, bias=bias)]))],
        ),
        "out": Layer([("rec", Synapse([*drop, nn.Linear(neurons, 3)]))], None),
    }
    network = SpikingNetwork(layers, encoder or Frames(), (inputs,)).double()
    with torch.no_grad():
        for parameter in layers["rec"].synapses.parameters():
            parameter.mul_(2)
    return network


def check(seed: int) -> bool:
    """One random network; whether a gradient came through the feedback."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    surrogate = draw.choice([STDB(beta=0.3), STDB(), Triangle(), ATan(), FastSigmoid(slope=2)])
    trained: Any = draw.choice([(), (), ("threshold",), ("leak",), ("threshold", "leak")])
    neuron = LIF(
        v_threshold=draw.choice([0.3, 1.0]),
        leak=draw.choice([1.0, 0.9, 0.5]),
        reset=draw.choice(["subtract", "zero"]),
        v_init=draw.choice([0.0, 0.5]),
        surrogate=surrogate,
        trainable=trained,
    )
    network = recurrent(draw.choice([1, 5, 31, 32, 33, 64, 70, 130]), neuron, draw.choice([3, 40]), bias=draw.random() < 0.5)
    steps, samples = draw.choice([1, 2, 5, 8, 9, 17]), draw.choice([1, 3])
    x_TB = torch.rand(steps, samples, *network.input_shape, dtype=torch.float64)
    x_TB = (x_TB < 0.3).double() if draw.random() < 0.5 else x_TB
    wanted, _ = by_hand(network, x_TB)
    weights, parameters = torch.randn_like(wanted), list(network.parameters())
    grads = torch.autograd.grad((wanted * weights).sum(), parameters, allow_unused=True)
    assert batch.supports(network, x_TB[0])
    for chunk in (None, draw.randint(1, steps)):
        values = network.over_time(x_TB, chunk=chunk)
        torch.testing.assert_close(values, wanted, rtol=1e-10, atol=1e-10)
        found = torch.autograd.grad((values * weights).sum(), parameters, allow_unused=True)
        for ours, theirs in zip(found, grads):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=lambda m: f"network {seed}: {m}")
    back = network.layers["rec"].synapses[1].ops[0].weight
    return bool(grads[[p is back for p in parameters].index(True)].abs().max() > 0)


@pytest.fixture
def two_threads() -> Any:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


def test_gradients_of_random_networks_equal_a_loops(two_threads: None) -> None:
    assert sum(check(seed) for seed in range(30)) > 15


@pytest.mark.slow
def test_gradients_of_many_random_networks_equal_a_loops(two_threads: None) -> None:
    assert sum(check(seed) for seed in range(200)) > 100


def second_state(seed: int) -> tuple[SpikingNetwork, Tensor]:
    """A random recurrent network of ``CubaLIF`` or ``ALIF``, and sequences."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "leak": draw.choice([1.0, 0.9, 0.5]), "v_threshold": draw.choice([0.3, 1.0]), "reset": draw.choice(["subtract", "zero"]),
        "v_init": draw.choice([0.0, 0.5]), "surrogate": draw.choice([STDB(beta=0.3), STDB(), Triangle(), ATan()]),
    }  # fmt: skip
    own: Any = ("threshold", "leak", "synaptic_leak") if draw.random() < 0.5 else ("threshold", "leak", "adaptation")
    trained = draw.choice([(), own])
    neuron = CubaLIF(**settings, trainable=trained) if "synaptic_leak" in own else ALIF(**settings, trainable=trained)
    network = recurrent(draw.choice([1, 31, 33, 70]), neuron, draw.choice([3, 40]), bias=draw.random() < 0.5)
    steps, samples = draw.choice([1, 2, 9, 17, 40]), draw.choice([1, 3])
    return network, torch.rand(steps, samples, *network.input_shape, dtype=torch.float64)


def agrees_with_the_reference(seed: int) -> bool:
    """However it is cut into chunks; the reference is autograd through the neuron's own equations. True where feedback counts."""
    network, x_TB = second_state(seed)
    parameters, found = list(network.parameters()), []
    assert batch.supports(network, x_TB[0])
    for packed, chunk in ((False, None), (True, None), (True, random.Random(seed).randint(1, len(x_TB)))):
        network.packed = packed
        values = network.over_time(x_TB, chunk=chunk)
        weights = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).view_as(values)
        found.append((values.detach(), torch.autograd.grad((values * weights).sum(), parameters, allow_unused=True)))
    for values, grads in found[1:]:
        torch.testing.assert_close(values, found[0][0], rtol=1e-10, atol=1e-10, msg=lambda m: f"network {seed}: {m}")
        for ours, theirs in zip(grads, found[0][1]):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=lambda m: f"network {seed}: {m}")
    back = network.layers["rec"].synapses[1].ops[0].weight  # type: ignore[index, union-attr]
    return bool(found[0][1][[p is back for p in parameters].index(True)].abs().max() > 0)


def test_neurons_with_a_second_state_equal_the_reference(two_threads: None) -> None:
    assert sum(map(agrees_with_the_reference, range(20))) > 10


@pytest.mark.slow
def test_many_networks_of_neurons_with_a_second_state_equal_the_reference(two_threads: None) -> None:
    assert sum(map(agrees_with_the_reference, range(20, 200))) > 100


def exact(network: SpikingNetwork) -> SpikingNetwork:
    """Weights are multiples of 1/64, so that every sum is exact in single precision, in any order."""
    with torch.no_grad():
        for parameter in network.float().eval().parameters():
            parameter.copy_((parameter * 64).round() / 64)
    return network


def spikes_of(network: SpikingNetwork, x: Tensor, timesteps: int | None, chunk: int | None) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []

    def observe(name: str, spikes: Tensor) -> None:
        if name == "rec":
            seen.append(spikes.clone())

    outputs = list(network.unroll(x, timesteps, chunk=chunk, observe=observe))
    return torch.cat(outputs), torch.cat(seen)


@torch.no_grad()
@pytest.mark.parametrize("encoder", [Frames(), Direct()], ids=lambda e: type(e).__name__)
def test_spikes_equal_the_references_bit_for_bit(encoder: Any, two_threads: None) -> None:
    network = exact(recurrent(70, IF(v_threshold=0.5, v_init=0.5), encoder=encoder))
    x, timesteps = ((torch.rand(11, 4, 12) < 0.3).float(), None) if encoder.sequences else (torch.rand(4, 12).round(), 11)
    network.packed = False
    wanted = spikes_of(network, x, timesteps, None)
    assert 50 < int(wanted[1].sum()) < wanted[1].numel() / 2
    network.packed = True
    for chunk in (11, 4, 1):
        for found, expected in zip(spikes_of(network, x, timesteps, chunk), wanted):
            assert torch.equal(found, expected)
    if timesteps is None:  # streamed
        state, outputs = network.init_state(), []
        for x_B in x:
            output, state = network.step(x_B, state)
            outputs.append(output)
        assert torch.equal(torch.stack(outputs), wanted[0])


@torch.no_grad()
def test_samples_leave_and_the_others_keep_their_last_spikes(two_threads: None) -> None:
    network, x_TB = exact(recurrent(33, IF(v_threshold=0.5))), (torch.rand(9, 5, 12) < 0.4).float()
    wanted, leaving, rows = torch.cat(list(network.unroll(x_TB))), Leaving(), torch.tensor([1, 4])
    outputs = network.unroll(x_TB, chunk=3, leaving=leaving)
    next(outputs)
    leaving.keep(rows)
    assert torch.equal(torch.cat(list(outputs)), wanted[3:, rows])


@pytest.mark.parametrize("surrogate", [STDB(beta=0.3), Triangle()], ids=lambda s: type(s).__name__)
def test_dropout_after_and_two_recurrent_layers(surrogate: Any) -> None:
    """More steps than a piece holds, two layers in a chain, one of them with a skip around it."""
    torch.manual_seed(0)
    layers = {
        "one": Layer(
            [(INPUT, Synapse([nn.Linear(6, 40)]))],
            LIF(v_threshold=0.4, leak=0.9, surrogate=surrogate),
            feedback=[("one", Synapse([nn.Linear(40, 40)]))],
        ),
        "two": Layer(
            [("one", Synapse([SampleDropout(0.3), nn.Linear(40, 34)]))],
            IF(v_threshold=0.4, surrogate=surrogate),
            feedback=[("two", Synapse([nn.Linear(34, 34, bias=False)]))],
        ),
        "out": Layer([("two", Synapse([nn.Linear(34, 3)])), ("one", Synapse([nn.Linear(40, 3)]))], None),
    }
    network, x_TB = SpikingNetwork(layers, Frames(), (6,)).double().train(), torch.rand(70, 3, 6, dtype=torch.float64)
    found = []
    for packed in (True, False):
        network.packed = packed
        network.zero_grad()
        torch.manual_seed(1)
        output = network(x_TB)
        output.square().sum().backward()
        found.append((output.detach(), *(p.grad for p in network.parameters())))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


def test_other_feedback_goes_to_the_reference() -> None:
    like, layer = torch.rand(2, 4), lambda back: Layer([(INPUT, Synapse([nn.Linear(4, 4)]))], IF(), feedback=back)
    itself, through = ("a", Synapse([nn.Linear(4, 4)])), ("a", Synapse([nn.Linear(4, 5), nn.Linear(5, 4)]))
    out = lambda: Layer([("a", Synapse([nn.Linear(4, 2)]))], None)  # noqa: E731
    for back, known in (([itself], True), ([itself, itself], False), ([through], False), ([("b", itself[1])], False)):
        layers = {"a": layer(back), "b": Layer([("a", Synapse([nn.Linear(4, 4)]))], IF()), "out": out()}
        assert batch.supports(SpikingNetwork(layers, Frames(), (4,)), like) is known


def test_calibration_layer_by_layer_refuses_feedback() -> None:
    network = recurrent(8, IF(), encoder=Direct())
    x_B = torch.rand(2, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match="'rec' reads feedback"):
        LayerwiseRun(network.eval(), x_B, 4, lambda first, last: x_B.unsqueeze(0))
