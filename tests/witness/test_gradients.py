"""Gradients of the packed engine against the plain reference and against torch's autograd through a simulation written here.

``through_autograd`` is a textbook loop over steps: integrate, fire with a surrogate's derivative, reset. It knows no kernels,
chunks or packed spikes. What the engine is not made for goes by way of the reference, or is refused; it is never another number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from spikeprop import IF, LIF, STDB, Direct, MaxActivation, Poisson, SpikingNetwork, Triangle, convert
from spikeprop.snn import ATan, FastSigmoid, Layer, Synapse

STEPS = 11
BEFORE = torch.inf  # steps since the last spike before the first step
Gradients = dict[str, Tensor]


class _Fire(torch.autograd.Function):
    """1 where u > theta; backward the derivative that is given."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return (u > theta).to(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        return grads[0] * ctx.saved_tensors[0], None, None


def slope_of(surrogate: Any, u: Tensor, theta: Tensor, since: Tensor) -> Tensor:
    """do/du by the formulas of the papers, at potential u, ``since`` steps after the last spike up to this step."""
    x = u / theta - 1
    if isinstance(surrogate, STDB):
        made = surrogate.alpha * torch.exp(-surrogate.beta * since)
    elif isinstance(surrogate, Triangle):
        made = surrogate.height * (1 - x.abs()).clamp(min=0)
    elif isinstance(surrogate, FastSigmoid):
        made = (1 + surrogate.slope * x.abs()) ** -2
    else:
        made = surrogate.alpha / 2 / (1 + (torch.pi / 2 * surrogate.alpha * x) ** 2)
    return (made / theta).detach()


def through_autograd(network: SpikingNetwork, x: Tensor, steps: int) -> Tensor:
    """The output of a network without dropout, with a graph that torch differentiates."""
    inputs = network.encoded(x, steps)
    v: dict[str, Tensor] = {}
    since: dict[str, Tensor] = {}
    output: Any = 0.0
    for t in range(steps):
        values = {"input": inputs[min(t, len(inputs) - 1)]}
        for name, layer in network.layers.items():
            layer: Any
            current: Any = 0.0
            for source, synapse in zip(layer.sources, layer.synapses):
                value = values[source]
                for operation in synapse.ops:
                    value = operation(value)
                current = current + value
            if layer.neuron is None:
                output = output + current
                break
            neuron = layer.neuron
            theta = neuron.v_threshold
            before = v.get(name, torch.zeros_like(current) + neuron.v_init * theta)
            u = neuron.leak * before + current
            fired = (u > theta).detach()
            last = since.get(name, torch.full_like(u, BEFORE).detach())
            since[name] = torch.where(fired, torch.zeros_like(last), last + 1)
            spikes = _Fire.apply(u, theta, slope_of(neuron.surrogate, u.detach(), theta.detach(), since[name]))
            # the reset is not differentiated through the spike (hard and soft alike), as in the authors' code
            v[name] = u * (~fired) if neuron.reset == "zero" else u - theta * fired
            values[name] = spikes  # type: ignore[assignment]
    return output


def convolutional(neuron: Any, encoder: Any = None) -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 12),
        nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip
    return converted(ann, (2, 8, 8), neuron, encoder)


def dense(neuron: Any, encoder: Any = None) -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(1)
    ann = nn.Sequential(nn.Linear(9, 14), nn.ReLU(), nn.Linear(14, 10), nn.ReLU(), nn.Linear(10, 3))
    return converted(ann, (9,), neuron, encoder)


def converted(ann: nn.Module, shape: tuple[int, ...], neuron: Any, encoder: Any) -> tuple[SpikingNetwork, Tensor]:
    x = torch.rand(7, *shape)
    network = convert(ann, [x], neuron, MaxActivation(), encoder=encoder).double().eval()
    for own in network.neurons().values():
        own.set_threshold(own.v_threshold * 0.6)
    return network, x.double()


