"""Random spiking networks of every kind that hardware/ lays out, and inputs for them.

Weights, thresholds, leaks and inputs are short binary fractions unless ``real`` asks for others. Every sum is then exact in
float64 in whatever order it is taken, so simulators must agree to the bit, also where a potential meets its threshold.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeprop import IF, LIF, Direct, GradedIF, Poisson, SignedIF
from spikeprop.snn import INPUT, ChannelPad, Frames, Gain, Layer, Neuron, SpikingNetwork, Synapse
from spikeprop.snn.pooling import SpikingMaxPool

KINDS = ["dense", "conv", "strided", "grouped", "pooled", "residual", "concatenated", "max_pooled"]
STEPS = 10
Shape = tuple[int, ...]
Trains = dict[str, np.ndarray]


def random_network(seed: int, real: bool = False, levels: int = 0) -> tuple[SpikingNetwork, np.ndarray]:
    """A network of kind ``KINDS[seed % len(KINDS)]`` in float64, and inputs (2 samples, steps, ...), others at every step.

    With ``levels`` all its neurons are graded, most of them rectified.
    """
    return _Maker(seed, real, levels).make(KINDS[seed % len(KINDS)])


def joined_network(seed: int, shape: Shape = (2, 6, 6)) -> tuple[SpikingNetwork, np.ndarray]:
    """One network of all kinds but "dense" beside each other, with graded neurons of 1 to 4 levels and real weights, and inputs.

    Where each network costs a process, one stands for all.
    """
    layers: dict[str, Layer] = {}
    heads, rng = [], np.random.default_rng(seed)
    for i, kind in enumerate(KINDS[1:]):
        maker = _Maker(seed + i, real=True, levels=1 + i % 4)
        last, after = getattr(maker, kind)(shape)
        for name, layer in maker.layers.items():
            paths = [(s if s == INPUT else f"{kind}_{s}", synapse) for _, s, synapse in layer.branches()]
            layers[f"{kind}_{name}"] = Layer(paths, layer.neuron)
        heads.append((f"{kind}_{last}", Synapse([nn.Flatten(), maker.linear(int(np.prod(after)), 3)])))
    layers["head"] = Layer(heads, None)
    return SpikingNetwork(layers, Direct(), shape).double().eval(), rng.standard_normal((2, STEPS, *shape))


class _Maker:
    def __init__(self, seed: int, real: bool, levels: int):
        self.rng, self.real, self.levels = np.random.default_rng(seed), real, levels
        self.pools = False
        self.layers: dict[str, Layer] = {}

    def make(self, kind: str) -> tuple[SpikingNetwork, np.ndarray]:
        poisson = self.chance(0.4)
        size = int(self.rng.integers(6, 9))
        shape: Shape = (int(self.rng.integers(4, 9)),) if kind == "dense" else (2, size, size)
        last, after = getattr(self, kind)(shape)
        self.layers["head"] = Layer([(last, Synapse([nn.Flatten(), self.linear(int(np.prod(after)), 3)]))], None)
        network = SpikingNetwork(self.layers, Poisson() if poisson else Direct(), shape).double().eval()
        network.readout.set(delay=self.pick([0, 0, 3]))
        full = (2, STEPS, *shape)
        inputs = self.rng.integers(-1, 2, full).astype(float) if poisson else self.rng.integers(-8, 17, full) / 8
        if self.real and not poisson:
            inputs = self.rng.standard_normal(full)
        return network, inputs

    # kinds: each adds layers and returns the last one's name and shape

    def dense(self, shape: Shape) -> tuple[str, Shape]:
        name = INPUT
        for i in range(self.pick([1, 2, 3])):
            out = int(self.rng.integers(4, 10))
            name, shape = self.layer(f"d{i}", name, (self.linear(shape[0], out),), (out,)), (out,)
        return name, shape

    def conv(self, shape: Shape) -> tuple[str, Shape]:
        kernel = (self.pick([1, 2, 3]), self.pick([1, 2, 3]))
        name, shape = self.conv_layer("c0", INPUT, shape, kernel_size=kernel, padding=self.pick([0, 1]))
        return self.conv_layer("c1", name, shape, kernel_size=3, padding=2, dilation=2)

    def strided(self, shape: Shape) -> tuple[str, Shape]:
        stride, padding = (self.pick([1, 2]), 2), (self.pick([0, 1]), 1)
        name, shape = self.conv_layer("c0", INPUT, shape, kernel_size=3, stride=stride, padding=padding)
        return self.conv_layer("c1", name, shape, kernel_size=(1, 2), stride=2)

    def grouped(self, shape: Shape) -> tuple[str, Shape]:
        name, shape = self.conv_layer("c0", INPUT, shape, kernel_size=3, padding=1, groups=2)
        return self.conv_layer("c1", name, shape, kernel_size=2, groups=self.pick([2, 4]))

    def pooled(self, shape: Shape) -> tuple[str, Shape]:
        name, shape = self.conv_layer("c0", INPUT, shape, kernel_size=3, padding=1)
        pool = nn.AvgPool2d(2, stride=self.pick([1, 2]), padding=self.pick([0, 1]))
        name, shape = self.conv_layer("c1", name, shape, pool, kernel_size=3, padding=1)
        flat = [nn.AvgPool2d(2), nn.Flatten(), self.linear(4 * (shape[1] // 2) * (shape[2] // 2), 6)]
        return self.layer("d", name, flat, (6,)), (6,)

    def residual(self, shape: Shape) -> tuple[str, Shape]:
        first, shape = self.conv_layer("c0", INPUT, shape, kernel_size=3, padding=1)
        middle, _ = self.conv_layer("c1", first, shape, kernel_size=3, padding=1)
        skip = self.pick([[], [Gain(0.75)], [self.conv2d(4, 4, kernel_size=1)]])
        paths = [(middle, Synapse([self.conv2d(4, 4, kernel_size=3, padding=1)])), (first, Synapse(skip))]
        self.layers["sum"] = Layer(paths, self.neuron(shape))
        return "sum", shape

    def concatenated(self, shape: Shape) -> tuple[str, Shape]:
        first, shape = self.conv_layer("c0", INPUT, shape, kernel_size=3, padding=1)
        second, _ = self.conv_layer("c1", first, shape, kernel_size=3, padding=1)
        mix = self.conv2d(8, 4, kernel_size=3)
        other = self.conv2d(8, 4, kernel_size=3)
        paths = [(first, Synapse([ChannelPad(0, 4), mix])), (second, Synapse([ChannelPad(4, 0), other]))]
        after = (4, shape[1] - 2, shape[2] - 2)
        self.layers["joined"] = Layer(paths, self.neuron(after))
        return "joined", after

    def max_pooled(self, shape: Shape) -> tuple[str, Shape]:
        self.pools = True  # of sums that are not negative
        first, shape = self.conv_layer("c0", INPUT, shape, kernel_size=3, padding=1)
        joined = [(first, Synapse([]))]
        if self.chance(0.4):  # one path is a layer longer
            second, _ = self.conv_layer("c1", first, shape, kernel_size=3, padding=1)
            joined = [(first, Synapse([ChannelPad(0, 4)])), (second, Synapse([ChannelPad(4, 0)]))]
            shape = (8, *shape[1:])
        name, shape = self.max_pool("m0", joined, shape)
        what = self.pick(["average", "residual", "again", "head"])
        if what == "average":
            return self.conv_layer("c2", name, shape, nn.AvgPool2d(2, stride=1), kernel_size=2, padding=1)
        if what == "residual":
            middle, thin = self.conv_layer("c2", name, shape, kernel_size=3, padding=1)
            paths = [(middle, Synapse([self.conv2d(thin[0], shape[0], kernel_size=3, padding=1)])), (name, Synapse([]))]
            self.layers["sum"] = Layer(paths, self.neuron(shape))
            return "sum", shape
        return self.max_pool("m1", [(name, Synapse([]))], shape) if what == "again" else (name, shape)

    # parts

    def max_pool(self, name: str, paths: Any, shape: Shape) -> tuple[str, Shape]:
        kernel = (self.pick([2, 3]), self.pick([1, 2, 3]))
        padding = (self.pick([0, kernel[0] // 2]), self.pick([0, kernel[1] // 2]))
        pool = SpikingMaxPool(kernel, self.pick([1, 2, (2, 3)]), padding, self.chance(0.5))
        self.layers[name] = Layer(paths, pool)
        return name, tuple(pool.window(torch.zeros(shape)).shape)

    def conv_layer(self, name: str, source: str, shape: Shape, *before: nn.Module, **settings: Any) -> tuple[str, Shape]:
        ops = [*before, self.conv2d(shape[0], 4, **settings)]
        with torch.no_grad():
            x = torch.zeros(1, *shape, dtype=torch.float64)
            for op in ops:
                x = op.double()(x)
        after = tuple(x.shape[1:])
        return self.layer(name, source, ops, after), after

    def layer(self, name: str, source: str, ops: Any, shape: Shape) -> str:
        self.layers[name] = Layer([(source, Synapse(ops))], self.neuron(shape))
        return name

    def neuron(self, shape: Shape) -> Neuron:
        reset = self.pick(["subtract", "zero"])
        leak = self.pick([0.9, 0.77]) if self.real else self.pick([0.5, 0.75, 0.875])
        neuron = self.pick([IF(reset=reset), LIF(leak=leak, reset=reset)])
        if self.levels:
            rectify = self.pools or self.chance(0.7)
            neuron = GradedIF(levels=self.levels, rectify=rectify) if self.levels > 1 else SignedIF(rectify=rectify)
        per_channel = (shape[0], *([1] * (len(shape) - 1)))
        where = self.pick([(), per_channel])
        neuron.v_threshold = self.numbers(where, 8, 33)
        neuron.v_init = self.pick([torch.tensor(0.0), torch.tensor(0.5), self.fractions(shape)])
        if not self.real and not self.levels:
            neuron.leak = torch.tensor(float(neuron.leak) if isinstance(neuron, LIF) else 1.0, dtype=torch.float64)
        return neuron

    def conv2d(self, inputs: int, outputs: int, **settings: Any) -> nn.Conv2d:
        return self.filled(nn.Conv2d(inputs, outputs, bias=self.chance(0.5), **settings))

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        return self.filled(nn.Linear(inputs, outputs, bias=self.chance(0.5)))

    def filled(self, op: Any) -> Any:
        op.double()
        op.weight.data = self.numbers(tuple(op.weight.shape), -12, 16)
        if op.bias is not None:
            op.bias.data = self.numbers(tuple(op.bias.shape), -4, 8)
        return op

    def numbers(self, shape: Shape, low: int, high: int) -> Tensor:
        """Sixteenths from low to high - 1, or real numbers between them."""
        drawn = self.rng.uniform(low, high, shape) if self.real else self.rng.integers(low, high, shape)
        return torch.tensor(np.asarray(drawn) / 16, dtype=torch.float64)

    def fractions(self, shape: Shape) -> Tensor:
        return torch.tensor(self.rng.integers(0, 8, shape) / 8, dtype=torch.float64)

    def pick(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)


@torch.no_grad()
def simulate_in_torch(network: SpikingNetwork, inputs: np.ndarray) -> tuple[Trains, Trains, np.ndarray]:
    """Spikes and potentials by layer, (samples, steps, ...), and the output (samples, steps, K), in float64."""
    x = torch.from_numpy(np.ascontiguousarray(inputs.swapaxes(0, 1)))
    trains: dict[str, list[Tensor]] = {}
    potentials: dict[str, list[Tensor]] = {}
    network = copy.deepcopy(network)
    network.encoder = Frames()

    def observe(name: str, spikes_TB: Tensor) -> None:
        trains.setdefault(name, []).append(spikes_TB[0].clone())

    outputs = list(network.unroll(x, chunk=1, observe=observe))
    network.readout.set()  # not for step, which does not delay the output
    state = network.init_state()
    for x_B in x:
        _, state = network.step(x_B, state)
        for name, neuron in network.dynamics().items():
            v = state.layers[name].v
            v = neuron.window(v) if isinstance(neuron, SpikingMaxPool) else v.clone()  # of counts, the largest
            potentials.setdefault(name, []).append(v)
    del trains[INPUT]
    return _stacked(trains), _stacked(potentials), torch.cat(outputs).transpose(0, 1).numpy()


def _stacked(steps: dict[str, list[Tensor]]) -> Trains:
    return {name: torch.stack(values, 1).numpy() for name, values in steps.items()}
