"""spikeprop: MNIST as constant currents, a layer of leaky neurons, and an accumulating readout."""

import torch
from torch import nn

import spikeprop as sp
from spikeprop.snn import INPUT, FastSigmoid, Layer, Synapse

STEPS = 32


def main(images: int, tests: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    data = sp.MNIST(train_limit=images, test_limit=tests, mean=0.1307, std=0.3081)

    hidden = Layer([(INPUT, Synapse([nn.Flatten(), nn.Linear(784, 100)]))], sp.LIF(leak=0.9, surrogate=FastSigmoid()))
    output = Layer([("hidden", Synapse([nn.Linear(100, 10, bias=False)]))], None)
    network = sp.SpikingNetwork({"hidden": hidden, "output": output}, sp.Direct(), data.input_shape)

    rule = sp.BPTT(timesteps=STEPS, average=True)
    sp.fit(network, rule, data.train(32, seed=seed), torch.optim.Adam(network.parameters(), lr=2e-3), epochs=3, seed=seed)

    found = sp.snn_accuracy(network, data.test(100).epoch(0), timesteps=[STEPS])
    return {f"T = {t}": percent for t, percent in found.items()}
