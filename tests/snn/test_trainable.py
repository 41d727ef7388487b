"""Trained thresholds and leaks: gradients by hand, against autograd and against finite differences; limits, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spikeprop.snn import IF, LIF, STDB, ATan, Direct, Layer, Neuron, SpikingNetwork, Surrogate, Synapse, Triangle


def grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def test_gradients_by_hand() -> None:
    # theta 1, leak 1/2, triangle of height 1: derivative 1 - |u/theta - 1|
    # u: .8 | .4+.9=1.3 fires, v=.3 | .15+.5=.65;  slopes .8 .7 .65;  loss = o0 + 2 o1 + 4 o2
    neuron = LIF(v_threshold=1.0, leak=0.5, surrogate=Triangle(height=1.0), trainable=("threshold", "leak")).double()
    currents = torch.tensor([[0.8], [0.9], [0.5]], dtype=torch.float64, requires_grad=True)
    spikes, _ = neuron.run(currents, neuron.initial_state(currents[0]))
    assert spikes.flatten().tolist() == [0, 1, 0]
    (spikes.flatten() * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    # g_u2 = 4*.65 = 2.6;  g_v1 = 1.3, g_u1 = 2*.7 + 1.3 = 2.7;  g_v0 = 1.35, g_u0 = .8 + 1.35 = 2.15
    assert grad(currents).flatten().tolist() == pytest.approx([2.15, 2.7, 2.6])
    # leak: g_u1*v0 + g_u2*v1 = 2.7*.8 + 2.6*.3
    assert float(grad(neuron.leak)) == pytest.approx(2.7 * 0.8 + 2.6 * 0.3)
    # threshold: -(.8*.8 + 2*.7*1.3 + 4*.65*.65) through the spikes, -g_v1*1 through the one reset
    assert float(grad(neuron.v_threshold)) == pytest.approx(-(0.64 + 1.82 + 1.69) - 1.3)


class _Spike(torch.autograd.Function):
    """Step forward, surrogate backward: the textbook way, for autograd to differentiate the rest."""

    @staticmethod
    def forward(ctx, x: Tensor, since: Tensor, surrogate: Surrogate) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(surrogate(x, since))
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
        return grads[0] * ctx.saved_tensors[0], None, None


def textbook(neuron: Neuron, currents: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and last potential by plain autograd; the reset's spike is detached."""
    theta, leak, v = neuron.v_threshold, neuron.leak, neuron.initial_state(currents[0]).v
    since, out = torch.full_like(currents[0], torch.inf), []
    for current in currents:
        u = leak * v + current
        since = torch.where(u > theta, 0.0, since + 1)
        spikes = _Spike.apply(u / theta - 1, since, neuron.surrogate)
        fixed = spikes.detach()
        v = u - theta * fixed if neuron.reset == "subtract" else u * (1 - fixed)
        out.append(spikes)
    return torch.stack(out), v


