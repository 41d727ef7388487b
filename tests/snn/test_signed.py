"""Signed neurons: a trace by hand, the exact count, and conversion with few steps."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikeprop import BPTT, CNN, IF, Digits, GradedIF, MaxActivation, SignedIF, convert, snn_accuracy, spiking
from spikeprop.convert import LeastError, LightCalibration
from spikeprop.deploy import from_nir, portable, to_nir
from spikeprop.errors import NirError
from spikeprop.learn import Cosine, fit, load_checkpoint, load_model, save_checkpoint
from spikeprop.snn import STDB, DifferentialIF, Triangle
from spikeprop.snn.description import describe, described_network
from spikeprop.snn.engine.layerwise import LayerwiseRun
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.signed import _scan, _scan_back, _scan_back_on_cpu, _scan_on_cpu


def test_trace_by_hand() -> None:
    # u from .5: 1.3 -> fires, .3 | -.4 -> takes back, .6 | -.2, nothing sent: stays | 1.0 is not above 1 | 2.5 -> 1.5 | 1.5 -> .5
    neuron = SignedIF().double()
    state = neuron.initial_state(torch.zeros(1, dtype=torch.float64))
    found = []
    for current in (0.8, -0.7, -0.8, 1.2, 1.5, 0.0):
        spike, state = neuron.step(torch.tensor([current], dtype=torch.float64), state)
        found.append((float(spike), round(float(state.v), 12)))
    assert found == [(1, 0.3), (-1, 0.6), (0, -0.2), (0, 1.0), (1, 1.5), (1, 0.5)]


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_the_count_is_that_of_the_summed_input_in_any_order(chunk: int) -> None:
    """Where no step brings more than a threshold: max(0, floor(sum I / theta + v_init)); an ordinary neuron misses it."""
    draws = torch.Generator().manual_seed(0)
    theta, start = 1.5, 0.5
    currents_TB = theta * (2 * torch.rand(40, 500, generator=draws, dtype=torch.float64) - 1)
    wanted = torch.floor(currents_TB.sum(0) / theta + start).clamp(min=0)
    counts = {}
    for neuron in (SignedIF(v_threshold=theta, v_init=start).double(), IF(v_threshold=theta, v_init=start).double()):
        state, total = neuron.initial_state(currents_TB[0]), torch.zeros(500, dtype=torch.float64)
        with torch.no_grad():
            for part in currents_TB.split(chunk):
                spikes, state = neuron.run(part, state)
                assert set(spikes.unique().tolist()) <= {-1.0, 0.0, 1.0}
                total += spikes.sum(0)
        counts[type(neuron)] = total
    assert torch.equal(counts[SignedIF], wanted)
    assert (counts[IF] > wanted).float().mean() > 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loop_over_memory_once_is_the_definition(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(1)
    currents = torch.randn(9, 5, 3, 4, 6, generator=draws, dtype=dtype).transpose(3, 4)  # not contiguous
    theta = torch.rand(3, 1, 1, generator=draws, dtype=dtype) + 0.5
    found = []
    for run in (_scan, _scan_on_cpu):
        v, sent, spikes = (
            torch.zeros(5, 3, 6, 4, dtype=dtype),
            torch.zeros(5, 3, 6, 4, dtype=dtype),
            torch.empty(9, 5, 3, 6, 4, dtype=dtype),
        )
        run(currents, theta, 1, v, sent, spikes)
        found.append((v, sent, spikes))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert (found[0][2] < 0).any()


def test_potentials_of_autocast_are_single_precision() -> None:
    currents = (torch.randn(50, 400, generator=torch.Generator().manual_seed(0)) + 0.2).bfloat16()
    neuron = GradedIF(levels=2)
    wanted, after = neuron.run(currents.float(), neuron.initial_state(currents[0].float()))
    found, state = neuron.run(currents, neuron.initial_state(currents[0]))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), wanted)
    assert torch.equal(state.v, after.v)


def test_max_pooling_of_signed_spikes_keeps_the_largest_count() -> None:
    pool = SpikingMaxPool(2)
    spikes = torch.tensor([[1.0, 0, 0, 0], [-1, 1, 0, 0], [0, 1, 0, 0], [0, -1, 1, 0]]).reshape(4, 1, 1, 2, 2)
    out, _ = pool.run(spikes, pool.initial_state(spikes[0]))
    assert out.flatten().tolist() == [1, 0, 1, -1]


def converted(digits_cnn: CNN, neuron: IF | SignedIF, steps: int):
    x = next(iter(Digits().train(512, seed=0).epoch(0)))[0]
    return convert(digits_cnn, [x], neuron, LightCalibration(timesteps=steps, delay=False))


def test_two_steps_are_enough_where_ordinary_neurons_lose_more(digits_cnn: CNN) -> None:
    test = list(Digits().test(360).epoch(0))
    signed = snn_accuracy(converted(digits_cnn, SignedIF(), 2), test, [2])[2]
    assert signed > snn_accuracy(converted(digits_cnn, IF(v_init=0.5), 2), test, [2])[2]


def test_calibration_sees_the_spikes_that_the_network_fires(digits_cnn: CNN) -> None:
    network = converted(digits_cnn, SignedIF(), 4)
    x = next(iter(Digits().test(50).epoch(0)))[0]
    fired: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        network(x, 4, observe=lambda n, s: fired.__setitem__(n, fired.get(n, 0) + s.sum(0)))
    layers = LayerwiseRun(network, x, 4, lambda first, steps: network.encoded(x, 1))
    for name in network.neurons():
        layers.fire(name)
        assert torch.equal(layers.rate(name) * 4, fired[name])
    assert any(train.min() < 0 for train in layers.trains.values())


def test_it_lives_in_checkpoints_and_is_refused_where_it_cannot_go(digits_cnn: CNN, tmp_path: Path) -> None:
    network, other = converted(digits_cnn, SignedIF(), 2), converted(digits_cnn, SignedIF(), 3)
    x, _ = next(iter(Digits().test(20).epoch(0)))
    save_checkpoint(tmp_path / "n.safetensors", network, {})
    load_model(other, load_checkpoint(tmp_path / "n.safetensors"))
    with torch.no_grad():
        assert torch.equal(other(x, 2), network(x, 2))
    again = from_nir(to_nir(network))
    assert all(isinstance(neuron, SignedIF) for neuron in again.neurons().values())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x, 2), network(x, 2))
    with pytest.raises(NirError, match="sends graded spikes"):
        portable(to_nir(network), "norse")


def test_one_threshold_a_layer_works_too(digits_cnn: CNN) -> None:
    x = next(iter(Digits().train(512, seed=0).epoch(0)))[0]
    network = convert(digits_cnn, [x], SignedIF(), LeastError(timesteps=8, per="layer"))
    assert snn_accuracy(network, list(Digits().test(360).epoch(0)), [8])[8] > 95


def test_gradient_by_hand() -> None:
    # q = 1, payloads up to 3, from .5: u = 1.2 sends 1, left .2 | -.9 takes 1 back, left .1 | -1.9, nothing to take: stays
    # | 2.6 sends 2, left .6 | 9.6 sends 3, 6.6 is left | 6.6 sends 3, 3.6 is left. Steps 3, 5 and 6 do not send all that is due.
    neuron = GradedIF(levels=2, v_threshold=2.0).double()
    currents = torch.tensor([[0.7], [-1.1], [-2.0], [4.5], [9.0], [0.0]], dtype=torch.float64, requires_grad=True)
    spikes, state = neuron.run(currents, neuron.initial_state(currents[0]))
    assert spikes.flatten().tolist() == [1, -1, 0, 2, 3, 3]
    weights = torch.tensor([1.0, 2, 4, 8, 16, 32], dtype=torch.float64)
    (found,) = torch.autograd.grad((weights @ spikes).sum() + 64 * state.v.sum(), currents)
    assert found.flatten().tolist() == [1, 2, 8, 8, 64, 64]  # what step 3 did not take back, step 4 sends less


def test_what_may_be_taken_back_is_a_constant_of_the_gradient() -> None:
    """Step 1 sends 2, and step 2 takes both back: the sum stays 0 after a bump of step 1, whose gradient is 1/q all the same."""
    neuron = GradedIF(levels=2, v_threshold=2.0).double()
    currents = torch.tensor([[2.0], [-5.0]], dtype=torch.float64, requires_grad=True)
    state = neuron.initial_state(currents[0])
    spikes, after = neuron.run(currents, state)
    assert spikes.flatten().tolist() == [2, -2]
    assert float(after.v.detach()) == -2.5
    (found,) = torch.autograd.grad(spikes.sum(), currents)
    assert found.flatten().tolist() == [1, 0]
    for bump in (-1.0, 1.0):
        moved, _ = neuron.run(currents.detach() + torch.tensor([[bump], [0.0]], dtype=torch.float64), state)
        assert moved.flatten().tolist() == [2 + bump, -2 - bump]


@pytest.mark.parametrize("shape", [(0,), (0, 3, 2, 2), (2, 0), (1, 1)])
def test_a_batch_may_be_empty(shape: tuple[int, ...]) -> None:
    currents = torch.ones(4, *shape, requires_grad=True)
    for neuron in (SignedIF(), GradedIF(levels=2)):
        spikes, _ = neuron.run(currents, neuron.initial_state(currents[0]))
        (found,) = torch.autograd.grad(spikes.sum(), currents)
        assert spikes.shape == found.shape == currents.shape


def test_the_gradients_loop_over_memory_once_is_the_definition() -> None:
    draws = torch.Generator().manual_seed(1)
    currents = torch.randn(9, 5, 3, 4, 6, generator=draws, dtype=torch.float64).transpose(3, 4)  # not contiguous
    v, grad_v = (torch.rand(5, 3, 6, 4, generator=draws, dtype=torch.float64) for _ in range(2))
    unit = torch.rand(3, 1, 1, generator=draws, dtype=torch.float64) + 0.5
    spikes, grad = (torch.randn(9, 5, 3, 6, 4, generator=draws, dtype=torch.float64) for _ in range(2))
    spikes = (2 * spikes).round()
    found = [(grad.clone(), grad_v.clone()) for _ in range(2)]
    for run, (of_currents, of_v) in zip((_scan_back, _scan_back_on_cpu), found):
        run(of_currents, currents, spikes, unit, v, of_v)
    torch.testing.assert_close(found[0], found[1])
    assert 0.05 < (found[0][0] == grad / unit).double().mean() < 0.9


@pytest.mark.parametrize("neuron", [SignedIF(v_threshold=0.3), GradedIF(levels=3, v_threshold=1.2)], ids=["signed", "graded"])
def test_the_gradient_is_that_of_the_mean_over_all_starts(neuron: GradedIF) -> None:
    """Starts at every fraction of q make the rounding a straight line in the mean; its slope comes from a bump, not from a rule.

    Payloads suffice and sums are not negative, so all that is due is sent in every step.
    """
    draws = torch.Generator().manual_seed(0)
    q, steps, starts = float(neuron.spike_size), 6, 4000
    current = (torch.rand(steps, 1, generator=draws, dtype=torch.float64) * 0.9 * q).expand(-1, starts)
    weights = torch.randn(steps, generator=draws, dtype=torch.float64)
    state = neuron.double().initial_state(current[0])._replace(v=(torch.arange(starts, dtype=torch.float64) + 0.5) / starts * q)
    found = torch.zeros(steps, dtype=torch.float64)
    for t in range(steps):
        bump = torch.zeros(steps, 1, dtype=torch.float64)
        bump[t] = 0.05 * q
        up, down = (weights @ neuron.run(current + sign * bump, state)[0].mean(1) for sign in (1, -1))
        found[t] = (up - down) / (0.1 * q)
    leaf = current.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((weights @ neuron.run(leaf, state)[0]).mean(), leaf)
    torch.testing.assert_close(gradient.sum(1), found, rtol=1e-2, atol=1e-2 / q)


def test_many_levels_have_the_gradients_of_the_ann(digits_cnn: CNN) -> None:
    """The limit of fine steps: the network computes the ANN, and its weights' gradients are those of the ANN's."""
    ann = copy.deepcopy(digits_cnn).double().eval()
    x, y = next(iter(Digits().test(64).epoch(0)))
    x = x.double()
    network = convert(ann, [x], GradedIF(levels=7), MaxActivation(per="channel"))
    F.cross_entropy(network.estimate(network(x, 8), 8), y).backward()
    F.cross_entropy(ann(x), y).backward()
    products = [  # a layer's weights have the units of its spikes, its gradients the inverse
        [p.grad * p.detach() for name, p in module.named_parameters() if name.endswith("weight") and p.grad is not None]
        for module in (network, ann)
    ]
    assert len(products[0]) == len(products[1]) == 4
    for ours, wanted in zip(*products):
        assert float((ours - wanted).norm() / wanted.norm()) < 0.02


def test_fine_tuning_at_one_step_learns(digits_cnn: CNN) -> None:
    torch.manual_seed(0)
    network = converted(digits_cnn, SignedIF(), 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    history = fit(network, BPTT(timesteps=1), Digits().train(64, seed=0), optimizer, epochs=6, schedule=Cosine())
    assert history[-1]["accuracy"] > history[0]["accuracy"] + 2


@pytest.mark.parametrize("kind", [GradedIF, SignedIF, DifferentialIF])
def test_a_surrogate_is_refused_since_none_is_used(kind: type[GradedIF]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} was given the surrogate STDB, and uses none: .* straight through"):
        kind(surrogate=STDB())
    kind(surrogate=None)  # as recipes in older run folders say


def test_files_hold_no_surrogate_and_older_ones_that_do_are_read() -> None:
    network = spiking(nn.Sequential(nn.Linear(3, 4), GradedIF(levels=2), nn.Linear(4, 4), IF(), nn.Linear(4, 2)), 3)
    described = describe(network)
    (graded,) = [layer["neuron"] for layer in described["layers"] if "GradedIF" in str(layer["neuron"])]
    assert graded["settings"]["surrogate"] is None
    graded["settings"]["surrogate"] = {"use": "spikeprop.snn.surrogate.STDB", "settings": {"alpha": 0.3, "beta": 0.01}}
    again = described_network(described, network.state_dict())
    assert str(again.layers) == str(network.layers)
    read = from_nir(to_nir(network), surrogate=Triangle())
    assert [type(neuron.surrogate) for neuron in read.neurons().values()] == [type(None), Triangle]


def test_inference_needs_no_special_mode(digits_cnn: CNN) -> None:
    network = converted(digits_cnn, SignedIF(), 2)
    assert not network(next(iter(Digits().test(5).epoch(0)))[0], 2).isnan().any()
