"""Neurons with a state of their own: traces by hand, plain autograd, other libraries, settings; ``spike`` in a user's neuron."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeprop as sp
from spikeprop.errors import ConversionError
from spikeprop.snn import (
    ALIF,
    IF,
    LIF,
    NEVER,
    PLIF,
    STDB,
    CubaLIF,
    Direct,
    Layer,
    MultiGaussian,
    Neuron,
    NeuronState,
    Sigmoid,
    SpikingNetwork,
    Synapse,
    Triangle,
    advance_since,
    spike,
)
from spikeprop.snn.dynamics import map_state
from spikeprop.snn.engine import batch
from spikeprop.snn.interop import rebuild
from tests.snn.plain_neurons import gradients, plain_output, random_network

NEW = (CubaLIF, ALIF, PLIF)


@torch.no_grad()
def trace(neuron: Neuron, currents: list[float], *names: str) -> tuple[list[float], ...]:
    """Spikes, and of the state those tensors after each step, of one neuron."""
    neuron.double()
    state: Any = neuron.initial_state(torch.zeros(1, dtype=torch.float64))
    found: list[tuple[float, ...]] = []
    for current in currents:
        sent, state = neuron.step(torch.tensor([current], dtype=torch.float64), state)
        found.append((float(sent), *(round(float(getattr(state, name)), 12) for name in names)))
    return tuple(map(list, zip(*found)))


def test_cuba_current_outlives_its_step() -> None:
    # i: .8 | .4 | .2 | 1.1;  u: .8 | .4+.4=.8 | .4+.2=.6 | .3+1.1=1.4 -> .4
    neuron = CubaLIF(leak=0.5, synaptic_leak=0.5)
    spikes, v, i = trace(neuron, [0.8, 0.0, 0.0, 1.0], "v", "i")
    assert spikes == [0, 0, 0, 1]
    assert v == pytest.approx([0.8, 0.8, 0.6, 0.4], rel=1e-6)
    assert i == pytest.approx([0.8, 0.4, 0.2, 1.1], rel=1e-6)


def test_alif_threshold_rises_with_each_spike_and_falls_back() -> None:
    # theta 1, beta 1/2, rho 1/2; a: 0 | 1 | 1/2 | 1/4 | 9/8;  thresholds 1 | 1.5 | 1.25 | 1.125
    # u: 1.25 fires, .25 | .25+1.25=1.5 is not above 1.5 | 1.5-.25=1.25 not above 1.25 | 1.25+0=1.25 above 1.125 fires, .25
    neuron = ALIF(leak=1.0, adaptation=0.5, adaptation_leak=0.5)
    spikes, v, a = trace(neuron, [1.25, 1.25, -0.25, 0.0], "v", "a")
    assert spikes == [1, 0, 0, 1]
    assert v == [0.25, 1.5, 1.25, 0.25]
    assert a == [1, 0.5, 0.25, 1.125]


def test_plif_divides_its_current_by_the_time_constant() -> None:
    # tau 2: u = (v + I)/2: .75 | .375+.9=1.275 -> .275 | .1375+.5=.6375
    spikes, v = trace(PLIF(tau=2.0), [1.5, 1.8, 1.0], "v")
    assert spikes == [0, 1, 0]
    assert v == pytest.approx([0.75, 0.275, 0.6375])
    assert trace(PLIF(tau=2.0, decay_input=False), [1.5, 1.8, 1.0])[0] == trace(LIF(leak=0.5), [1.5, 1.8, 1.0])[0]


@pytest.mark.parametrize(
    "plain", [CubaLIF(leak=0.8, synaptic_leak=0.0), ALIF(leak=0.8, adaptation=0.0), PLIF(tau=5.0, decay_input=False)], ids=repr
)
def test_without_what_is_new_they_are_lif(plain: Neuron) -> None:
    currents = torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (n.double().run(currents, n.initial_state(currents[0]))[0] for n in (plain, LIF(leak=0.8)))
    assert 0.05 < float(wanted.mean()) < 0.95
    assert torch.equal(found, wanted)


def test_gradient_of_an_alif_neuron_by_hand() -> None:
    # theta 1, leak 1, beta 1/2, rho 1/2, triangle of height 1; u - beta a: 1.2 fires | .2+1-.5=.7 | 1.2-.25=.95
    # loss o0 + 2 o1 + 4 o2;  slopes .8 .7 .95;  p2 = 4*.95 = 3.8;  g_a2 = -.5*3.8 = -1.9;  p1 = (2 - 1.9)*.7 = .07
    # g_a1 = .5*-1.9 - .5*.07 = -.985;  p0 = (1 - .985)*.8 = .012
    neuron = ALIF(leak=1.0, adaptation=0.5, adaptation_leak=0.5, surrogate=Triangle(height=1.0)).double()
    currents = torch.tensor([[1.2], [1.0], [0.0]], dtype=torch.float64, requires_grad=True)
    spikes, _ = neuron.run(currents, neuron.initial_state(currents[0]))
    assert spikes.flatten().tolist() == [1, 0, 0]
    (spikes.flatten() * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert currents.grad is not None
    assert currents.grad.flatten().tolist() == pytest.approx([3.8 + 0.07 + 0.012, 3.8 + 0.07, 3.8])


def check(seed: int, *, chunk: int | None = None) -> None:
    """A random network's spikes and gradients, on the plain reference and on the engine, are those of the plain loop."""
    network, x, timesteps = random_network(seed)
    wanted = plain_output(network, x, timesteps)
    of_plain = gradients(network, wanted)
    for packed in (False, True):
        network.packed = packed
        assert not packed or batch.supports(network, x)
        output = network(x, timesteps, chunk=chunk)
        torch.testing.assert_close(output, wanted, rtol=1e-9, atol=1e-9)
        found = gradients(network, output)
        for name, p in network.named_parameters():  # a layer that never fires has none on one side, zeros on the other
            one, other = (of.get(name, torch.zeros_like(p)) for of in (found, of_plain))
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"seed {seed}, {n}: {m}")


