"""The mathematics of MAP propagation in plain torch, layer by layer.

A hidden layer is drawn from a normal distribution, h ~ N(g(h' W + b), variance), where h' are the values of the layer below;
the output is an action A, drawn from a softmax or a normal distribution. REINFORCE on every unit is unbiased but has a high
variance. MAP propagation (Chung 2020, "MAP Propagation Algorithm", arXiv:2010.07893) first moves the hidden layers to their
most probable values given state and action, by gradient descent on the energy

    E(h | x, A) = sum_l |h_l - mu_l|^2 / (2 variance_l) - log p(A | h_last),

and then takes each unit's score. In the limit of vanishing variances these scores are the gradient of backpropagation. The
learning rule uses this module, and the tests compare the fast kernels with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["softplus", "relu"]
ACTIVATIONS = {
    "softplus": (F.softplus, torch.sigmoid),
    "relu": (torch.relu, lambda potential: (potential > 0).to(potential.dtype)),
}


@dataclass(frozen=True, kw_only=True)
class StochasticNetwork:
    """A multilayer network of stochastic units. Leading dimensions (for example runs) broadcast.

    Attributes:
        weights: weights of each layer, (..., inputs, units).
        biases: biases of each layer, (..., units).
        variances: variance of each layer; that of the output is only used if it is Gaussian.
        temperature: temperature of a softmax output; None for a linear Gaussian output.
        activations: activation of each hidden layer, "softplus" or "relu"; default softplus.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    variances: Sequence[float]
    temperature: float | None = None
    activations: Sequence[Activation] = field(default=())

    @property
    def hidden(self) -> int:
        """Number of hidden layers."""
        return len(self.weights) - 1

    def potential(self, layer: int, below: Tensor) -> Tensor:
        """Potentials (..., B, units) before the activation, for values (..., B, inputs) of the layer below."""
        return below @ self.weights[layer] + self.biases[layer].unsqueeze(-2)

    def mean(self, layer: int, below: Tensor) -> Tensor:
        """Mean of a layer's values; probabilities for a softmax output."""
        potential = self.potential(layer, below)
        if layer < self.hidden:
            return self._activation(layer)[0](potential)
        return potential if self.temperature is None else torch.softmax(potential / self.temperature, -1)

    def means(self, x: Tensor) -> list[Tensor]:
        """Means of every layer of the deterministic network, in which each value is its mean."""
        means = []
        for layer in range(len(self.weights)):
            means.append(self.mean(layer, means[-1] if means else x))
        return means

    def sample(self, x: Tensor, noise: Sequence[Tensor]) -> list[Tensor]:
        """Draw the values of every layer, given those of the layer below.

        Args:
            x: (..., B, inputs).
            noise: standard normal numbers of each layer, (..., B, units); a softmax output uses only the first column.

        Returns:
            values of each layer; those of a softmax output are one-hot.
        """
        values: list[Tensor] = []
        for layer, (drawn, variance) in enumerate(zip(noise, self.variances)):
            mean = self.mean(layer, values[-1] if values else x)
            if layer == self.hidden and self.temperature is not None:
                uniform = torch.special.ndtr(drawn[..., :1])
                index = (uniform >= mean.cumsum(-1)[..., :-1]).sum(-1)
                values.append(F.one_hot(index, mean.shape[-1]).to(mean))
            else:
                values.append(mean + variance**0.5 * drawn)
        return values

    def energy(self, x: Tensor, values: Sequence[Tensor]) -> Tensor:
        """-log p(values of hidden units, action | x) up to a constant, (..., B)."""
        total = torch.zeros(x.shape[:-1], dtype=x.dtype)
        for layer, (below, value) in enumerate(zip([x, *values], values)):
            mean = self.mean(layer, below)
            if layer == self.hidden and self.temperature is not None:
                total = total - (value * mean.log()).sum(-1)
            else:
                total = total + (value - mean).square().sum(-1) / (2 * self.variances[layer])
        return total

    def signals(self, x: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
        """Scores: d log p(value | values below) / d potential, of each layer (..., B, units)."""
        found = []
        for layer, (below, value) in enumerate(zip([x, *values], values)):
            gap = value - self.mean(layer, below)
            if layer < self.hidden:
                gap = gap * self._activation(layer)[1](self.potential(layer, below))
            softmax = layer == self.hidden and self.temperature is not None
            scale = self.temperature if softmax else self.variances[layer]
            assert scale is not None
            found.append(gap / scale)
        return found

    def relax(self, x: Tensor, values: Sequence[Tensor], iterations: int, step: float = 0.5) -> list[Tensor]:
        """Gradient descent of all hidden layers on the energy with fixed action: h_l <- h_l - step * variance_l * dE/dh_l."""
        values = list(values)
        for _ in range(iterations):
            signals = self.signals(x, values)
            moved = []
            for layer, (below, value) in enumerate(zip([x, *values], values[:-1])):
                feedback = signals[layer + 1] @ self.weights[layer + 1].mT
                moved.append(value + step * (self.mean(layer, below) - value + self.variances[layer] * feedback))
            values = [*moved, values[-1]]
        return values

    def stable_step(self) -> float:
        """A stable step for ``relax`` with these weights: 1 / L, where L is a bound of the energy's curvature.

        In units of the deviations, h_l / deviation_l, the energy is half the square of J h - ..., where J = I - S and S contains
        the layers' slopes (at most 1) times weights times deviation_l / deviation_(l+1). So L <= (1 + s)^2 + s_out^2 with the
        largest spectral norm s; that of a softmax is at most 1 / (2 temperature^2). Second derivatives of the activation are
        neglected. The paper's fixed step of 0.5 diverges if s is above about 1.
        """
        norms = [float(torch.linalg.matrix_norm(weight, 2).max()) for weight in self.weights[1:]]
        ratios = [below / above for below, above in zip(self.variances, self.variances[1:])]
        inner = [norm * ratio**0.5 for norm, ratio in zip(norms[:-1], ratios)]
        last = ratios[-1] if self.temperature is None else self.variances[-2] / (2 * self.temperature**2)
        return 1 / ((1 + max(inner, default=0.0)) ** 2 + last * norms[-1] ** 2)

    def backpropagated(self, x: Tensor, output: Tensor) -> list[Tensor]:
        """Signals of each layer by the chain rule in the deterministic network, from d(objective)/d(output potential)."""
        means = self.means(x)
        signals = [output]
        for layer in reversed(range(self.hidden)):
            slope = self._activation(layer)[1](self.potential(layer, means[layer - 1] if layer else x))
            signals.insert(0, slope * (signals[0] @ self.weights[layer + 1].mT))
        return signals

    def _activation(self, layer: int):
        return ACTIVATIONS[self.activations[layer] if self.activations else "softplus"]


def gradients(x: Tensor, values: Sequence[Tensor], signals: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Sums over the batch of input x signal: the ascent direction of each layer's weights and biases."""
    return [(below.mT @ signal, signal.sum(-2)) for below, signal in zip([x, *values], signals)]


def critic_factor(value: Tensor, mean: Tensor, variance: float, least: float = 1e-6) -> Tensor:
    """The factor 1 / (A - mean of A) of a critic's signals: at the energy's minimum they follow the gradient of the mean.

    A draft of the paper multiplies by A - mean (its equation 17); the author's code divides, and so does this function.
    ``least`` (in standard deviations) keeps the quotient finite.
    """
    gap, least = value - mean, least * variance**0.5
    return 1 / torch.where(gap.abs() < least, torch.copysign(torch.full_like(gap, least), gap), gap)
