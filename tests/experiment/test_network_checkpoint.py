"""Network checkpoints: what training and calibration changed is loaded again, whatever its shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spikeprop import BPTT, Digits, SpikingNetwork, fit
from spikeprop.convert import to_spiking
from spikeprop.experiment.network_checkpoint import describe_network, load_network
from spikeprop.experiment.pipeline import HybridConversion
from spikeprop.learn import save_checkpoint
from spikeprop.recipe import load_recipe

TRAINED = "convert.neuron={use: LIF, leak: 0.9, v_init: 0.5, surrogate: Triangle, trainable: [threshold, leak]}"


def uncalibrated(experiment: HybridConversion) -> SpikingNetwork:
    torch.manual_seed(0)
    encoder = experiment.convert.encoder.build()
    return to_spiking(experiment.ann.build(), experiment.convert.neuron.build, encoder, (1, 8, 8))


@pytest.mark.parametrize("shape", [(), (16, 1, 1)], ids=["layer", "channel"])
def test_trained_thresholds_and_leaks_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    experiment = load_recipe("digits_cnn_stdb", [TRAINED, "ann.plan=[16, A, 16, A]", "ann.hidden=[]"]).experiment
    network = uncalibrated(experiment)
    for neuron in network.neurons().values():
        neuron.set_threshold(0.1 + torch.rand(shape))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    data = Digits(train_limit=64)
    optimizer = experiment.finetune.build_optimizer(network.parameters())
    fit(network, BPTT(timesteps=3), data.train(16, seed=0), optimizer, epochs=2)
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in before if name.endswith(("v_threshold", "leak"))} <= moved
    save_checkpoint(tmp_path / "net.safetensors", network, describe_network(network, experiment, data, 8))
    again = load_network(tmp_path / "net.safetensors").network
    assert isinstance(again, SpikingNetwork)
    assert all(isinstance(n.v_threshold, nn.Parameter) and isinstance(n.leak, nn.Parameter) for n in again.neurons().values())
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in again.state_dict().items())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again(x, 4), network(x, 4))
