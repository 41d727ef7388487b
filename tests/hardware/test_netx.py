"""netx files: read back and run by a loop of their own, they spike as the integer network does; refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError, Simulator
from spikeprop_hardware.netx import quantize_for_netx

from spikeprop import CNN, IF, LIF, Direct, MaxActivation, Poisson, ResNet, convert
from spikeprop.deploy import export_netx, record, to_nir
from spikeprop.snn import INPUT, Encoder, Neuron, SpikingNetwork


def network_of(neuron: Neuron, encoder: Encoder | None = None, per: Any = "channel") -> SpikingNetwork:
    torch.manual_seed(0)
    ann = CNN(input_shape=(2, 6, 6), classes=4, plan=[5, "A", 6], hidden=[8])
    return convert(ann, [torch.rand(16, 2, 6, 6)], neuron, MaxActivation(per=per), encoder=encoder or Poisson())


def run_netx(file: Path, inputs: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Spikes of each layer (T, N) and the readout's potentials, by the rules of Lava's LIF, without its delays.

    u = a << 6 within 24 bits, v = decay(v) + u, s = v > vth << 6, v = 0 where s.
    """
    x, trains, potentials = inputs.astype(np.int64), [], []
    with h5py.File(file) as found:
        every: Any = found["layer"]
        layers = [every[str(i)] for i in range(len(every))]
        for layer in layers:
            assert layer["type"][0] == b"dense"
            assert layer["neuron/type"][0] == b"CUBA"
            assert layer["neuron/iDecay"][()] == 4096
            weight = layer["weight"][()].astype(np.int64)
            assert (weight % 2 == 0).all()
            assert weight.min() >= -256
            assert weight.max() <= 254
            assert layer["shape"][0] == len(weight)
            decay, threshold = int(layer["neuron/vDecay"][()]), int(layer["neuron/vThMant"][()])
            v, spikes, potentials = np.zeros(len(weight), np.int64), [], []
            for step in x:
                v = np.sign(v) * (np.abs(v) * (4096 - decay) >> 12) + ((weight @ step) << 6)
                assert np.abs(v).max() < 2**23
                fired = v > threshold << 6
                v = np.where(fired, 0, v)
                spikes.append(fired)
                potentials.append(v)
            x = np.array(spikes).astype(np.int64)
            trains.append(np.array(spikes))
    return trains, np.array(potentials)


@pytest.mark.parametrize("neuron", [IF(reset="zero"), LIF(leak=0.9, reset="zero")], ids=["if", "lif"])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_a_file_read_back_spikes_as_the_integer_network(tmp_path: Path, neuron: Neuron, per: str) -> None:
    network = network_of(neuron, per=per)
    inputs = record(network, torch.rand(2, 2, 6, 6) * 2 - 1, 20)[0][INPUT]
    made, report = quantize_for_netx(to_nir(network))
    assert all(layer.exponents == (0,) and layer.weight_error < 0.03 for layer in report)
    assert [layer["name"] for layer in export_netx(network, tmp_path / "n.net")] == [layer.name for layer in report]
    ours = Simulator(made).run(inputs)
    for sample in range(2):
        trains, output = run_netx(tmp_path / "n.net", inputs[sample].reshape(20, -1))
        for population, train in zip(made.populations, trains):
            if population.theta is not None:
                assert train.any()
                np.testing.assert_array_equal(ours.spikes[population.name][sample], train)
        np.testing.assert_array_equal(ours.output[sample], output)


def test_what_netx_would_run_as_something_else_is_refused() -> None:
    torch.manual_seed(0)
    biased = CNN(input_shape=(2, 6, 6), classes=4, plan=[5], hidden=[], batch_norm=True)
    for module in biased.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 0.1)
    images, zero = [torch.rand(8, 2, 6, 6)], IF(reset="zero")
    residual = ResNet(depth=8, input_shape=(2, 6, 6), classes=3)
    for network, says in (
        (network_of(IF()), "resets by subtraction, and netx's neurons reset to zero"),
        (network_of(IF(reset="zero", v_init=0.5)), "starts at v_init other than 0"),
        (network_of(zero, Direct()), "no exponent for real-valued input, and this network's encoder is Direct"),
        (convert(residual, images, zero, MaxActivation(), encoder=Poisson()), "no skip connections"),
        (convert(biased, images, zero, MaxActivation(), encoder=Poisson()), "has biases"),
    ):
        with pytest.raises(HardwareError, match=says):
            quantize_for_netx(to_nir(network))


def test_a_delayed_readout_is_refused() -> None:
    network = network_of(IF(reset="zero"), per="layer")
    network.readout.set(delay=5)
    with pytest.raises(HardwareError, match="counts from step 5 on, and netx has no delayed readout"):
        quantize_for_netx(to_nir(network))