def test_random_networks_are_those_of_a_plain_loop() -> None:
    for seed in range(10):
        check(seed, chunk=(None, 3)[seed % 2])


@pytest.mark.slow
def test_200_random_networks_are_those_of_a_plain_loop() -> None:
    for seed in range(10, 210):
        check(seed, chunk=(None, 3, 1)[seed % 3])


def test_cuba_fires_as_snntorch_synaptic_does() -> None:
    """It resets in the same step with ``reset_delay=False``; only to zero, since it subtracts once more from what is left."""
    snntorch = pytest.importorskip("snntorch")
    theirs = snntorch.Synaptic(alpha=0.7, beta=0.8, reset_mechanism="zero", reset_delay=False)
    ours = CubaLIF(leak=0.8, synaptic_leak=0.7, reset="zero")
    currents = torch.randn(30, 4, 8, generator=torch.Generator().manual_seed(2)) * 0.5
    syn, mem, found = torch.zeros(4, 8), torch.zeros(4, 8), []
    for current in currents:
        one, syn, mem = theirs(current, syn, mem)
        found.append(one)
    spikes, _ = ours.run(currents, ours.initial_state(currents[0]))
    assert 0.05 < float(spikes.mean()) < 0.95
    assert torch.equal(spikes, torch.stack(found))


