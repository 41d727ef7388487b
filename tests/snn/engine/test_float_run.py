"""Kernels of floats, which networks with batch-norm train on: spikes and gradients are those of the plain reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeprop as sp
from spikeprop import IF, LIF, STDB, Triangle
from spikeprop.snn import ATan, Neuron
from spikeprop.snn.engine import float_run

SURROGATES = (STDB(beta=0.2), Triangle(), ATan())
CASES: list[tuple[Neuron, bool]] = [
    (neuron, held)
    for surrogate, reset, held in product((STDB(beta=0.2), Triangle(), ATan()), ("subtract", "zero"), (False, True))
    for neuron in (
        IF(v_threshold=0.7, v_init=0.3, surrogate=surrogate, reset=reset),
        LIF(leak=0.8, v_init=0.3, surrogate=surrogate, reset=reset),
    )
]


def results(run: Any, neuron: Neuron, current: Tensor, held: bool, weight: Tensor) -> list[Tensor]:
    """Spikes, state and gradients of two runs, the second of which goes on where the first stopped."""
    current = current.clone().requires_grad_()
    given = current[:1].expand(6, *current.shape[1:]) if held else current
    first, state = run(given, neuron.initial_state(given[0]))
    second, state = run(given.flip(0) if not held else given, state)
    ((first + second) * weight).sum().add(state.v.square().sum()).backward()
    found = [first, second, state.v, current.grad]
    return [t for t in (*found, state.since) if t is not None]


@pytest.mark.parametrize(("neuron", "held"), CASES, ids=lambda case: str(case))
def test_kernels_are_the_reference(neuron: Neuron, held: bool) -> None:
    torch.manual_seed(0)
    current, weight = torch.randn(6, 3, 5, 7, 2).double(), torch.randn(6, 3, 5, 7, 2).double()
    neuron = neuron.double()
    neuron.set_threshold(torch.rand(5, 1, 2).double() + 0.5)
    assert float_run.knows(neuron, current)
    fast = results(lambda *given: float_run.advance(neuron, *given), neuron, current, held, weight)
    plain = results(neuron.run, neuron, current, held, weight)
    assert bool(plain[0].any())
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_long_runs_and_many_neurons_are_cut_into_blocks() -> None:
    torch.manual_seed(0)
    neuron, current, weight = LIF(), torch.randn(6, 2, 5000), torch.randn(6, 2, 5000)
    fast = results(lambda *given: float_run.advance(neuron, *given), neuron, current, False, weight)
    for one, other in zip(fast, results(neuron.run, neuron, current, False, weight), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_others_are_left_to_the_reference() -> None:
    current = torch.randn(2, 3, 4)
    assert not float_run.knows(LIF(trainable=("leak",)), current)
    assert not float_run.knows(LIF(), current.double())
    hooked = LIF()
    hooked.register_forward_hook(lambda *_: None)
    assert not float_run.knows(hooked, current)


def test_images_in_another_order_of_memory_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    norm, neuron = nn.BatchNorm2d(4), LIF(v_threshold=0.7, leak=0.8, surrogate=Triangle())
    module = nn.Sequential(nn.Conv2d(2, 4, 3), norm, neuron, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 3))
    network = sp.spiking(module, (2, 6, 8), encoder=sp.Frames()).double().train()
    x_TB = torch.rand(6, 3, 2, 6, 8).double()
    ordered = float_run.channels_last(x_TB)
    assert torch.equal(ordered, x_TB)
    assert ordered.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    found = []
    for network.packed in (True, False):
        network.zero_grad()
        output = network(x_TB)
        (output**2).sum().backward()
        found.append([output, *(p.grad for p in network.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
