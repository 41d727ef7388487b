"""Differential coding: the sender's rule by hand, decoding against ordinary coding, and the exact limit that both share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spikeprop as sp
from spikeprop.evaluate import ActivityMeter
from spikeprop.evaluate.error import mean_sent
from spikeprop.snn import DifferentialIF, Direct, GradedIF, Layer, SpikingNetwork, Synapse
from spikeprop.snn.differential import RunningMean, send_differences


def decoded(spikes_TB: Tensor) -> Tensor:
    """The running mean after each step, in units of the smallest level."""
    number_T = torch.arange(1, len(spikes_TB) + 1).reshape(-1, *(1,) * (spikes_TB.dim() - 1))
    return (spikes_TB / number_T).cumsum(0)


def test_a_constant_current_is_sent_once_and_then_corrected() -> None:
    """By hand, q = 1: 5.4 sends 5; the mean lacks 0.4, then 0.8 in total, which rounds to 1 in step 2, and so on."""
    neuron = DifferentialIF(levels=4, v_threshold=8.0)
    current = torch.full((4, 1), 5.4)
    spikes, state = neuron.run(current, neuron.initial_state(current[0]))
    assert spikes.flatten().tolist() == [5, 1, 0, 0]
    assert decoded(spikes).flatten().tolist() == [5, 5.5, 5.5, 5.5]
    assert float(state.v) == pytest.approx(0.5 + 4 * (5.4 - 5.5), abs=1e-5)


def test_the_total_is_the_rectified_sum_up_to_half_a_level() -> None:
    """The exact limit of ``GradedIF``, for currents that come in any order, as long as payloads suffice."""
    draws = torch.Generator().manual_seed(0)
    current = torch.randn(12, 2000, generator=draws) * 3
    neuron = DifferentialIF(levels=7, v_threshold=64.0)  # q = 1, payloads up to 127
    spikes, _ = neuron.run(current, neuron.initial_state(current[0]))
    for steps in range(1, 13):
        total = steps * decoded(spikes)[steps - 1]
        wanted = current[:steps].sum(0).clamp(min=0)
        assert (total - wanted).abs().max() <= 0.5 + 1e-4
    plain = GradedIF(levels=7, v_threshold=64.0)
    sent, _ = plain.run(current, plain.initial_state(current[0]))
    assert (sent.sum(0) - 12 * decoded(spikes)[-1]).abs().max() <= 1 + 1e-4


def test_steps_may_be_run_in_pieces() -> None:
    current = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))
    neuron = DifferentialIF(levels=3)
    complete, end = neuron.run(current, neuron.initial_state(current[0]))
    first, state = neuron.run(current[:3], neuron.initial_state(current[0]))
    last, state = neuron.run(current[3:], state)
    assert torch.equal(torch.cat([first, last]), complete)
    assert torch.equal(state.v, end.v)


def test_what_is_decoded_is_what_ordinary_coding_would_have_sent() -> None:
    """A reader's current, bias included, from corrections d_t = s_t - mean(s_1..t-1) of any signal s."""
    draws = torch.Generator().manual_seed(2)
    signal, weight, bias = (
        torch.randn(9, 4, 5, generator=draws),
        torch.randn(5, 3, generator=draws),
        torch.randn(3, generator=draws),
    )
    before = torch.cat([torch.zeros(1, 4, 5), signal.cumsum(0)[:-1] / torch.arange(1, 9).reshape(-1, 1, 1)])
    corrections = signal - before
    assert torch.allclose(decoded(corrections)[-1], signal.mean(0), atol=1e-5)
    known = RunningMean(bias.reshape(1, 1, 3), torch.zeros(4, 3))
    one, known = known.decoded(corrections[:4] @ weight + bias, 0)
    two, _ = known.decoded(corrections[4:] @ weight + bias, 4)
    torch.testing.assert_close(torch.cat([one, two]), signal @ weight + bias)


