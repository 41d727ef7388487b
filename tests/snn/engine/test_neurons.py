"""Every neuron on the engine against the plain reference: trained parameters, signs, payloads, max pooling, a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import ALIF, IF, LIF, PLIF, CubaLIF, Direct, GradedIF, Poisson, SignedIF
from spikeprop.snn import STDB, ATan, Encoder, FastSigmoid, Layer, Neuron, SpikingNetwork, Synapse, Triangle
from spikeprop.snn.dynamics import LayerDynamics, NeuronState
from spikeprop.snn.engine import batch, weighted_run
from spikeprop.snn.engine.weighted_run import Limits
from spikeprop.snn.leaving import Leaving
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.synapse import ChannelPad

SHAPE = (3, 12, 10)


@pytest.fixture(params=["as measured", "by event", "dense"])
def how_events(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice between spike by spike and dense, as it is and forced either way."""
    if request.param != "as measured":
        limit = 1e9 if request.param == "by event" else 0.0
        monkeypatch.setattr(weighted_run, "LIMITS", Limits(**dict.fromkeys(Limits.__dataclass_fields__, limit)))


def network_of(make: Any, encoder: Encoder, *, pool: bool = False, exact: bool = False) -> SpikingNetwork:
    """Two convolutions, one of them twice as wide and with a skip around it, max pooling where asked for, a linear layer.

    Args:
        make: gives each layer its neurons.
        encoder: of the network.
        pool: max pooling of the first layer.
        exact: weights are multiples of 1/64, so that every sum is exact in single precision, in any order.
    """
    torch.manual_seed(1)
    layers: dict[str, Layer] = {"a": Layer([("input", Synapse([nn.Conv2d(3, 34, 3, padding=1)]))], make())}
    source = "a"
    if pool:
        layers["pool"] = Layer([("a", Synapse([ChannelPad(0, 0)]))], SpikingMaxPool(3, 2, ceil_mode=True))
        source = "pool"
        twice = [("pool", Synapse([])), ("pool", Synapse([nn.Identity()]))]
        beside = [("pool", Synapse([ChannelPad(0, 34)])), ("pool", Synapse([ChannelPad(34, 0)]))]
        both = [("wide", Synapse([nn.Conv2d(68, 34, 1)])), ("twice", Synapse([nn.AvgPool2d((2, 1), 1)]))]
        layers["twice"] = Layer(twice, SpikingMaxPool((2, 1), 1, (1, 0)))
        layers["wide"] = Layer(beside, SpikingMaxPool(1))
        layers["out_of"] = Layer(both, make())
        source = "out_of"
    layers["b"] = Layer([(source, Synapse([nn.Conv2d(34, 34, 3, padding=1)])), (source, Synapse([]))], make())
    layers["looked_up"] = Layer([("b", Synapse([nn.Conv2d(34, 32, 3, padding=1)]))], make())
    layers["c"] = Layer([("looked_up", Synapse([nn.AvgPool2d(2), nn.Conv2d(32, 40, 1, stride=2)]))], make())
    side = (2, 1) if pool else (3, 3)
    layers["d"] = Layer([("c", Synapse([nn.Flatten(), nn.Linear(40 * side[0] * side[1], 20)]))], make())
    layers["out"] = Layer([("d", Synapse([nn.Linear(20, 4)]))], None)
    network = SpikingNetwork(layers, encoder, SHAPE).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(3)
            if exact and name.endswith(("weight", "bias")):
                parameter.copy_((parameter * 64).round() / 64)
    return network


def images(count: int = 3) -> Tensor:
    return ((torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2)) * 2 - 1) * 16).round().double() / 16


def output_and_gradients(network: SpikingNetwork, x: Tensor, timesteps: int, **how: int) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    torch.manual_seed(5)
    output = network(x, timesteps, **how)
    F.cross_entropy(output, torch.arange(len(x)) % output.shape[1]).backward()
    return output.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def check_gradients(network: SpikingNetwork, x: Tensor, timesteps: int, chunks: tuple[int, ...]) -> dict[str, Tensor]:
    """The engine's output and gradients equal the reference's, which are returned."""
    network.packed = False
    wanted, gradients = output_and_gradients(network, x, timesteps)
    network.packed = True
    assert batch.supports(network, x)
    for chunk in chunks:
        output, found = output_and_gradients(network, x, timesteps, chunk=chunk)
        torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-10)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    return gradients