def test_alif_and_cuba_fire_as_norse_lsnn_does() -> None:
    """Norse's current acts a step later, and its adaptation decays before it is first compared: beta is rho times theirs."""
    lsnn = pytest.importorskip("norse.torch.functional.lsnn")
    like: Any = {"dtype": torch.float64}
    currents = torch.randn(30, 4, 8, generator=torch.Generator().manual_seed(3), **like) * 4
    for syn, rho, beta in ((1.0, 0.9, 0.5), (0.3, 0.9, 0.0)):
        settings = {"tau_syn_inv": syn, "tau_mem_inv": 0.2, "tau_adapt_inv": 1 - rho, "beta": beta}
        p = lsnn.LSNNParameters(**{k: torch.tensor(v, **like) for k, v in settings.items()}, v_th=torch.tensor(1.0, **like))
        zero = torch.zeros(4, 8, **like)
        state, found = lsnn.LSNNFeedForwardState(v=zero, i=zero, b=zero + 1), []
        for current in [*currents, zero]:
            one, state = lsnn.lsnn_feed_forward_step(current, state, p, dt=1.0)
            found.append(one)
        ours = (
            ALIF(leak=0.8, adaptation=rho * beta, adaptation_leak=rho, reset="zero")
            if beta
            else CubaLIF(leak=0.8, synaptic_leak=1 - syn, reset="zero")
        ).double()
        for name in ours.factors:
            ours.set_factor(name, torch.tensor(0.8 if name == "leak" else rho if beta else 1 - syn, **like))
        spikes, _ = ours.run(currents * 0.2, ours.initial_state(zero))
        assert 0.05 < float(spikes.mean()) < 0.95
        assert torch.equal(spikes, torch.stack(found[1:]))


# settings ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CubaLIF(synaptic_leak=1.2), "synaptic_leak is 1.2; it is a factor on the state each step"),
        (lambda: CubaLIF(leak=-0.1), "leak is -0.1"),
        (lambda: ALIF(adaptation=-1.0), "adaptation is -1.0; it must be finite and cannot be negative"),
        (lambda: ALIF(adaptation=math.inf), "adaptation is inf"),
        (lambda: ALIF(adaptation_leak=math.nan), "adaptation_leak is nan"),
        (lambda: PLIF(tau=1.0), "tau is 1.0; a time constant is finite and above one step"),
        (lambda: PLIF(trainable=("tau",)), "trainable holds 'tau'; PLIF can train threshold, leak"),  # type: ignore[arg-type]
        (lambda: CubaLIF(trainable=("adaptation",)), "CubaLIF can train threshold, leak, synaptic_leak"),  # type: ignore[arg-type]
        (
            lambda: CubaLIF().set_factor("rho", torch.ones(1)),
            "CubaLIF has no factor 'rho'; it has leak, synaptic_leak",
        ),
        (lambda: ALIF().set_factor("leak", torch.tensor([0.5, 1.5])), r"leak reaches from 0.5 to 1.5"),
        (lambda: PLIF().set_factor("leak", torch.ones(1)), "PLIF has no factor 'leak'; it has none"),
    ],
)
def test_wrong_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_trained_settings_are_parameters_with_limits_and_are_shown() -> None:
    every = {
        CubaLIF: ("threshold", "leak", "synaptic_leak"),
        ALIF: ("threshold", "leak", "adaptation", "adaptation_leak"),
        PLIF: ("threshold", "leak"),
    }
    for kind, names in every.items():
        neuron, plain = kind(trainable=names), kind(trainable=())
        assert not list(plain.parameters())
        assert set(plain.state_dict()) == set(neuron.state_dict())
        held = {"threshold": "v_threshold", "leak": "w" if kind is PLIF else "leak"}
        assert {n for n, _ in neuron.named_parameters()} == {held.get(n, n) for n in names}
        assert "trained: v_threshold" in repr(neuron)
        for end in (-3.0, 3.0):
            with torch.no_grad():
                for p in neuron.parameters():
                    p.fill_(end)
            neuron.project_parameters()
            assert all(0 < float(getattr(neuron, f).detach()) <= 1 for f in neuron.factors)
            assert 0 < float(neuron.leak.detach()) < 1 or kind is not PLIF
            assert float(neuron.v_threshold.detach()) > 0
    assert "tau=2, decay_input=True" in repr(PLIF())
    assert "leak=0.99, synaptic_leak=0.8" in repr(CubaLIF())


