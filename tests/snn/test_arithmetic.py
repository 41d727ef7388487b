"""Layers that compute send, in sum, the function of what they received: closed forms, products, cuts in time, and both signs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import GradedIF, SignedIF
from spikeprop.snn.arithmetic import Joined, Relay, Running
from spikeprop.snn.call import BatchAxis, Call, Operand
from spikeprop.snn.gather import Gather
from spikeprop.snn.signed import _scan, _scan_on_cpu


def called(function: Callable[..., Tensor], *args: object, operands: int = 1, **kwargs: object) -> Call:
    return Call(function, (*map(Operand, range(operands)), *args), kwargs, [BatchAxis()] * operands, BatchAxis())


FUNCTIONS: dict[str, nn.Module] = {
    "LayerNorm": nn.LayerNorm(6),
    "RMSNorm": nn.RMSNorm(6),
    "GroupNorm": nn.GroupNorm(2, 4),
    "GELU": nn.GELU(),
    "GELU, tanh": nn.GELU("tanh"),
    "SiLU": nn.SiLU(),
    "Hardswish": nn.Hardswish(),
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "Softmax": nn.Softmax(-1),
    "LogSoftmax": nn.LogSoftmax(-1),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Mish": nn.Mish(),
    "functional": called(F.elu, alpha=0.5),
    "method": Call("exp", (Operand(0),), {}, [BatchAxis()], BatchAxis()),
}


def run(layer: Running | Relay, currents_TB: Tensor, cuts: tuple[int, ...]) -> Tensor:
    """What is sent at each step, computed in pieces."""
    state, sent = layer.initial_state(currents_TB[0]), []
    for part in currents_TB.split(cuts):
        one, state = layer.run(part, state)
        sent.append(one)
    return torch.cat(sent)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_sum_that_is_sent_is_t_times_the_function_of_the_mean(name: str) -> None:
    draws = torch.Generator().manual_seed(0)
    currents_TB = torch.randn(9, 5, 4, 6, generator=draws, dtype=torch.float64)
    function = FUNCTIONS[name].double()
    sent_TB = run(Running(function), currents_TB, (9,))
    for t in (1, 4, 9):
        mean_B = currents_TB[:t].sum(0) / t
        torch.testing.assert_close(sent_TB[:t].sum(0), t * function(mean_B), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(run(Running(function), currents_TB, (1, 3, 5)), sent_TB, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("function", "shapes"), [(torch.mul, [(3, 4), (3, 4)]), (torch.matmul, [(2, 3, 4), (2, 4, 5)])])
def test_a_product_sends_the_product_of_the_sums_over_t(function: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    """And step by step what running sums give: P_t / t - P_{t-1} / (t - 1), P_t = P_{t-1} + a_t b_t + a_t S_B + S_A b_t."""
    draws = torch.Generator().manual_seed(0)
    a_TB, b_TB = (torch.randn(7, 2, *shape, generator=draws, dtype=torch.float64) for shape in shapes)
    product_layer = Running(Joined(called(function, operands=2), shapes))
    sent_TB = run(product_layer, torch.cat([a_TB.flatten(2), b_TB.flatten(2)], 2), (3, 4))
    product, sum_a, sum_b = torch.zeros_like(sent_TB[0]), torch.zeros_like(a_TB[0]), torch.zeros_like(b_TB[0])
    for t, (a, b) in enumerate(zip(a_TB, b_TB), 1):
        before = product
        product = product + function(a, b) + function(a, sum_b) + function(sum_a, b)
        sum_a, sum_b = sum_a + a, sum_b + b
        expected = product / t - (before / (t - 1) if t > 1 else 0)
        torch.testing.assert_close(sent_TB[t - 1], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sent_TB[:t].sum(0), function(sum_a, sum_b) / t, rtol=1e-9, atol=1e-9)


def test_nothing_is_sent_while_a_function_is_not_finite() -> None:
    currents_TB = torch.tensor([0.0, 0.0, 3.0, -3.0, 6.0]).reshape(5, 1, 1)
    sent = run(Running(called(torch.reciprocal)), currents_TB, (2, 3)).flatten().tolist()
    assert sent[:2] == [0.0, 0.0]
    assert sum(sent[:3]) == pytest.approx(3 / 1.0)
    assert sent[3] == 0.0  # the mean is 0 again
    assert sum(sent) == pytest.approx(5 / (6 / 5))


def test_a_relay_sends_its_current() -> None:
    currents_TB = torch.randn(3, 2, 4)
    assert torch.equal(run(Relay(), currents_TB, (1, 2)), currents_TB)


@pytest.mark.parametrize("levels", [1, 3])
def test_without_rectifying_the_sum_is_the_input_s_rounded_to_nearest(levels: int) -> None:
    draws = torch.Generator().manual_seed(levels)
    options = {"v_threshold": 2.0, "rectify": False}
    neuron = (SignedIF(**options) if levels == 1 else GradedIF(levels=levels, **options)).double()  # type: ignore[arg-type]
    unit = float(neuron.spike_size)
    most = unit * neuron.payload
    currents_TB = most * (2 * torch.rand(30, 500, generator=draws, dtype=torch.float64) - 1)
    spikes_TB, _ = neuron.run(currents_TB, neuron.initial_state(currents_TB[0]))
    assert torch.equal(spikes_TB.cumsum(0), (currents_TB.cumsum(0) / unit).round())
    assert spikes_TB.cumsum(0).min() < 0
    assert "rectify=False" in repr(neuron)
    mirrored_TB, _ = neuron.run(-currents_TB, neuron.initial_state(currents_TB[0]))
    assert torch.equal(mirrored_TB, -spikes_TB)
    found = []
    for scan in (_scan, _scan_on_cpu):
        state = neuron.initial_state(currents_TB[0])
        assert state.sent is not None
        spikes_TB = torch.empty_like(currents_TB)
        scan(currents_TB, neuron.spike_size, neuron.payload, state.v.clone(), state.sent.clone(), spikes_TB)
        found.append(spikes_TB)
    assert torch.equal(found[0], found[1])


def test_gathers_of_gathers_are_one() -> None:
    x = torch.randn(3, 4, 5)
    places = torch.arange(20).reshape(4, 5)
    first = Gather(torch.nn.functional.pad(places.t(), (1, 0), value=-1), 20)
    second = Gather(torch.arange(25).reshape(5, 5).flip(0)[:, :3], 25)
    assert torch.equal(first(x), F.pad(x.transpose(1, 2), (1, 0)))
    assert torch.equal(second.after(first)(x), second(first(x)))
    assert Gather(places.reshape(2, 10), 20).ordered


@pytest.mark.parametrize("form", [BatchAxis(), BatchAxis(1), BatchAxis(0, 1, 3), BatchAxis(2, 2, 3)])
def test_forms_are_there_and_back(form: BatchAxis) -> None:
    shape = [4, 5, 6]
    shape[form.axis] = form.outer * 7 * form.inner
    x = torch.randn(*shape)
    samples = form.samples(x)
    assert len(samples) == 7
    assert torch.equal(form.batch(samples), x)
