"""Conversion between a network's settings, the flat arrays of the kernels, and layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from spikeprop.plugins.map_propagation import kernels
from spikeprop.plugins.map_propagation.reference import StochasticNetwork
from spikeprop.runtime.seeding import mix_seed

Learner = Literal["map", "asynchronous", "backprop", "stochastic", "reinforce"]
LEARNERS = {
    "map": kernels.MAP,
    "asynchronous": kernels.ASYNCHRONOUS,
    "backprop": kernels.BACKPROP,  # without noise in the hidden units
    "stochastic": kernels.BACKPROP,  # through the sampled hidden units (reparametrisation)
    "reinforce": kernels.REINFORCE,
}
LABELS = {
    "map": "MAP propagation",
    "asynchronous": "asynchronous MAP propagation",
    "backprop": "backprop",
    "stochastic": "backprop, stochastic units",
    "reinforce": "REINFORCE",
}


def check_learners(learners: Sequence[str]) -> None:
    """Raises ValueError if there is no learner, or one occurs twice."""
    if not learners or len(set(learners)) < len(learners):
        raise ValueError(f"learners are {list(learners)}; name each once, of {', '.join(LEARNERS)}")


@dataclass(frozen=True, kw_only=True)
class TeamSettings:
    """Noise and learning rates of a network of stochastic units (the paper's "team").

    Attributes:
        variances: variance of each layer, the output last (it is only used if the output is Gaussian).
        rates: Adam's learning rate of each layer.
        final_rates: values to which the rates are annealed; default: constant rates.
        trace: decay lambda of the eligibility trace, in [0, 1].
    """

    variances: list[float]
    rates: list[float]
    final_rates: list[float] | None = None
    trace: float = 0.0

    def __post_init__(self) -> None:
        for name in ("variances", "rates"):
            if min(getattr(self, name), default=0) <= 0:
                raise ValueError(f"{name} are {getattr(self, name)}; all must be positive")
        if not 0 <= self.trace <= 1:
            raise ValueError(f"trace is {self.trace}; it must lie in [0, 1]")

    def check(self, layers: int, name: str) -> None:
        """Raises ValueError if a list does not have one number per layer."""
        for key in ("variances", "rates", "final_rates"):
            found = getattr(self, key)
            if found is not None and len(found) != layers:
                raise ValueError(f"{name}.{key} has {len(found)} numbers for {layers} layers (hidden ones and the output)")


def make_net(
    sizes: Sequence[int],
    team: TeamSettings,
    *,
    learner: str,
    seed: int,
    batch: int,
    temperature: float | None,
    discount: float = 0.0,
    with_trace: bool = True,
    dtype: type = np.float64,
) -> kernels.Net:
    """Arrays of a new network: weights uniform within sqrt(6 / (inputs + outputs)) (Glorot), biases zero.

    Args:
        sizes: inputs, hidden layers, outputs.
        team: variances, rates, trace.
        learner: a key of ``LEARNERS``; backprop's hidden units have no noise.
        seed: seed of the weights; learners with the same seed start with the same weights.
        batch: number of environments, or images, per call.
        temperature: temperature of a softmax output; None for a Gaussian output.
        discount: the trace decays by discount * lambda.
        with_trace: whether an eligibility trace is allocated.
        dtype: of the arrays.
    """
    rng = np.random.Generator(np.random.PCG64(mix_seed(seed, 0)))
    rows = []
    for n, k in pairwise(sizes):
        limit = math.sqrt(6 / (n + k))
        rows += [rng.uniform(-limit, limit, n * k), np.zeros(k)]
    theta = np.concatenate(rows).astype(dtype)
    layers = np.zeros((len(sizes) - 1, 4))
    layers[:, kernels.VARIANCE] = team.variances
    layers[:, kernels.DEVIATION] = np.sqrt(team.variances)
    if learner == "backprop":
        layers[:-1, kernels.DEVIATION] = 0
    layers[:, kernels.RATE] = team.rates
    layers[:, kernels.FINAL_RATE] = team.rates if team.final_rates is None else team.final_rates
    return kernels.Net(
        sizes=np.array(sizes, dtype=np.int64),
        layers=layers,
        params=np.stack([theta, np.zeros_like(theta), np.zeros_like(theta)]),
        trace=np.zeros((batch if with_trace else 1, theta.size), dtype),
        units=np.zeros((5, batch, sum(sizes[1:])), dtype),
        output=kernels.GAUSSIAN if temperature is None else kernels.SOFTMAX,
        temperature=1.0 if temperature is None else float(temperature),
        decay=float(discount * team.trace),
    )


def deterministic(net: kernels.Net, batch: int = 1) -> kernels.Net:
    """The same parameters without noise, for ``batch`` inputs."""
    layers = net.layers.copy()
    layers[:, kernels.DEVIATION] = 0
    return net._replace(layers=layers, units=np.zeros((5, batch, net.units.shape[2]), net.units.dtype))


def as_team(net: kernels.Net) -> StochasticNetwork:
    """The parameters as a ``StochasticNetwork`` of the reference: copies, float64."""
    weights, biases, start = [], [], 0
    for n, k in pairwise(net.sizes):
        weights.append(torch.from_numpy(net.params[kernels.WEIGHT, start : start + n * k].reshape(n, k).copy()))
        biases.append(torch.from_numpy(net.params[kernels.WEIGHT, start + n * k : start + (n + 1) * k].copy()))
        start += (n + 1) * k
    temperature = net.temperature if net.output == kernels.SOFTMAX else None
    variances = [float(v) for v in net.layers[:, kernels.VARIANCE]]
    return StochasticNetwork(weights=weights, biases=biases, variances=variances, temperature=temperature)


def layers_of(net: kernels.Net, row: int) -> list[Tensor]:
    """Means, slopes, values or errors (``kernels.MEAN`` and so on) of each layer, (E, units)."""
    return list(torch.from_numpy(net.units[row].copy()).split([int(k) for k in net.sizes[1:]], dim=-1))


class Noise:
    """Standard normal numbers that depend only on seed and step, so that a resumed run needs no generator state.

    Args:
        seed: seed of the run.
        shape: shape of one step's numbers.
        block: steps whose numbers are drawn together; the numbers depend on it.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], block: int = 256):
        self.seed, self.shape, self.block = seed, shape, block
        self._block, self._numbers = -1, np.empty(0)

    def __call__(self, step: int) -> np.ndarray:
        """The numbers of a step."""
        block, row = divmod(step, self.block)
        if block != self._block:
            rng = np.random.Generator(np.random.PCG64(mix_seed(self.seed, 1, block)))
            self._block, self._numbers = block, rng.standard_normal((self.block, *self.shape))
        return self._numbers[row]
