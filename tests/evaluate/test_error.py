"""Errors of a conversion on a network small enough to know its spikes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spikeprop import CNN, IF, Digits, Direct, MaxActivation, convert
from spikeprop.convert import relu_activations, to_spiking
from spikeprop.evaluate import conversion_error, draw_conversion_error
from spikeprop.snn import INPUT, Layer, SpikingNetwork, Synapse


def network_with_units(v_init: float, theta: float = 2.0) -> SpikingNetwork:
    """One layer of three neurons on three inputs, weights one to one, so a spike stands for theta."""
    first, last = nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)
    first.weight.data = torch.eye(3)
    layers = {
        "hidden": Layer([(INPUT, Synapse([first]))], IF(v_threshold=theta, v_init=v_init)),
        "out": Layer([("hidden", Synapse([last]))], None),
    }
    return SpikingNetwork(layers, Direct(), (3,))


def test_clipping_and_quantisation_by_hand() -> None:
    """theta 2, v_init .5, T = 4: activations 0.5, 1.25, 3 give 1, 2 (u = 1 + 1.25 t), and 4 spikes: 0.5, 1, 2."""
    x = torch.tensor([[0.5, 1.25, 3.0]])
    error = conversion_error(network_with_units(0.5), x, {"hidden": x}, {"hidden": 2.0}, [4, 64])["hidden"]
    scale = float(x.norm())
    # T = 4: u of the first reaches 3 > 2 at step 4 only (1.5, 2, 2.5): one spike at step 3
    assert error[4].clipping == pytest.approx(1 / scale)
    assert error[4].quantisation == pytest.approx(0.25 / scale)
    assert error[4].unevenness == 0
    assert error[4].total == pytest.approx((1 + 0.25**2) ** 0.5 / scale)
    assert error[64].clipping == pytest.approx(error[4].clipping)
    assert error[64].quantisation < 0.1 * error[4].quantisation


def test_a_unit_by_neuron_and_no_clipping() -> None:
    x = torch.tensor([[0.1, 0.5, 0.9], [0.0, 0.3, 1.9]])
    units = {"hidden": torch.tensor([2.0, 2.0, 2.0])}
    error = conversion_error(network_with_units(0.5), x, {"hidden": x}, units, [8, 1000])["hidden"]
    assert error[8].clipping == 0
    assert error[8].unevenness == pytest.approx(0, abs=1e-6)  # a constant current
    assert error[1000].total < 0.002


def test_spikes_that_come_unevenly_are_told_from_the_rest() -> None:
    """A neuron that gets +1.1 at step 2 and its -2.2 at step 3 has fired by then, though the ANN's activation is 0."""
    first, second, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
    first.weight.data, second.weight.data = torch.eye(2), torch.tensor([[-2.2, 1.1]])
    layers = {
        "a": Layer([(INPUT, Synapse([first]))], IF(v_threshold=1.0, v_init=0.0)),
        "b": Layer([("a", Synapse([second]))], IF(v_threshold=1.0)),
        "out": Layer([("b", Synapse([last]))], None),
    }
    network = SpikingNetwork(layers, Direct(), (2,))
    x = torch.tensor([[0.4, 0.8], [0.0, 0.6]])  # the second image has an activation, to which errors are relative
    activations = {"a": x, "b": torch.tensor([[0.0], [0.66]])}
    error = conversion_error(network, x, activations, {"a": 1.0, "b": 1.0}, [3])
    assert error["a"][3].unevenness == 0
    assert error["b"][3].unevenness == pytest.approx(1 / 3 / 0.66)
    assert error["b"][3].clipping == 0


def test_a_real_conversion_gets_better_with_steps(digits_cnn: CNN, tmp_path: Path) -> None:
    """Units of a sequential network without biases are the product of its thresholds up to the layer."""
    x = next(Digits(test_limit=40).test(40).epoch(0))[0]
    network = convert(digits_cnn, [x], IF(v_init=0.5), MaxActivation())
    activations = relu_activations(to_spiking(digits_cnn, IF, Direct(), (1, 8, 8)).eval(), x)
    units, unit = {}, torch.ones(())
    for name, neuron in network.neurons().items():
        unit = unit * neuron.v_threshold
        units[name] = unit
        assert float(unit) == pytest.approx(float(activations[name].detach().max()), rel=1e-5)
    errors = conversion_error(network, x, activations, units, [64, 4, 16])
    for by_steps in errors.values():
        assert list(by_steps) == [4, 16, 64]
        assert by_steps[64].total < by_steps[16].total < by_steps[4].total
        assert by_steps[64].clipping == pytest.approx(0, abs=1e-6)
        assert by_steps[64].total < 0.15
    draw_conversion_error(errors, tmp_path / "error.png", "digits")
    assert (tmp_path / "error.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_missing_is_named() -> None:
    x = torch.ones(1, 3)
    with pytest.raises(ValueError, match="no activation or no activation scale for hidden"):
        conversion_error(network_with_units(0.5), x, {}, {"hidden": 1.0}, [4])
    with pytest.raises(ValueError, match="at least 1"):
        conversion_error(network_with_units(0.5), x, {"hidden": x}, {"hidden": 1.0}, [0])
