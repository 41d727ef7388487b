"""The backward pass: closed form of STDB, parity with a plain autograd implementation, every surrogate's shape."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spikeprop.snn import IF, LIF, STDB, ATan, FastSigmoid, Surrogate, Triangle

SURROGATES = [STDB(), STDB(alpha=0.7, beta=0.2), Triangle(), FastSigmoid(), ATan()]


def test_stdb_gradient_of_one_neuron_is_its_closed_form() -> None:
    """IF, theta = 2, current 1.5 at each step. u: 1.5, 3, 2.5, 2, 3.5 -> spikes at t = 1, 2, 4 (counting from 0).

    Steps since the last spike: never, 0, 0, 1, 0. With loss = sum of w[t]*o[t] and no gradient
    through the reset, dL/dI[s] = sum over t >= s of w[t] * alpha*exp(-beta*since[t]) / theta.
    """
    theta, alpha, beta = 2.0, 0.3, 0.01
    neuron = IF(v_threshold=theta, surrogate=STDB(alpha=alpha, beta=beta)).double()
    current = torch.full((5, 1), 1.5, dtype=torch.float64, requires_grad=True)
    spikes, _ = neuron.run(current, neuron.initial_state(current[0]))
    weights = torch.tensor([[1.0], [2.0], [3.0], [5.0], [7.0]], dtype=torch.float64)
    (spikes * weights).sum().backward()
    assert spikes.flatten().tolist() == [0, 1, 1, 0, 1]
    slopes = [w * alpha * math.exp(-beta * since) / theta for w, since in zip([1, 2, 3, 5, 7], [math.inf, 0, 0, 1, 0])]
    expected = torch.tensor([sum(slopes[s:]) for s in range(5)], dtype=torch.float64)
    assert current.grad is not None
    torch.testing.assert_close(current.grad.flatten(), expected, rtol=1e-12, atol=0)


class _PlainSpike(torch.autograd.Function):
    """Heaviside forward; a given slope backward: the textbook way, one node a step."""

    @staticmethod
    def forward(ctx, u, theta, slope):
        ctx.save_for_backward(slope)
        return (u > theta).to(u)

    @staticmethod
    def backward(ctx, *grads):
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None


def plain_run(currents: Tensor, theta: float, leak: float, surrogate: Surrogate, to_zero: bool) -> Tensor:
    """The neuron written step by step with autograd doing the rest."""
    v, last, spikes = torch.zeros_like(currents[0]), torch.full_like(currents[0], -math.inf), []
    for t, current in enumerate(currents):
        u = leak * v + current
        last = torch.where(u.detach() > theta, float(t), last)
        slope = surrogate((u / theta - 1).detach(), t - last) / theta
        spike = _PlainSpike.apply(u, theta, slope)
        assert isinstance(spike, Tensor)
        v = u * (1 - spike.detach()) if to_zero else u - theta * spike.detach()
        spikes.append(spike)
    return torch.stack(spikes)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("leak", [1.0, 0.8])
def test_kernel_agrees_with_plain_autograd(surrogate: Surrogate, reset: str, leak: float) -> None:
    rng = torch.Generator().manual_seed(3)
    currents = torch.randn(20, 4, 6, generator=rng, dtype=torch.float64) * 0.8 + 0.2
    weights = torch.randn(20, 4, 6, generator=rng, dtype=torch.float64)
    ours, plain = (currents.clone().requires_grad_() for _ in range(2))
    neuron = LIF(v_threshold=0.9, leak=leak, reset=reset, surrogate=surrogate).double()  # type: ignore[arg-type]
    spikes, _ = neuron.run(ours, neuron.initial_state(ours[0]))
    expected = plain_run(plain, float(neuron.v_threshold), float(neuron.leak), surrogate, reset == "zero")
    assert torch.equal(spikes, expected)
    assert 0.1 < spikes.mean() < 0.9
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
def test_gradients_flow_through_chunks(surrogate: Surrogate) -> None:
    """The state carries gradients (and spike times) from one chunk to the next."""
    currents = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.3
    grads = []
    for size in (9, 2):
        x = currents.clone().requires_grad_()
        neuron = LIF(leak=0.9, surrogate=surrogate).double()
        state, out = neuron.initial_state(x[0]), []
        for part in x.split(size):
            spikes, state = neuron.run(part, state)
            out.append(spikes)
        (torch.cat(out) * torch.arange(1.0, 10).view(9, 1, 1)).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=0)


def test_values_of_the_surrogates() -> None:
    x, since = torch.tensor([-1.0, 0.0, 0.5, 2.0]), torch.tensor([0.0, 10.0, 100.0, math.inf])
    assert STDB(alpha=0.3, beta=0.01)(x, since).tolist() == pytest.approx([0.3, 0.3 * math.exp(-0.1), 0.3 * math.exp(-1), 0.0])
    assert STDB(alpha=0.3, beta=0)(x, since).tolist() == pytest.approx([0.3, 0.3, 0.3, 0.0])
    torch.testing.assert_close(Triangle()(x, since), torch.tensor([0.0, 0.3, 0.15, 0.0]))
    torch.testing.assert_close(FastSigmoid(slope=2.0)(x, since), torch.tensor([1 / 9, 1.0, 1 / 4, 1 / 25]))
    torch.testing.assert_close(ATan(alpha=2.0)(x, since), 1 / (1 + (math.pi * x) ** 2))


def test_a_surrogate_ignores_what_it_does_not_need() -> None:
    """STDB keeps no potentials, the others no spike times: that is what the engine's memory rests on."""
    assert STDB.needs_spike_times
    assert not STDB.needs_potential
    assert all(s.needs_potential and not s.needs_spike_times for s in SURROGATES[2:])