@pytest.mark.parametrize("shape", [(), (3, 1, 1)], ids=["layer", "channel"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("surrogate", [Triangle(), STDB(), ATan()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("trainable", [("threshold", "leak"), ("threshold",), ("leak",)], ids="+".join)
def test_gradients_are_those_of_autograd(shape: tuple[int, ...], reset, surrogate: Surrogate, trainable) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    neuron = LIF(leak=0.9, reset=reset, v_init=0.5, surrogate=surrogate, trainable=trainable).double()
    neuron.set_threshold(0.5 + torch.rand(shape))
    currents = torch.randn(7, 2, 3, 4, 4, dtype=torch.float64)
    weight, last = torch.randn_like(currents), torch.randn_like(currents[0])
    found = []
    for run in (lambda c: _run_in_chunks(neuron, c), lambda c: textbook(neuron, c)):
        neuron.zero_grad()
        given = currents.clone().requires_grad_()
        spikes, v = run(given)
        assert 0.05 < float(spikes.detach().mean()) < 0.95
        ((spikes * weight).sum() + (v * last).sum()).backward()
        found.append([grad(given), *(grad(p) for p in neuron.parameters())])
    assert len(found[0]) == 1 + len(trainable)
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)


def _run_in_chunks(neuron: Neuron, currents: Tensor) -> tuple[Tensor, Tensor]:
    state, out = neuron.initial_state(currents[0]), []
    for part in currents.split(3):
        spikes, state = neuron.run(part, state)
        out.append(spikes)
    return torch.cat(out), state.v


def small_network(**settings) -> SpikingNetwork:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    layers = {
        "a": Layer([("input", Synapse([nn.Conv2d(1, 3, 3, padding=1, bias=False)]))], LIF(**settings)),
        "b": Layer([("a", Synapse([nn.Flatten(), nn.Linear(48, 6, bias=False)]))], LIF(**settings)),
        "out": Layer([("b", Synapse([nn.Linear(6, 3, bias=False)]))], None),
    }
    network = SpikingNetwork(layers, Direct(), (1, 4, 4)).double()
    for neuron in network.neurons().values():
        neuron.set_threshold(neuron.v_threshold * 0.3)
    return network


def smooth_loss(network: SpikingNetwork, x: Tensor, steps: int, integral: Callable[[Tensor], Tensor], base: list) -> Tensor:  # type: ignore[type-arg]
    """The network's loss with each spike o replaced by o* + S(x) - S(x*), starred at the base point, S' the surrogate.

    It equals the spiking network at the base point and is smooth around it; resets keep the base point's spikes.
    """
    first, calls = not base, iter(list(base))
    v: dict[str, Tensor] = {}
    total = torch.zeros(len(x), 3, dtype=torch.float64)
    for _ in range(steps):
        value = x
        for name, layer in network.named_layers():
            current = layer.synapses[0](value.unsqueeze(0))[0]
            if not isinstance(layer.neuron, Neuron):
                total = total + current
                continue
            theta, leak = layer.neuron.v_threshold, layer.neuron.leak
            u = leak * v.get(name, torch.zeros_like(current)) + current
            above = u / theta - 1
            if first:
                base.append(((above > 0).double().detach(), integral(above).detach()))
            spikes, at_base = base[-1] if first else next(calls)
            v[name] = u - theta * spikes
            value = spikes + integral(above) - at_base
    return torch.nn.functional.cross_entropy(total, torch.arange(len(x)) % 3)


@pytest.mark.parametrize("steps", [1, 4])
def test_gradients_are_finite_differences_of_the_smoothed_network(steps: int) -> None:
    def integral(x: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * 2.0 * x) / math.pi

    network = small_network(leak=0.9, surrogate=ATan(alpha=2.0), trainable=("threshold", "leak"))
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    scores = network(x, steps)
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(5) % 3)
    loss.backward()
    base: list = []  # type: ignore[type-arg]
    with torch.no_grad():
        assert float(smooth_loss(network, x, steps, integral, base)) == pytest.approx(float(loss.detach()))
        assert 0.05 < torch.cat([spikes.flatten() for spikes, _ in base]).mean() < 0.95
        for name, p in network.named_parameters():
            for i in range(0, p.numel(), max(1, p.numel() // 5)):
                entry, nudge, ends = p.view(-1)[i], 1e-6, []
                for sign in (1, -1):
                    entry += sign * nudge
                    ends.append(float(smooth_loss(network, x, steps, integral, base)))
                    entry -= sign * nudge
                slope = (ends[0] - ends[1]) / (2 * nudge)
                assert float(grad(p).view(-1)[i]) == pytest.approx(slope, abs=1e-8, rel=1e-5), f"{name}[{i}]"


def test_without_training_they_are_buffers_and_with_it_parameters() -> None:
    plain, trained = LIF(leak=0.9), LIF(leak=0.9, trainable=("threshold", "leak"))
    assert list(plain.parameters()) == []
    assert set(plain.state_dict()) == set(trained.state_dict()) >= {"v_threshold", "leak"}
    assert {n for n, _ in trained.named_parameters()} == {"v_threshold", "leak"}
    assert {n for n, _ in IF(trainable=("threshold",)).named_parameters()} == {"v_threshold"}
    assert "trained: v_threshold, leak" in repr(trained)
    assert "trained" not in repr(plain)


@pytest.mark.parametrize("trainable", [(), ("threshold",)], ids=["buffer", "parameter"])
def test_set_threshold(trainable) -> None:  # type: ignore[no-untyped-def]
    neuron = LIF(trainable=trainable).double()
    theta = torch.rand(3, 1, 1, requires_grad=True) + 0.5
    neuron.set_threshold(theta)
    assert neuron.v_threshold.shape == (3, 1, 1)
    assert neuron.v_threshold.dtype == torch.float64
    assert isinstance(neuron.v_threshold, nn.Parameter) == bool(trainable)
    assert neuron.v_threshold.grad_fn is None
    assert torch.equal(neuron.v_threshold.detach(), theta.detach().double())
    with pytest.raises(ValueError, match="smallest of these thresholds is -1"):
        neuron.set_threshold(torch.tensor([1.0, -1.0]))


def test_limits() -> None:
    neuron = LIF(trainable=("threshold", "leak"))
    with torch.no_grad():
        neuron.v_threshold.fill_(-0.3)
        neuron.leak.fill_(1.2)
    neuron.project_parameters()
    assert float(neuron.v_threshold.detach()) == pytest.approx(1e-4)
    assert float(neuron.leak.detach()) == 1
    with torch.no_grad():
        neuron.leak.fill_(-0.1)
    neuron.project_parameters()
    assert float(neuron.leak.detach()) == pytest.approx(1e-4)
    calibrated = LIF(v_threshold=1e-6, leak=0.0)  # what is not trained is left as it is
    calibrated.project_parameters()
    assert float(calibrated.v_threshold) == pytest.approx(1e-6)
    assert float(calibrated.leak) == 0


def test_what_cannot_be_trained_is_named() -> None:
    with pytest.raises(ValueError, match="use LIF, with leak=1"):
        IF(trainable=("leak",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trainable holds 'weights'"):
        LIF(trainable=("weights",))  # type: ignore[arg-type]


def test_a_simulation_without_gradients_is_the_same() -> None:
    trained, plain = small_network(leak=0.9, trainable=("threshold", "leak")), small_network(leak=0.9)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        silent = trained(x, 6)
        assert torch.equal(silent, plain(x, 6))
    scores = trained(x, 6)
    assert not silent.requires_grad
    assert scores.requires_grad
    assert torch.equal(silent, scores.detach())
