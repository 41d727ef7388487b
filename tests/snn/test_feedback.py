"""Feedback: what a source sent one step before, on the plain reference, against a loop over time written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import IF, LIF, Direct, Frames, Poisson, SpikingNetwork
from spikeprop.snn import INPUT, STDB, DifferentialIF, FastSigmoid, Integrator, Layer, Surrogate, Synapse
from spikeprop.snn.leaving import Leaving

STEPS, BATCH = 9, 4


def linear(inputs: int, outputs: int) -> Synapse:
    return Synapse([nn.Linear(inputs, outputs)])


def looped(surrogate: Surrogate, last: Any = None) -> SpikingNetwork:
    """Feedback of a layer itself, of a later one, and of an earlier one; the last two read nothing in a loop."""
    torch.manual_seed(0)
    layers = {
        "a": Layer([(INPUT, linear(5, 8))], LIF(v_threshold=0.3, leak=0.9, surrogate=surrogate), feedback=[("b", linear(6, 8))]),
        "b": Layer(
            [("a", linear(8, 6)), (INPUT, linear(5, 6))],
            LIF(v_threshold=0.2, leak=0.8, reset="zero", surrogate=surrogate),
            feedback=[("b", linear(6, 6)), ("a", linear(8, 6))],
        ),
        "c": Layer([("b", linear(6, 7))], IF(v_threshold=0.25, surrogate=surrogate), feedback=[("a", linear(8, 7))]),
        "out": Layer([("c", linear(7, 3))], last, feedback=[("b", linear(6, 3))]),
    }
    return SpikingNetwork(layers, Frames(), (5,)).double()


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: float, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return (u > theta).to(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.saved_tensors[0], None, None


def by_hand(network: SpikingNetwork, x_TB: Tensor, surrogate: Surrogate) -> Tensor:
    """The last layer's currents (T, B, K), one step after another."""
    sizes = {"a": 8, "b": 6, "c": 7}
    v: dict[str, Tensor] = {name: x_TB.new_zeros(BATCH, n) for name, n in sizes.items()}
    since = {name: torch.full_like(v[name], torch.inf) for name in sizes}
    before, found = {name: x_TB.new_zeros(BATCH, n) for name, n in sizes.items()}, []
    for x in x_TB:
        now = {INPUT: x}
        for name, layer in network.named_layers():
            sources = [now[s] for s in layer.sources] + [before[s] for s in layer.feedback_sources]
            current = torch.stack([synapse.ops[0](s) for synapse, s in zip(layer.synapses, sources)]).sum(0)  # type: ignore
            if layer.reads_out:
                found.append(current)
                break
            neuron: Any = layer.neuron
            theta = float(neuron.v_threshold)
            u = float(neuron.leak) * v[name] + current
            fired = u.detach() > theta
            since[name] = torch.where(fired, 0.0, since[name] + 1)
            slope = surrogate(u.detach() / theta - 1, torch.where(since[name].isinf(), 1e9, since[name])) / theta
            now[name] = Spike.apply(u, theta, slope)  # type: ignore
            v[name] = u * ~fired if neuron.reset == "zero" else u - theta * fired
        before = {name: now[name] for name in sizes}
    return torch.stack(found)


@pytest.mark.parametrize("surrogate", [FastSigmoid(), STDB(alpha=0.5, beta=0.3)], ids=lambda s: type(s).__name__)
def test_feedback_equals_a_loop_over_time(surrogate: Surrogate) -> None:
    network = looped(surrogate)
    x_TB, weight = torch.rand(STEPS, BATCH, 5, dtype=torch.float64), torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    wanted = by_hand(network, x_TB, surrogate)
    grads = torch.autograd.grad((wanted * weight).sum(), list(network.parameters()))
    assert float(sum(g.abs().sum() for g in grads)) > 1
    for chunk in (None, 1, 4):
        values = network.over_time(x_TB, chunk=chunk)
        torch.testing.assert_close(values, wanted, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad((values * weight).sum(), list(network.parameters()))
        for ours, theirs in zip(found, grads):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network(x_TB), wanted.sum(0), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_feedback_in_streams_and_of_samples_that_stay() -> None:
    network, x_TB = looped(STDB(), Integrator(leak=0.7)).eval(), torch.rand(STEPS, BATCH, 5, dtype=torch.float64)
    network.read = "max"
    wanted = torch.cat(list(network.unroll(x_TB)))
    state = network.init_state()
    for x_B, output in zip(x_TB, wanted):
        found, state = network.step(x_B, state)
        torch.testing.assert_close(found, output, rtol=1e-12, atol=1e-12)
    leaving, rows = Leaving(), torch.tensor([0, 3])
    outputs = network.unroll(x_TB, chunk=3, leaving=leaving)
    next(outputs)
    leaving.keep(rows)
    torch.testing.assert_close(torch.cat(list(outputs)), wanted[3:, rows], rtol=1e-12, atol=1e-12)


def test_gradients_end_where_a_state_is_detached() -> None:
    network, x_TB = looped(FastSigmoid()), torch.rand(STEPS, BATCH, 5, dtype=torch.float64)
    values, state = network.run(x_TB[:4].requires_grad_(), network.init_state())
    first = x_TB[:4].detach().requires_grad_()
    values, state = network.run(first, network.init_state())
    attached, _ = network.run(x_TB[4:].detach(), state)
    assert float(torch.autograd.grad(attached.sum(), first, retain_graph=True)[0].abs().sum()) > 0
    cut, _ = network.run(x_TB[4:].detach(), network.detached(state))
    assert torch.equal(cut, attached)
    assert torch.autograd.grad(cut.sum() + 0 * values.sum(), first)[0].abs().sum() == 0


@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=lambda e: type(e).__name__)
def test_feedback_with_still_samples(encoder: Any) -> None:
    network, x = looped(STDB()).eval(), torch.rand(BATCH, 5, dtype=torch.float64)
    network.encoder = encoder
    torch.manual_seed(1)
    wanted = by_hand(network, network.encoded(x, STEPS), STDB()).sum(0)
    torch.manual_seed(1)
    torch.testing.assert_close(network(x, STEPS, chunk=2), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("forward", "neuron", "feedback", "says"),
    [
        ([(INPUT, 5)], IF(), ("out", 3, 4), "feedback of 'out', which is no layer that sends spikes"),
        ([(INPUT, 5)], IF(), ("a", 4, 5), r"current of \(4,\), and its feedback of 'a' one of \(5,\); give nn.Linear\(4, 4\)"),
        ([(INPUT, 5)], IF(), ("a", 3, 4), r"cannot read feedback of 'a' \(4,\).*; give nn.Linear\(4, 4\)"),
        ([], IF(), ("a", 4, 4), "reads feedback alone"),
        ([(INPUT, 5)], DifferentialIF(levels=4), ("a", 4, 4), "send corrections"),
    ],
)
def test_feedback_that_does_not_fit_is_named(forward: Any, neuron: Any, feedback: tuple[str, int, int], says: str) -> None:
    source, inputs, outputs = feedback
    layers = {
        "a": Layer([(s, linear(n, 4)) for s, n in forward], neuron, feedback=[(source, linear(inputs, outputs))]),
        "out": Layer([("a", linear(4, 3))], None),
    }
    with pytest.raises(ValueError, match=says):
        SpikingNetwork(layers, Frames(), (5,)).shapes()