def loss_of(output: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    return (output.tanh().flatten() * weights).sum() + output.square().mean()


def gradients(network: SpikingNetwork, x: Tensor, **how: Any) -> Gradients:
    network.zero_grad()
    torch.manual_seed(3)
    loss_of(network(x, STEPS, **how)).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def wanted(network: SpikingNetwork, x: Tensor) -> Gradients:
    """By autograd through the loop here."""
    network.zero_grad()
    torch.manual_seed(3)
    loss_of(through_autograd(network, x, STEPS)).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def same(found: Gradients, right: Gradients, close: float = 1e-9) -> None:
    assert found.keys() == right.keys()
    assert sum(float(g.abs().sum()) for g in right.values()) > 1e-3
    for name, one in right.items():
        off = float((found[name] - one).abs().max()) / (float(one.abs().max()) + 1e-9)
        assert off < close, f"gradient of {name} is off by {off:.3g} of its largest"


NETWORKS: dict[str, Callable[..., tuple[SpikingNetwork, Tensor]]] = {"convolutional": convolutional, "dense": dense}
NEURONS = [
    IF(),
    IF(v_init=0.5, surrogate=STDB(alpha=0.5, beta=0.4)),
    LIF(leak=0.8, reset="zero"),
    IF(surrogate=Triangle()),
    LIF(leak=0.9, surrogate=ATan()),
    IF(surrogate=FastSigmoid(), reset="zero"),
]


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_autograds(name: str, neuron: Any, counted: Callable[[dict[str, int]], None]) -> None:
    for encoder in (Direct(), Poisson()):
        network, x = NETWORKS[name](neuron, encoder)
        right = wanted(network, x)
        for packed in (False, True):
            network.packed = packed
            for how in ({}, {"chunk": 4}, {"chunk": 1}):
                same(gradients(network, x, **how), right)
                counted({"gradients against autograd": 1})


def test_a_wrong_gradient_would_be_found() -> None:
    network, x = dense(IF())
    right = wanted(network, x)
    with pytest.raises(AssertionError, match="is off by"):
        same({name: g * (1 + 1e-6) for name, g in right.items()}, right)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_input_that_requires_its_gradient_gets_autograds(name: str) -> None:
    network, x = NETWORKS[name](IF())
    grads = []
    for run in (lambda given: network(given, STEPS), lambda given: through_autograd(network, given, STEPS)):
        given = x.clone().requires_grad_()
        loss_of(run(given)).backward()
        grads.append(given.grad)
    assert float(grads[1].abs().max()) > 0
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)


def test_gradients_accumulate_over_batches() -> None:
    network, x = convolutional(IF())
    right = wanted(network, x)
    halves = [wanted(network, part) for part in (x[:3], x[3:])]
    network.zero_grad()
    for part in (x[:3], x[3:]):
        loss_of(network(part, STEPS)).backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    same(found, {name: halves[0][name] + halves[1][name] for name in right})


def test_two_simulations_before_one_backward() -> None:
    network, x = convolutional(IF())
    one, other = wanted(network, x), wanted(network, x.flip(0))
    network.zero_grad()
    (loss_of(network(x, STEPS)) + loss_of(network(x.flip(0), STEPS))).backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    same(found, {name: one[name] + other[name] for name in one})


def test_frozen_and_tied_weights() -> None:
    network, x = dense(IF())
    first: Any = next(iter(network.parameters()))
    first.requires_grad_(False)
    same(gradients(network, x), wanted(network, x))
    assert first.grad is None
    torch.manual_seed(2)
    shared = nn.Linear(6, 6)
    layers: dict[str, Layer] = {}
    source = "input"
    for name in ("a", "b"):
        layers[name] = Layer([(source, Synapse([shared]))], IF(v_threshold=0.2))
        source = name
    layers["out"] = Layer([(source, Synapse([nn.Linear(6, 3)]))], None)
    tied = SpikingNetwork(layers, Direct(), (6,)).double().train()
    x = torch.rand(5, 6, dtype=torch.float64)
    same(gradients(tied, x), wanted(tied, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_parameter_changed_between_forward_and_backward_is_refused(name: str) -> None:
    network, x = NETWORKS[name](IF())
    output = network(x, STEPS)
    with torch.no_grad():
        next(iter(network.parameters())).mul_(1.5)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss_of(output).backward()


def test_functional_call_with_the_plain_reference_is_autograds() -> None:
    """What the engine must give as well (test_guarded_gradients.py)."""
    network, x = dense(IF())
    network.packed = False
    right = wanted(network, x)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    loss_of(torch.func.functional_call(network, leaves, (x, STEPS))).backward()
    same({name: p.grad for name, p in leaves.items() if p.grad is not None}, right)


def test_parametrised_layers_with_the_plain_reference_are_autograds() -> None:
    network, x = dense(IF())
    network.packed = False
    first: Any = network.layers[next(iter(network.layers))]
    parametrizations.weight_norm(first.synapses[0].ops[0])
    assert parametrize.is_parametrized(first.synapses[0].ops[0])
    same(gradients(network, x), wanted(network, x))