def converted() -> tuple[SpikingNetwork, SpikingNetwork, nn.Module, Tensor]:
    """The same network in both codings; the output reads two layers."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            y = torch.relu(self.second(y) + y)
            return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))

    ann, x = Net().eval(), torch.rand(24, 2, 6, 6)
    plain = sp.convert(ann, x, GradedIF(levels=6), sp.LightCalibration(timesteps=8))
    changing = sp.convert(ann, x, DifferentialIF(levels=6), sp.LightCalibration(timesteps=8))
    return plain, changing, ann, x


def test_a_network_gives_the_ordinary_ones_output_up_to_rounding_and_sends_fewer_bits() -> None:
    plain, changing, ann, x = converted()
    assert all(type(n) is DifferentialIF for n in changing.neurons().values())
    with torch.no_grad():
        wanted, ordinary, found = ann(x), plain(x, 8) / 8, changing(x, 8) / 8
    size = wanted.abs().max()
    assert (ordinary - wanted).abs().max() < 0.02 * size
    assert (found - wanted).abs().max() < 0.02 * size
    meters = {}
    for network in (plain, changing):
        meters[network] = meter = ActivityMeter(network, 8)
        with torch.no_grad():
            network(x, 8, observe=meter.start(len(x)))
    assert meters[changing].bits() < 0.6 * meters[plain].bits()
    neurons = 2 * 6 * 36  # of both layers; both send, the second and the output read
    assert meters[plain].running_means() == 0
    assert meters[changing].running_means() == neurons + 6 * 36 + 3
    (means, _), (ordinary_means, _) = mean_sent(changing, x, [8]), mean_sent(plain, x, [8])
    for name in changing.neurons():
        unit = 64 / 8  # both are within a level's half a step of the same sum
        assert (means[8][name] - ordinary_means[8][name]).abs().max() < unit


def test_a_converted_network_is_in_evaluation_mode_and_runs_where_gradients_are_on() -> None:
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.rand(16, 4)
    network = sp.convert(ann, x, DifferentialIF(levels=3), timesteps=4)
    assert not any(module.training for module in network.modules())
    assert network(x, 4).shape == (16, 3)


def test_chunks_steps_and_samples_that_leave_do_not_matter() -> None:
    _, network, _, x = converted()
    with torch.no_grad():
        once = network(x, 6, chunk=6)
        torch.testing.assert_close(network(x, 6, chunk=1), once)
        torch.testing.assert_close(network(x, 6, chunk=4), once)
        state = network.init_state()
        output = once
        for _ in range(6):
            output, state = network.step(x, state)
        torch.testing.assert_close(output, once)
        from spikeprop.snn.leaving import Leaving

        leaving, rows = Leaving(), torch.tensor([1, 5, 7])
        outputs = []
        for output_TBK in network.unroll(x, 6, chunk=2, leaving=leaving):
            outputs.append(output_TBK)
            if len(outputs) == 1:
                leaving.keep(rows)
        torch.testing.assert_close(outputs[-1][-1], once[rows])


def test_a_layer_may_read_both_codings() -> None:
    """Its current is that of a network in which everything is ordinary, for signals that both send exactly."""
    torch.manual_seed(3)
    x = torch.rand(5, 4)

    def network(neuron: GradedIF) -> SpikingNetwork:
        torch.manual_seed(4)
        first, second, skip = nn.Linear(4, 4, bias=False), nn.Linear(4, 2), nn.Linear(4, 2)
        first.weight.data.copy_(torch.eye(4))
        layers = {
            "first": Layer([("input", Synapse([first]))], neuron),
            "output": Layer([("first", Synapse([second])), ("input", Synapse([skip]))], None),
        }
        return SpikingNetwork(layers, Direct(), (4,)).eval()

    with torch.no_grad():
        wanted = network(GradedIF(levels=7, v_threshold=1.0))(x, 16)
        found = network(DifferentialIF(levels=7, v_threshold=1.0))(x, 16)
    torch.testing.assert_close(found / 16, wanted / 16, atol=2 / 16, rtol=0)  # totals differ by 1 at most, of 4 weights below 1/2


def test_functions_read_what_is_decoded() -> None:
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3)).eval(), torch.randn(32, 6)
    network = sp.convert(ann, x, DifferentialIF(levels=6), timesteps=8)
    assert any(dynamics.arithmetic for dynamics in network.dynamics().values())
    with torch.no_grad():
        wanted, found = ann(x), network(x, 8) / 8
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_max_pooling_and_training_are_refused() -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = torch.rand(4, 1, 6, 6)
    with pytest.raises(ValueError, match="differential coding does not send: use average pooling"):
        sp.convert(ann, x, DifferentialIF(levels=3), timesteps=4)
    pooled = sp.convert(ann, x, GradedIF(levels=3), timesteps=4)
    with pytest.raises(ValueError, match="average pooling"):
        send_differences(pooled)
    _, network, _, images = converted()
    with pytest.raises(ValueError, match="DifferentialIF passes no gradient"):
        network.train()(images, 2).sum().backward()
