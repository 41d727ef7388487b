"""The packed engine against the plain reference on random spiking networks: spikes bit for bit, gradients to rounding.

Weights, thresholds, leaks and images are binary fractions of few bits, so that every sum is exact in whichever order it is
made, and a potential may meet its threshold exactly. ``Drawn(seed)`` is a chain or a residual graph of convolutions (any kernel,
stride, padding, dilation, groups), fully connected layers, average pooling and dropout, with layers that never fire and layers
that fire at every step, batches of one, and one time step.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import IF, LIF, STDB, Direct, Poisson, SpikingNetwork, Triangle
from spikeprop.snn import INPUT, FastSigmoid, Layer, Synapse
from spikeprop.snn.engine import weighted_run
from spikeprop.snn.engine.kernels import sparse_backward
from spikeprop.snn.engine.support import supports
from spikeprop.snn.engine.weighted_run import Limits
from spikeprop.snn.synapse import Gain, SampleDropout

PRECISION = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a gradient, relative to the largest of its parameter
STEPS = (1, 1, 2, 3, 4, 4, 5, 8, 13, 20, 33)


LARGE = 64.0  # a bias that makes its neurons fire at every step
Shape = tuple[int, ...]


class Drawn:
    """A random network with an input, and how it is to be run."""

    def __init__(self, seed: int):
        self.rng, self.seed = random.Random(seed), seed
        torch.manual_seed(seed)
        self.dtype = self.rng.choice(list(PRECISION))
        self.steps, self.batch = self.rng.choice(STEPS), self.rng.choice((1, 1, 2, 3, 5))
        self.chunk = self.rng.choice((None, None, 1, 2, 5))
        self.counts: Counter[str] = Counter()
        self.network = self._network()
        self.x = _fractions((self.batch, *self.network.input_shape), 8, 8).to(self.dtype)

    # A leak adds bits to a potential at every step: single precision holds them for a few steps.
    def _leak(self) -> float:
        few = self.steps <= 4 if self.dtype is torch.float32 else self.steps <= 13
        return self.rng.choice((0.5, 0.75, 1.0)) if few else 1.0

    def _neuron(self, shape: Shape) -> IF | LIF:
        rng = self.rng
        surrogate = rng.choice((STDB(), STDB(alpha=0.5, beta=0.3), STDB(), Triangle(), FastSigmoid()))
        leak, reset, start = self._leak(), rng.choice(("subtract", "subtract", "zero")), rng.choice((0.0, 0.5))
        neuron: Any = (
            IF(reset=reset, v_init=start, surrogate=surrogate)
            if leak == 1
            else LIF(leak=leak, reset=reset, v_init=start, surrogate=surrogate)
        )
        level = rng.choice(("usual", "usual", "usual", "usual", "silent", "always", "channels", "neurons"))
        self.counts[f"layers: {level}"] += 1
        size = {"channels": (shape[0], *(1 for _ in shape[1:])), "neurons": shape}.get(level, ())
        theta = torch.randint(1, 12, size) / 8
        neuron.set_threshold(theta * {"silent": 4096.0, "always": 2.0**-10}.get(level, 1.0))
        self.always = level == "always"
        return neuron

    def _conv(self, channels: int, height: int, width: int, out: int | None = None) -> nn.Conv2d:
        rng = self.rng
        kernel = (rng.choice((1, 2, 3, 3, 5)), rng.choice((1, 2, 3, 3, 5)))
        stride, dilation = rng.choice(((1, 1), (1, 1), (2, 2), (1, 2))), rng.choice(((1, 1), (1, 1), (1, 1), (2, 2), (2, 1)))
        padding = (rng.randint(0, kernel[0]), rng.randint(0, kernel[1]))
        for size, k, d in ((height, kernel[0], dilation[0]), (width, kernel[1], dilation[1])):
            if size < d * (k - 1) + 1:
                kernel, stride, padding, dilation = (1, 1), (1, 1), (0, 0), (1, 1)
        groups = rng.choice((1, 1, 1, 2, channels)) if channels > 1 else 1
        groups = groups if channels % groups == 0 else 1
        if out is None:
            out = groups * rng.choice((1, 2, 5, 17, 32) if groups <= 2 else (1, 2))
        groups = groups if out % groups == 0 else 1
        return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.6)

    def _synapse(self, *ops: nn.Module) -> Synapse:
        return Synapse([op for op in ops if not isinstance(op, nn.Identity)])

    def _dropout(self) -> nn.Module:
        return SampleDropout(0.5) if self.rng.random() < 0.25 else nn.Identity()

    def _network(self) -> SpikingNetwork:
        rng = self.rng
        image = rng.random() < 0.8
        shape: Shape = (rng.choice((1, 2, 3)), rng.randint(5, 10), rng.randint(5, 10)) if image else (rng.choice((3, 33, 64)),)
        layers, shapes, source = dict[str, Layer](), dict[str, Shape]({INPUT: shape}), INPUT
        for number in range(rng.randint(1, 4)):
            ops, shape = self._weighted(shapes[source])
            branches = [(source, self._synapse(self._dropout() if number else nn.Identity(), *ops))]
            if number and rng.random() < 0.35:  # a second branch that reads the same source: a residual path
                branches.append((source, self._beside(shapes[source], shape)))
            source = f"layer{number}"
            layers[source], shapes[source] = Layer(branches, self._neuron(shape)), shape
            if self.always and ops[-1].bias is not None:  # a current above the threshold at every step
                ops[-1].bias.data.fill_(LARGE)
        readout = self._synapse(self._dropout(), *self._flat(shape), nn.Linear(math.prod(shape), rng.choice((1, 4, 10))))
        layers["out"] = Layer([(source, readout)], None)
        network = SpikingNetwork(layers, rng.choice((Poisson(), Direct())), shapes[INPUT])
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.data = _fractions(module.weight.shape, 12, 32)
                if module.bias is not None and not (module.bias == LARGE).all():
                    module.bias.data = _fractions(module.bias.shape, 6, 32)
        return network.to(self.dtype).train(rng.random() < 0.7)

    def _weighted(self, shape: Shape) -> tuple[list[Any], Shape]:
        """A convolution, perhaps of pooled values, or a fully connected layer; and the shape of its current."""
        rng, ops = self.rng, list[Any]()
        if len(shape) == 3 and rng.random() < 0.3 and shape[1] % 2 == 0 and shape[2] % 2 == 0:
            ops.append(nn.AvgPool2d(2))
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
        if len(shape) == 3 and rng.random() < 0.8:
            conv = self._conv(*shape)
            return [*ops, conv], tuple(conv(torch.zeros(1, *shape)).shape[1:])
        linear = nn.Linear(math.prod(shape), rng.choice((7, 32, 65)), bias=rng.random() < 0.5)
        return [*ops, *self._flat(shape), linear], (linear.out_features,)

    def _flat(self, shape: Shape) -> list[nn.Module]:
        return [nn.Flatten()] if len(shape) == 3 else []

    def _beside(self, before: Shape, shape: Shape) -> Synapse:
        if before == shape:
            return self._synapse(Gain(0.5))
        linear = nn.Linear(math.prod(before), math.prod(shape), bias=False)
        return self._synapse(*self._flat(before), linear, *([nn.Unflatten(1, shape)] if len(shape) == 3 else []))


def _fractions(size: Any, largest: int, denominator: int) -> Tensor:
    return torch.randint(-largest, largest + 1, tuple(size)) / denominator


def _simulated(drawn: Drawn, packed: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Output and gradients of one simulation, and the spikes of the same simulation without gradients."""
    network = drawn.network
    network.packed = packed
    network.zero_grad()
    torch.manual_seed(drawn.seed)
    output = network(drawn.x, drawn.steps, chunk=drawn.chunk)
    (output * torch.linspace(-1, 1.5, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    grads = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    seen: dict[str, list[Tensor]] = {}
    torch.manual_seed(drawn.seed)
    with torch.no_grad():
        network(drawn.x, drawn.steps, chunk=drawn.chunk, observe=lambda name, s: seen.setdefault(name, []).append(s.clone()))
    return output.detach(), grads, {name: torch.cat(parts) for name, parts in seen.items()}


def compare(seed: int) -> Counter[str]:
    """Run one network both ways; returns what was compared."""
    drawn = Drawn(seed)
    assert supports(drawn.network, drawn.x), f"seed {seed}: the engine does not take this network"
    (output, grads, spikes), (true_output, true_grads, true_spikes) = (_simulated(drawn, packed) for packed in (True, False))
    assert spikes.keys() == true_spikes.keys()
    counts = drawn.counts
    for name, train in true_spikes.items():
        assert torch.equal(spikes[name], train), f"seed {seed}: spikes of {name!r} differ"
        counts["spikes"] += int(train.count_nonzero())
    assert torch.allclose(output, true_output, rtol=1e-6, atol=1e-9), f"seed {seed}: outputs differ"
    precision, largest = PRECISION[drawn.dtype], max(float(g.abs().max()) for g in true_grads.values())
    rounding = 8 * torch.finfo(drawn.dtype).eps * largest  # of sums of large gradients that cancel
    for name, p in drawn.network.named_parameters():
        found, right = (g.get(name, torch.zeros_like(p)) for g in (grads, true_grads))
        error = max(0.0, float((found - right).abs().max()) - rounding) / max(float(right.abs().max()), 1e-30)
        assert error <= precision or torch.equal(found, right), f"seed {seed}: gradient of {name} is off by {error:.2g}"
        counts["gradients of parameters"] += 1
    counts["networks"] += 1
    counts[f"networks: {str(drawn.dtype)[6:]}"] += 1
    return counts


@pytest.mark.parametrize("limit", [None, 1e9, 0.0], ids=["as measured", "sparse", "dense"])
@pytest.mark.parametrize("first", range(0, 80, 20))
def test_packed_networks_equal_the_reference(
    first: int, limit: float | None, counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the choice between sparse and dense ways as it is, and forced either way."""
    if limit is not None:
        monkeypatch.setattr(weighted_run, "LIMITS", Limits(**dict.fromkeys(Limits.__dataclass_fields__, limit)))
    taken: Counter[str] = Counter()
    for name in ("conv_input", "linear_input"):
        monkeypatch.setattr(sparse_backward, name, _counting(getattr(sparse_backward, name), taken, name))
    for seed in range(first, first + 20):
        counted(compare(seed))
    assert len(taken) == (0 if limit == 0 else 2) or limit is None, "the way that was forced is not the one that was taken"
    counted({f"sparse gradients: {name}": count for name, count in taken.items()})


def _counting(function: Callable[..., None], taken: Counter[str], name: str) -> Callable[..., None]:
    def counting(*arguments: Any) -> None:
        taken[name] += 1
        function(*arguments)

    return counting


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 100))
def test_a_thousand_packed_networks_equal_the_reference(first: int, counted: Any) -> None:
    for seed in range(first, first + 100):
        counted(compare(seed))