def test_new_neurons_are_refused_by_name_where_they_do_not_fit() -> None:
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    images = torch.rand(4, 1, 8, 8)
    for kind in NEW:
        with pytest.raises(ConversionError, match=f"neuron is {kind.__name__}, whose rate is not that of a ReLU"):
            sp.convert(ann, images, kind(), sp.MaxActivation())
        network = sp.convert(ann, images, IF(), sp.MaxActivation())
        name = next(iter(network.neurons()))
        network.layers[name].neuron = kind()  # type: ignore[assignment]
        with pytest.raises(ConversionError, match=f"neuron is {kind.__name__}"):
            sp.MaxActivation().calibrate(network, images)
        with pytest.raises(ConversionError, match=f"layer '{name}' has neurons {kind.__name__}"):
            rebuild(network, "snntorch")


# spike ------------------------------------------------------------------------------------------------------------------------


def test_spike_and_its_derivatives_at_potential_and_threshold() -> None:
    u = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    out = spike(u, theta, Triangle(height=1.0))
    assert out.tolist() == [0, 0, 1]
    (out * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    slopes = [0.25 / 2, 1.0 / 2, 0.5 / 2]  # 1 - |u/2 - 1|, over theta
    assert u.grad is not None
    assert theta.grad is not None
    assert u.grad.tolist() == pytest.approx([slopes[0], 2 * slopes[1], 4 * slopes[2]])
    assert float(theta.grad) == pytest.approx(-(slopes[0] * 0.25 + 2 * slopes[1] * 1 + 4 * slopes[2] * 1.5))
    assert spike(u.detach(), 2.0, Triangle()).tolist() == [0, 0, 1]


def test_spike_counts_steps_since_the_last_one_up_to_now() -> None:
    u, since = torch.tensor([2.0, 0.5, 0.5], requires_grad=True), torch.tensor([NEVER, 2.0, NEVER])
    spike(u, 1.0, STDB(alpha=0.5, beta=0.1), since).sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == pytest.approx([0.5, 0.5 * math.exp(-0.3), 0.0])
    with pytest.raises(ValueError, match=r"STDB.* reads the steps since a neuron's last spike, and the neuron passes none"):
        spike(u, 1.0, STDB())
    with torch.no_grad():
        assert spike(u, 1.0, STDB()).tolist() == [1, 0, 0]


def test_spike_works_under_function_transforms() -> None:
    def loss(u: Tensor) -> Tensor:
        return spike(u, 1.0, Sigmoid())

    u = torch.tensor([[0.5], [1.25]])
    found = torch.func.vmap(torch.func.jacrev(loss))(u)
    torch.testing.assert_close(found.flatten(), Sigmoid()(u - 1, u).flatten())


class Floored(Neuron):
    """A user's own neuron: its potential does not fall below minus the threshold. Ten lines of plain torch."""

    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        u = torch.maximum(self.leak * state.v + current, -self.v_threshold)
        since = self.tracked(state.since, u)
        spikes = spike(u, self.v_threshold, self.surrogate, since)
        return spikes, NeuronState(self.after_reset(u, spikes), None if since is None else advance_since(since, spikes))


@pytest.mark.parametrize("surrogate", [STDB(beta=0.2), Triangle()], ids=lambda s: type(s).__name__)
def test_a_neuron_of_ones_own_trains_on_the_engine_as_on_the_reference(surrogate: Any) -> None:
    torch.manual_seed(0)
    found = []
    for packed in (True, False):
        torch.manual_seed(1)
        neuron = Floored(1.0, 0.9, "subtract", 0.0, surrogate, ("threshold",))
        layers = {
            "a": Layer([("input", Synapse([nn.Linear(6, 40)]))], neuron),
            "out": Layer([("a", Synapse([nn.Linear(40, 2)]))], None),
        }
        network = SpikingNetwork(layers, Direct(), (6,)).double()
        network.packed = packed
        x = torch.randn(64, 6, dtype=torch.float64)
        label = (x[:, 0] * x[:, 1] > 0).long()
        assert batch.supports(network, x)
        adam, losses = torch.optim.Adam(network.parameters(), lr=0.05), []
        for _ in range(15):
            loss = nn.functional.cross_entropy(network(x * 2, 4), label)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(float(loss.detach()))
        found.append(losses)
    assert found[0][-1] < 0.8 * found[0][0]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


# states -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NEW)
def test_a_run_cut_in_chunks_is_the_same_run(kind: Any) -> None:
    neuron = kind(surrogate=STDB()).double()
    currents = torch.randn(12, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3
    whole, last = neuron.run(currents, neuron.initial_state(currents[0]))
    state, parts = neuron.initial_state(currents[0]), []
    for part in currents.split(5):
        spikes, state = neuron.run(part, state)
        parts.append(spikes)
    assert 0.05 < float(whole.detach().mean()) < 0.95
    assert torch.equal(whole, torch.cat(parts))
    ends: list[Tensor] = []
    map_state(lambda t: ends.append(t) or t, (last, state))
    assert all(torch.equal(one, other) for one, other in zip(ends[: len(ends) // 2], ends[len(ends) // 2 :]))


def test_surrogates_integrate_to_what_their_sources_say() -> None:
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    for surrogate, area, peak in ((Sigmoid(slope=4.0), 1.0, 1.0), (MultiGaussian(), 0.5 * (1.15 - 0.3), None)):
        values = surrogate(x, x)
        assert float(torch.trapezoid(values, x)) == pytest.approx(area, rel=1e-6)
        assert peak is None or float(values.max()) == pytest.approx(peak)
    zero, normal = torch.zeros(1, dtype=torch.float64), torch.distributions.Normal
    at_zero = normal(0.0, 0.5).log_prob(zero).exp() * 1.15 - 0.3 * normal(0.5, 3.0).log_prob(zero).exp()
    assert float(MultiGaussian()(zero, zero)) == pytest.approx(0.5 * float(at_zero), rel=1e-6)


class NoConstructor(Neuron):
    def __init__(self) -> None:
        self.beta = 0.5

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        return current, state


class EarlyWeight(NoConstructor):
    def __init__(self) -> None:
        self.w = nn.Parameter(torch.ones(1))


class SpikesAlone(Neuron):
    def __init__(self) -> None:
        super().__init__(1.0, 0.9, "subtract", 0.0, STDB())

    def step(self, current: Tensor, state: Any) -> Any:
        return (current > 1).to(current)


@pytest.mark.parametrize("kind", [NoConstructor, EarlyWeight])
def test_a_neuron_without_its_base_constructor_is_named(kind: type[Neuron]) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__}.__init__ .* super\(\).__init__\(...\)"):
        kind()  # type: ignore[call-arg]


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_that_returns_spikes_alone_is_named(packed: bool) -> None:
    """Of a batch of two, too, whose rows could be taken for spikes and a state."""
    hidden = Layer([("input", Synapse([nn.Linear(3, 4)]))], SpikesAlone())
    network = SpikingNetwork({"hidden": hidden, "out": Layer([("hidden", Synapse([nn.Linear(4, 2)]))], None)}, Direct(), (3,))
    network.packed = packed
    for batch_size in (2, 5):
        with pytest.raises(TypeError, match=r"SpikesAlone.step returned a Tensor; it returns \(spikes, state\)"):
            network(torch.rand(batch_size, 3), 2)


def test_signatures_of_neurons_are_those_of_their_constructors() -> None:
    assert list(inspect.signature(LIF).parameters) == ["v_threshold", "leak", "reset", "v_init", "surrogate", "trainable"]
    assert "adaptation" in inspect.signature(ALIF).parameters
