"""Kernels of floats, which networks with batch-norm train on: spikes and gradients are those of the plain reference."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeprop as sp
from spikeprop import IF, LIF, STDB, Triangle
from spikeprop.convert import to_spiking
from spikeprop.snn import ATan, Neuron
from spikeprop.snn.engine import batch, float_run, sizes
from spikeprop.snn.timed_input import TimedInput

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


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("held", [False, True])
def test_trained_thresholds_and_leaks_have_the_gradients_of_the_reference(surrogate: Any, reset: Any, held: bool) -> None:
    torch.manual_seed(0)
    current, weight = torch.randn(6, 3, 5, 7, 2).double(), torch.randn(6, 3, 5, 7, 2).double()
    for theta, leak in ((torch.rand(5, 1, 2) + 0.5, torch.tensor(0.8)), (torch.tensor(0.7), torch.rand(5, 7, 2))):
        neuron = LIF(v_init=0.3, surrogate=surrogate, reset=reset, trainable=("threshold", "leak")).double()
        neuron.set_threshold(theta)
        neuron.set_factor("leak", leak)
        found = []
        for run in (partial(float_run.advance, neuron), neuron.run):
            neuron.zero_grad()
            found.append([*results(run, neuron, current, held, weight), *(p.grad for p in neuron.parameters())])
        assert len(found[0]) == len(found[1])
        assert bool(found[0][-1].any())
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_long_runs_and_many_neurons_are_cut_into_blocks() -> None:
    torch.manual_seed(0)
    neuron, current, weight = LIF(), torch.randn(6, 2, 5000), torch.randn(6, 2, 5000)
    fast = results(lambda *given: float_run.advance(neuron, *given), neuron, current, False, weight)
    for one, other in zip(fast, results(neuron.run, neuron, current, False, weight), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_others_are_left_to_the_reference() -> None:
    current = torch.randn(2, 3, 4)
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


def dyadic() -> tuple[sp.SpikingNetwork, Tensor]:
    """A network whose currents bfloat16 holds exactly, and images."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )  # fmt: skip
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randint(-2, 3, p.shape) / 4)
    x = torch.randint(0, 3, (6, 3, 8, 8)) / 2
    neuron = IF(v_threshold=1.0, v_init=0.5, surrogate=Triangle(), trainable=("threshold",))
    return to_spiking(module, lambda: copy.deepcopy(neuron), sp.Direct(), (3, 8, 8)), x


def trained_by(network: sp.SpikingNetwork, x: Tensor, T: int = 4) -> list[Tensor]:
    network.zero_grad()
    output = network(x, T)
    output.float().square().sum().backward()
    return [output.detach().float(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


def test_few_steps_under_autocast_run_on_floats_with_the_packed_engines_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_run, "cpu_multiplies_bfloat16", lambda: True)
    network, x = dyadic()
    packed = trained_by(network, x)
    ran: list[str] = []
    own = batch.train
    monkeypatch.setattr(batch, "train", lambda *given, **more: ran.append("packed") or own(*given, **more))
    with torch.autocast("cpu", torch.bfloat16):
        floats = trained_by(network, x)
        assert not ran
        trained_by(network, x, sizes.BFLOAT16_STEPS + 1)
        assert ran == ["packed"]
    assert torch.equal(floats[0], packed[0])
    for one, other in zip(floats[1:], packed[1:], strict=True):
        assert float((one - other).norm()) <= 0.01 * float(other.norm())


def test_floats_in_their_own_precision_are_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = dyadic()
    network, x = network.double(), x.double() + torch.rand(6, 3, 8, 8).double() / 3
    monkeypatch.setattr(float_run, "takes", lambda *given: True)
    floats = trained_by(network, x)
    network.packed = False
    for one, other in zip(floats, trained_by(network, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_where_floats_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = dyadic()
    network.shapes()

    def takes(given: Tensor = x, T: int = 4, dtype: torch.dtype | None = torch.bfloat16) -> bool:
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            return float_run.takes(network, TimedInput.of(given, T, None, (3, 8, 8)))

    monkeypatch.setattr(float_run, "cpu_multiplies_bfloat16", lambda: True)
    assert takes()
    assert not takes(dtype=None)
    assert not takes(dtype=torch.float16)
    assert not takes(x.double())
    monkeypatch.setattr(sizes, "BFLOAT16_BYTES", 10 * 6 * 4 * sum(torch.Size(s).numel() for s in network.shapes().values()) - 1)
    assert not takes()
    assert takes(T=3)
    monkeypatch.setattr(float_run, "cpu_multiplies_bfloat16", lambda: False)
    assert not takes(T=1)


def test_the_layer_that_reads_the_input_stays_in_float32_under_autocast() -> None:
    network, x = dyadic()
    first, *_ = network.neurons().values()
    first.set_threshold(torch.tensor(1e-3))
    weight = next(network.parameters())
    with torch.no_grad():
        weight -= weight.mean((2, 3), keepdim=True)  # it takes differences of pixels, which are nearly equal
    x, found = 1 + x * 1e-3, []
    network.packed = False
    for lowered in (False, True):
        seen: dict[str, list[Tensor]] = {}
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered), torch.no_grad():
            network(x, 4, observe=lambda name, spikes, seen=seen: seen.setdefault(name, []).append(spikes))
        found.append(torch.cat(seen[next(iter(network.neurons()))]))
    assert torch.equal(*found)
    assert 0 < float(found[0].mean()) < 1