def check_spikes(network: SpikingNetwork, x: Tensor, timesteps: int, chunks: tuple[int, ...]) -> dict[str, Tensor]:
    """The engine's spikes and output in single precision equal the reference's bit for bit; returns the reference's spikes."""
    network.float().eval()
    trains, outputs = [], []
    with torch.no_grad():
        for packed, chunk in ((False, 1), *((True, chunk) for chunk in chunks)):
            network.packed = packed
            assert not packed or batch.supports(network, x.float())
            seen: dict[str, list[Tensor]] = {}
            torch.manual_seed(5)
            parts = network.unroll(
                x.float(), timesteps, chunk=chunk, observe=lambda n, s, seen=seen: seen.setdefault(n, []).append(s)
            )
            outputs.append(torch.cat(list(parts)))
            trains.append({name: torch.cat(found) for name, found in seen.items()})
    for train, output in zip(trains[1:], outputs[1:]):
        assert train.keys() == trains[0].keys()
        assert all(torch.equal(train[name], trains[0][name]) for name in train)
        assert torch.equal(output, outputs[0])
    return trains[0]


@pytest.mark.parametrize("trainable", [("threshold", "leak"), ("threshold",), ("leak",)], ids="+".join)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("surrogate", [Triangle(), STDB(beta=0.3), ATan(), FastSigmoid()], ids=lambda s: type(s).__name__)
def test_trained_thresholds_and_leaks(surrogate, reset, trainable) -> None:  # type: ignore[no-untyped-def]
    """More steps than are kept, so potentials are computed again, and few, in one piece and in several."""
    make = partial(LIF, leak=0.9, reset=reset, v_init=0.25, surrogate=surrogate, trainable=trainable)
    for encoder in (Direct(), Poisson()):
        network = network_of(make, encoder)
        for layer in ("a", "c"):  # by channel here, one for all in the other layers
            neuron = network.neurons()[layer]
            channels = network.shapes()[layer][0]
            neuron.set_threshold(torch.rand(channels, 1, 1) + 0.5)
        for timesteps, chunks in ((11, (11, 4)), (5, (5, 2)), (1, (1,))):
            gradients = check_gradients(network, images(), timesteps, chunks)
        trained = [name for name in gradients if name.endswith(("v_threshold", "leak"))]
        assert len(trained) == 5 * len(trainable)


def test_trained_thresholds_and_leaks_of_neurons_one_sample_at_a_time() -> None:
    network = network_of(lambda: LIF(leak=0.9, surrogate=Triangle(), trainable=("threshold", "leak")), Direct())
    neuron = network.neurons()["a"]
    neuron.set_threshold(torch.rand(network.shapes()["a"]) + 0.5)
    gradients = check_gradients(network, images(1), 6, (6, 3))
    assert gradients["layers.a.neuron.v_threshold"].shape == network.shapes()["a"]
    assert float(gradients["layers.a.neuron.v_threshold"].abs().max()) > 0


def test_trained_thresholds_in_single_precision() -> None:
    network = network_of(lambda: LIF(surrogate=Triangle(), trainable=("threshold", "leak")), Direct(), exact=True).float()
    x = images().float()
    network.packed = False
    _, wanted = output_and_gradients(network, x, 5)
    network.packed = True
    _, found = output_and_gradients(network, x, 5)
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-4, name


@pytest.mark.parametrize("pool", [False, True], ids=["", "max pooling"])
@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=lambda e: type(e).__name__)
def test_signed_spikes(encoder: Encoder, pool: bool, how_events: None) -> None:
    network = network_of(SignedIF, encoder, pool=pool, exact=True)
    network.neurons()["a"].set_threshold((torch.arange(34.0).view(34, 1, 1) + 16) / 32)
    for count, timesteps, chunks in ((3, 9, (9, 4, 1)), (1, 1, (1,))):
        spikes = check_spikes(network, images(count), timesteps, chunks)
    spikes = check_spikes(network, images(), 9, (9,))
    assert all(set(spikes[name].unique().tolist()) == {-1, 0, 1} for name in ("b", "c"))


