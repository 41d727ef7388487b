"""Neurons against traces computed by hand, and the exact limits of integrate-and-fire."""

from __future__ import annotations

import pytest
import torch

from spikeprop.snn import IF, LIF, Neuron, Triangle
from spikeprop.snn.pooling import SpikingMaxPool


def trace(neuron: Neuron, currents: list[float]) -> tuple[list[float], list[float]]:
    """Spikes and potentials after each step of one neuron."""
    state = neuron.initial_state(torch.zeros(1, dtype=torch.float64))
    spikes, potentials = [], []
    for current in currents:
        spike, state = neuron.step(torch.tensor([current], dtype=torch.float64), state)
        spikes.append(float(spike))
        potentials.append(round(float(state.v), 12))
    return spikes, potentials


def test_if_integrates_fires_and_subtracts() -> None:
    # u: .6 | 1.2 -> fires, .2 | .8 | 1.4 -> .4 | -.6 | 2.9 -> 1.9 | 1.9 -> .9
    spikes, potentials = trace(IF(v_threshold=1.0).double(), [0.6, 0.6, 0.6, 0.6, -1.0, 3.5, 0.0])
    assert spikes == [0, 1, 0, 1, 0, 1, 1]
    assert potentials == [0.6, 0.2, 0.8, 0.4, -0.6, 1.9, 0.9]


def test_threshold_is_strict() -> None:
    spikes, potentials = trace(IF(v_threshold=1.0).double(), [1.0, 0.25])
    assert spikes == [0, 1]
    assert potentials == [1.0, 0.25]


def test_reset_to_zero() -> None:
    spikes, potentials = trace(IF(v_threshold=1.0, reset="zero").double(), [0.75, 0.75, 0.75])
    assert spikes == [0, 1, 0]
    assert potentials == [0.75, 0.0, 0.75]


def test_lif_leaks_before_it_integrates_and_subtracts_after() -> None:
    # leak .5: .8 | .4+.8=1.2 -> .2 | .1+.8=.9 | .45+.8=1.25 -> .25
    spikes, potentials = trace(LIF(v_threshold=1.0, leak=0.5).double(), [0.8] * 4)
    assert spikes == [0, 1, 0, 1]
    assert potentials == [0.8, 0.2, 0.9, 0.25]


def test_v_init_is_a_fraction_of_the_threshold() -> None:
    neuron = IF(v_threshold=2.0, v_init=0.5).double()
    assert trace(neuron, [0.5, 0.75])[0] == [0, 1]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 0.5, 0.99])
def test_if_rate_is_relu_within_one_spike(rate: float) -> None:
    steps = 200
    spikes, _ = trace(IF(v_threshold=1.0).double(), [rate] * steps)
    assert abs(sum(spikes) / steps - rate) <= 1.001 / steps  # 0.1 * 200 rounds
    assert sum(trace(IF().double(), [-rate] * steps)[0]) == 0


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("leak", [1.0, 0.9])
def test_a_run_cut_in_chunks_is_the_same_run(reset: str, leak: float) -> None:
    neuron = LIF(leak=leak, reset=reset, surrogate=Triangle())  # type: ignore[arg-type]
    currents = torch.randn(12, 3, 5, generator=torch.Generator().manual_seed(1))
    whole, _ = neuron.run(currents, neuron.initial_state(currents[0]))
    state, parts = neuron.initial_state(currents[0]), []
    for part in currents.split(5):
        spikes, state = neuron.run(part, state)
        parts.append(spikes)
    assert 0.05 < whole.mean() < 0.95
    assert torch.equal(whole, torch.cat(parts))


def test_thresholds_may_differ_by_channel() -> None:
    neuron = IF()
    neuron.v_threshold = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    current = torch.full((6, 1, 2, 3, 3), 1.01)
    spikes, _ = neuron.run(current, neuron.initial_state(current[0]))
    assert spikes.sum(0)[0, :, 0, 0].tolist() == [6, 3]


@pytest.mark.parametrize(("settings", "named"), [({"v_threshold": 0.0}, "v_threshold"), ({"reset": "soft"}, "reset")])
def test_bad_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        IF(**settings)


def test_a_leak_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="leak"):
        LIF(leak=1.1)


def test_max_pooling_of_spikes_is_exact_for_counts() -> None:
    """Two inputs of one window, by hand: the largest count grows only when its holder, or one that has drawn level, fires."""
    pool = SpikingMaxPool((1, 2))
    a, b = [1, 0, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0]  # counts 1 1 1 2 2 3 and 0 1 2 3 3 3: the largest 1 1 2 3 3 3
    spikes = torch.tensor([a, b], dtype=torch.float32).T.reshape(6, 1, 1, 1, 2)
    out, state = pool.run(spikes, pool.initial_state(spikes[0]))
    assert out.flatten().tolist() == [1, 0, 1, 1, 0, 0]
    assert state.v.flatten().tolist() == [3, 3]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_max_pooling_fires_single_spikes_whose_sum_is_the_largest_sum(cut: int) -> None:
    torch.manual_seed(0)
    pool = SpikingMaxPool(3, 2, 1, ceil_mode=True)
    spikes = (torch.rand(12, 2, 4, 7, 7) < 0.3).float()
    state, outs = pool.initial_state(spikes[0]), []
    for part in spikes.split(cut):
        out, state = pool.run(part, state)
        outs.append(out)
    out = torch.cat(outs)
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(out.sum(0), torch.nn.functional.max_pool2d(spikes.sum(0), 3, 2, 1, ceil_mode=True))


def test_max_pooling_passes_gradients_to_the_largest_inputs() -> None:
    """The sum of what is sent is the largest sum, so its gradient is 1 for every step of that input and 0 for the others."""
    pool = SpikingMaxPool((1, 2))
    spikes = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).T.reshape(3, 1, 1, 1, 2).clone().requires_grad_()
    out, _ = pool.run(spikes, pool.initial_state(spikes[0].detach()))
    out.sum().backward()
    assert spikes.grad is not None
    assert spikes.grad.reshape(3, 2).T.tolist() == [[1, 1, 1], [0, 0, 0]]
