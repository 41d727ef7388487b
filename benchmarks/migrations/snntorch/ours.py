"""spikeprop: leaky neurons learn MNIST by a surrogate gradient."""

import torch
from torch import nn

import spikeprop as sp
from spikeprop.snn import INPUT, ATan, Layer, Synapse

STEPS = 25


def main(images: int, tests: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    data = sp.MNIST(train_limit=images, test_limit=tests)

    hidden = Layer([(INPUT, Synapse([nn.Flatten(), nn.Linear(784, 1000)]))], sp.LIF(leak=0.95, surrogate=ATan()))
    output = Layer([("hidden", Synapse([nn.Linear(1000, 10)]))], None)
    network = sp.SpikingNetwork({"hidden": hidden, "output": output}, sp.Direct(), data.input_shape)

    rule = sp.BPTT(timesteps=STEPS, average=True)
    sp.fit(network, rule, data.train(128, seed=seed), torch.optim.Adam(network.parameters(), lr=5e-4), epochs=1, seed=seed)

    found = sp.snn_accuracy(network, data.test(100).epoch(0), timesteps=[STEPS])
    return {f"T = {t}": percent for t, percent in found.items()}