@pytest.mark.parametrize("make", [SignedIF, partial(GradedIF, levels=2, rectify=False)], ids=["signed", "graded"])
def test_signed_and_graded_neurons_with_gradients_stay_on_the_reference(make: Any) -> None:
    network, x = network_of(make, Direct(), pool=make is SignedIF), images()
    assert not batch.supports(network, x)
    whole, wanted = output_and_gradients(network, x, 9)
    for chunk in (4, 1):  # the state carries the gradient from piece to piece
        output, found = output_and_gradients(network, x, 9, chunk=chunk)
        torch.testing.assert_close(output, whole)
        torch.testing.assert_close(found, wanted)
    assert all(gradient.abs().max() > 0 for gradient in wanted.values())
    with torch.no_grad():
        assert batch.supports(network, x)
        torch.testing.assert_close(network(x, 9), whole)


def test_max_pooling_forward_and_backward(how_events: None) -> None:
    for encoder in (Direct(), Poisson()):
        network = network_of(lambda: LIF(leak=0.5, v_threshold=0.5, surrogate=Triangle()), encoder, pool=True, exact=True)
        check_gradients(network, images(), 9, (9, 4, 1))
        spikes = check_spikes(network, images(), 9, (4,))
        assert 0 < float(spikes["pool"].mean()) < 1


def test_a_run_beforehand_and_a_delayed_readout() -> None:
    for make in (lambda: IF(v_init=0.5), SignedIF):
        network = network_of(make, Direct(), exact=True)
        network.readout.set(delay=2, pre_run=3)
        check_spikes(network, images(), 10, (10, 4, 1))


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.clamp(torch.floor(x), -2, 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + x.abs())


@dataclass
class Adapting:
    v: Tensor
    boost: Tensor
    age: Tensor


class Bursts(Neuron):
    """Sends -2 to 3; its threshold grows with what it sends, by a trained factor. Its state is its own."""

    def __init__(self) -> None:
        super().__init__(0.5, 0.75, "subtract", 0.25, None, ("threshold", "leak"))
        self.growth = nn.Parameter(torch.tensor(0.25))

    def initial_state(self, current: Tensor) -> Any:
        return Adapting(
            torch.zeros_like(current) + self.v_init * self.v_threshold, torch.zeros_like(current), torch.zeros(1).long()
        )

    def step(self, current: Tensor, state: Any) -> Any:
        u = self.leak * state.v + current
        theta = self.v_threshold + self.growth * state.boost
        spikes = _Step.apply(u / theta)
        return spikes, Adapting(u - spikes * theta, 0.5 * state.boost + spikes.detach().abs(), state.age + 1)


class Rectified(LayerDynamics):
    """Sends numbers that are no spikes: half of what it has, where that is positive."""

    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        u = state.v + current
        sent = torch.relu(u) / 2
        return sent, NeuronState(u - sent, None)


@pytest.mark.parametrize("make", [Bursts, Rectified])
def test_a_neuron_of_the_users_own(make: Any, how_events: None) -> None:
    for encoder in (Direct(), Poisson()):
        network = network_of(make, encoder)
        gradients = check_gradients(network, images(), 7, (7, 3, 1))
        if make is Bursts:
            assert all(
                f"layers.{n}.neuron.{p}" in gradients for n in network.neurons() for p in ("growth", "v_threshold", "leak")
            )
            spikes = check_spikes(network_of(make, encoder, exact=True), images(), 4, (4, 3))
            assert spikes["a"].max() > 1


def test_a_backward_pass_uses_the_neuron_as_it_was() -> None:
    network = network_of(Bursts, Direct())
    _, wanted = output_and_gradients(network, images(), 4)
    network.zero_grad()
    output = network(images(), 4)
    for neuron in network.neurons().values():
        neuron.v_init = neuron.v_init + 1  # a buffer
    F.cross_entropy(output, torch.arange(3) % 4).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])


class Noisy(Rectified):
    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        return super().step(current + torch.rand_like(current), state)


class Counting(Rectified):
    calls = 0

    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        self.calls += 1
        return super().step(current, state)


class OverTheBatch(Rectified):
    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        return super().step(current - current.mean(), state)


class HomeostaticOverTheBatch(IF):
    """Its threshold follows the firing of the complete batch: seen a step after a spike, and in the state alone."""

    def initial_state(self, current: Tensor) -> Any:
        return torch.zeros_like(current), torch.zeros(current.shape[1:]).to(current)

    def step(self, current: Tensor, state: Any) -> Any:
        v, boost = state
        u = v + current
        spikes = (u > self.v_threshold + boost).to(u)
        return spikes, (u - spikes * self.v_threshold, boost + spikes.mean(0))

    run = LayerDynamics.run


@pytest.mark.parametrize("make", [Noisy, Counting, OverTheBatch, HomeostaticOverTheBatch])
def test_a_neuron_that_is_no_function_of_its_sample_goes_to_the_reference(make: Any) -> None:
    network, before = network_of(make, Direct()), torch.get_rng_state()
    assert not batch.supports(network, images())
    assert torch.equal(torch.get_rng_state(), before)
    assert batch.supports(network_of(Rectified, Direct()), images())


def test_a_neuron_without_a_step_is_refused() -> None:
    class Nothing(LayerDynamics):
        pass

    with pytest.raises(TypeError, match=r"Nothing defines neither step\(current, state\) nor run"):
        Nothing()


OWN_STATE = {
    "CubaLIF": partial(CubaLIF, leak=0.75, synaptic_leak=0.5, v_init=0.25),
    "ALIF": partial(ALIF, leak=0.75, adaptation=0.5, adaptation_leak=0.875, v_init=0.25),
    "PLIF": partial(PLIF, tau=2.0, v_init=0.25, v_threshold=0.125),
}
EVERY = {
    "CubaLIF": ("threshold", "leak", "synaptic_leak"),
    "ALIF": ("threshold", "leak", "adaptation", "adaptation_leak"),
    "PLIF": ("threshold", "leak"),
}


@pytest.mark.parametrize("kind", OWN_STATE)
@pytest.mark.parametrize("how", ["STDB", "STDB, trained", "ATan, to zero", "Triangle, trained"])
def test_neurons_with_a_state_of_their_own(kind: str, how: str) -> None:
    """Convolutions, pooling, a skip, several words of channels; a threshold by channel, a leak by neuron; pieces and chunks."""
    surrogate = {"STDB": STDB(beta=0.3), "Tria": Triangle(), "ATan": ATan()}[how[:4]]
    settings: dict[str, Any] = {"surrogate": surrogate, "trainable": EVERY[kind] if "trained" in how else ()}
    make = partial(OWN_STATE[kind], reset="zero" if "zero" in how else "subtract", **settings)
    network = network_of(make, Poisson() if how == "STDB" else Direct())
    neurons, shapes = network.neurons(), network.shapes()
    neurons["a"].set_threshold((torch.rand(34, 1, 1) + 0.5) * neurons["a"].v_threshold.detach())
    if kind != "PLIF":
        neurons["c"].set_factor("leak", torch.rand(shapes["c"]))
    for timesteps, chunks in ((3, (2,)), (11, (11, 4))):
        gradients = check_gradients(network, images(), timesteps, chunks)
    if "trained" in how:
        found = [name for name, g in gradients.items() if ".neuron." in name and float(g.abs().max()) > 0]
        assert {name.rpartition(".")[2] for name in found} == {n for n, _ in neurons["a"].named_parameters()}


@pytest.mark.parametrize("kind", OWN_STATE)
def test_spikes_of_neurons_with_a_state_of_their_own_in_single_precision(kind: str, how_events: None) -> None:
    network = network_of(OWN_STATE[kind], Direct(), exact=True)
    for count, timesteps, chunks in ((1, 1, (1,)), (3, 9, (9, 4, 1))):
        spikes = check_spikes(network, images(count), timesteps, chunks)
    assert all(0.01 < float(spikes[name].mean()) < 0.99 for name in ("a", "b"))


@pytest.mark.parametrize("kind", OWN_STATE)
def test_samples_of_neurons_with_a_state_of_their_own_leave(kind: str) -> None:
    network, x = network_of(OWN_STATE[kind], Direct()).eval(), images(4)
    outputs = []
    with torch.no_grad():
        for packed in (True, False):
            network.packed = packed
            leaving, last = Leaving(), torch.zeros(0)
            for step, part in enumerate(network.unroll(x, 6, chunk=1, leaving=leaving)):
                last = part[-1]
                if step == 2:
                    leaving.keep(torch.tensor([1, 3]))
            outputs.append(last)
        torch.testing.assert_close(outputs[0], network(x, 6)[[1, 3]], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)
